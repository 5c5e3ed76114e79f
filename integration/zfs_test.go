package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// nodeNamed refers to a node.
func nodeNamed(n *lab.Node) *debvisorv1.NodeRef {
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: n.Name}}
}

// zfs runs zfs on a node, past our daemons, and gives what it prints.
func (c *cluster) zfs(n *lab.Node, args ...string) string {
	c.t.Helper()
	out, err := n.Run(c.within(time.Minute), append([]string{"zfs"}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// lines are what a command printed, none for nothing.
func lines(out string) []string {
	if out == "" {
		return nil
	}
	return strings.Split(out, "\n")
}

// dataset makes a dataset on a node's pool, past our daemons, and waits until the cluster knows it.
func (c *cluster) dataset(n *lab.Node, name string, args ...string) *debvisorv1.DatasetRef {
	c.t.Helper()
	ref := &debvisorv1.DatasetRef{
		Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: lab.PoolName, Name: name,
		Node: nodeNamed(n),
	}
	c.zfs(n, append(append([]string{"create"}, args...), lab.PoolName+"/"+name)...)
	ask := c.api(c.running()).storage
	c.eventually(time.Minute, "the cluster knows "+name, func() error {
		list, err := ask.ListStorage(c.within(10*time.Second), &debvisorv1.StorageFilter{Node: ref.GetNode()})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list.GetDatasets(), func(d *debvisorv1.Dataset) bool { return d.GetRef().GetName() == name }) {
			return fmt.Errorf("it knows %d datasets of %s", len(list.GetDatasets()), n.Name)
		}
		return nil
	})
	return ref
}

// write writes random bytes to a file of a file system that is a dataset.
func (c *cluster) write(n *lab.Node, dataset string, mib int) {
	c.t.Helper()
	_, err := n.Run(c.within(time.Minute), "dd", "status=none", "if=/dev/urandom", "bs=1M", fmt.Sprintf("count=%d", mib),
		fmt.Sprintf("of=/%s/file-%d", dataset, requests.Add(1)), "conv=fsync")
	c.must(err)
}

// snapshots are a dataset's snapshots as name and guid, oldest first.
func (c *cluster) snapshots(n *lab.Node, dataset string) []string {
	c.t.Helper()
	var all []string
	for _, line := range lines(c.zfs(n, "list", "-Hp", "-t", "snapshot", "-d", "1", "-s", "createtxg", "-o", "name,guid", dataset)) {
		_, name, _ := strings.Cut(line, "@")
		all = append(all, strings.Join(strings.Fields(name), " "))
	}
	return all
}

// sum is the checksum of all files of a snapshot of a file system.
func (c *cluster) sum(n *lab.Node, snapshot string) string {
	c.t.Helper()
	const script = `set -eu
at=$(mktemp -d)
mount -t zfs -o ro "$1" "$at"
(cd "$at" && find . -type f | LC_ALL=C sort | xargs -r sha256sum) | sha256sum
umount "$at"
rmdir "$at"`
	out, err := n.Run(c.within(2*time.Minute), "bash", "-c", script, "sum", snapshot)
	c.must(err)
	return strings.Fields(out)[0]
}

// TestSnapshots: what hvctl and the API do to snapshots is seen by zfs, each request once, and never to those of others.
func TestSnapshots(t *testing.T) {
	c := pooled.use(t)
	n := c.Machines[0]
	ref := c.dataset(n, "snapshots")
	path := lab.PoolName + "/snapshots"

	t.Run("a request whose agent dies is one snapshot", func(t *testing.T) {
		c := c.inPart(t)
		points := n.Failpoints()
		c.must(points.Arm(c.within(10*time.Second), "replicationSnapshotTaken", hold))
		ctx := withRequestID(c.within(time.Minute), "one-snapshot")
		asked := metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none")
		req := &debvisorv1.SnapshotRequest{Dataset: ref, Label: "before the upgrade"}
		first, err := c.api(c.running()).storage.CreateSnapshot(asked, req)
		c.must(err)
		c.must(points.AwaitHit(c.within(45*time.Second), "replicationSnapshotTaken"))
		c.must(n.Agent.Kill())
		c.must(n.Agent.Start())
		again, err := c.api(c.running()).storage.CreateSnapshot(ctx, req)
		c.must(err)
		if first.GetOperationId() != again.GetOperationId() || again.GetSnapshot().GetSnapshotName() == "" {
			t.Errorf("first %v, then %v", first, again)
		}
		if have := c.snapshots(n, path); len(have) != 1 || !strings.HasPrefix(have[0], again.GetSnapshot().GetSnapshotName()+" ") {
			t.Errorf("there is %v, and %v was answered", have, again)
		}
	})
	t.Run("a leader that dies at the end has taken one", func(t *testing.T) {
		c := c.inPart(t)
		before := len(c.snapshots(n, path))
		_, leader := c.follower()
		points := leader.Failpoints()
		c.must(points.Arm(c.within(10*time.Second), "leaderBeforeStorageEnd", hold))
		ctx := withRequestID(c.within(time.Minute), "one-more")
		asked := metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none")
		_, err := c.api(c.others(leader)[0]).storage.CreateSnapshot(asked, &debvisorv1.SnapshotRequest{Dataset: ref})
		c.must(err)
		c.must(points.AwaitHit(c.within(45*time.Second), "leaderBeforeStorageEnd"))
		c.must(leader.Process.Kill())
		c.must(leader.Start())
		_, err = c.api(c.others(leader)[0]).storage.CreateSnapshot(ctx, &debvisorv1.SnapshotRequest{Dataset: ref})
		c.must(err)
		if have := c.snapshots(n, path); len(have) != before+1 {
			t.Errorf("there were %d snapshots, and now are %v", before, have)
		}
	})
	t.Run("pruned as the dry run said, and others' stay", func(t *testing.T) { c.inPart(t).prunes(n, ref) })
	t.Run("names that lead elsewhere", func(t *testing.T) {
		c := c.inPart(t)
		for _, name := range []string{"../snapshots", "snapshots/..", "snapshots@x", "snapshots#x", "snapshots%recv", "a//b", "-r", "snapshots\x00", strings.Repeat("a", 300)} {
			bad := &debvisorv1.DatasetRef{Backend: ref.GetBackend(), Pool: ref.GetPool(), Name: name, Node: ref.GetNode()}
			if _, err := c.api(c.running()).storage.CreateSnapshot(c.within(10*time.Second), &debvisorv1.SnapshotRequest{Dataset: bad}); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}

// for_ is the cluster in the hands of a part of its test.
func (c *cluster) inPart(t *testing.T) *cluster {
	part := *c
	part.t, part.apis, part.etcds = t, map[*lab.Replica]*api{}, map[*lab.Replica]*clientv3.Client{}
	return &part
}

// prunes takes snapshots, among them ones that must stay, and has the rest pruned.
func (c *cluster) prunes(n *lab.Node, ref *debvisorv1.DatasetRef) {
	c.t.Helper()
	path, ask := ref.GetPool()+"/"+ref.GetName(), c.api(c.running()).storage
	var taken []string
	for i := range 5 {
		made, err := ask.CreateSnapshot(c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: ref, Label: fmt.Sprint("number ", i)})
		c.must(err)
		taken = append(taken, made.GetSnapshot().GetSnapshotName())
	}
	c.zfs(n, "snapshot", path+"@somebody-elses")
	c.zfs(n, "hold", "kept", path+"@"+taken[0])
	c.zfs(n, "clone", path+"@"+taken[1], lab.PoolName+"/cloned")
	req := &debvisorv1.PruneRequest{Dataset: ref, Policy: &debvisorv1.RetentionPolicy{KeepLast: 2}}
	plan, err := ask.PlanPrune(c.within(time.Minute), req)
	c.must(err)
	var keep []string
	for _, v := range plan.GetVerdicts() {
		if v.GetKeep() {
			keep = append(keep, v.GetSnapshot().GetSnapshotName())
			if len(v.GetRules()) == 0 {
				c.t.Errorf("%s stays, and no rule says why", v.GetSnapshot().GetSnapshotName())
			}
		}
	}
	for _, name := range []string{taken[0], taken[1], taken[3], taken[4], "somebody-elses"} {
		if !slices.Contains(keep, name) {
			c.t.Errorf("%s would go: %v", name, plan)
		}
	}
	result, err := ask.PruneSnapshots(c.within(time.Minute), req)
	c.must(err)
	var have []string
	for _, s := range c.snapshots(n, path) {
		have = append(have, strings.Fields(s)[0])
	}
	slices.Sort(have)
	slices.Sort(keep)
	if !slices.Equal(have, keep) || result.GetRemovedCount() != plan.GetRemove() || result.GetRemovedCount() == 0 {
		c.t.Errorf("the dry run kept %v; there are %v, and %v was answered", keep, have, result)
	}
	list, err := ask.ListSnapshots(c.within(time.Minute), &debvisorv1.SnapshotFilter{Dataset: ref})
	c.must(err)
	if len(list.GetSnapshots()) != len(have)-1 {
		c.t.Errorf("of ours are listed: %v", list)
	}
	c.zfs(n, "destroy", lab.PoolName+"/cloned")
	c.zfs(n, "release", "kept", path+"@"+taken[0])
	if _, err := ask.DeleteSnapshots(c.within(time.Minute), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{{Dataset: ref, SnapshotName: "somebody-elses"}}}); err == nil {
		c.t.Error("a snapshot of somebody else's was deleted")
	}
}

// replica is a dataset that a job copies from one machine to the other.
type replica struct {
	c        *cluster
	from, to *lab.Node
	path     string // pool/name, on both
	ref      *debvisorv1.DatasetRef
	job      string
}

// replicated makes a dataset on the first machine, and a job that copies it to the second.
func (c *cluster) replicated(name string, args ...string) *replica {
	c.t.Helper()
	r := &replica{c: c, from: c.Machines[0], to: c.Machines[1], path: lab.PoolName + "/" + name}
	r.ref = c.dataset(r.from, name, args...)
	job, err := c.api(c.running()).storage.PlanZfsReplication(c.within(time.Minute), &debvisorv1.ZfsReplicationPlan{
		Dataset: r.ref, Target: nodeNamed(r.to),
	})
	c.must(err)
	r.job = job.GetJobId()
	return r
}

// in is the replica in the hands of a part of its test.
func (r *replica) in(t *testing.T) *replica {
	part := *r
	part.c = r.c.inPart(t)
	return &part
}

// begin begins a run and gives its operation's id.
func (r *replica) begin(at *lab.Replica) string {
	r.c.t.Helper()
	ctx := metadata.AppendToOutgoingContext(withRequestID(r.c.within(30*time.Second), requestID()), "debvisor-wait", "none")
	var id string
	r.c.eventually(30*time.Second, "the run is taken", func() error {
		answer, err := r.c.api(at).storage.RunZfsReplication(ctx, &debvisorv1.JobRef{JobId: r.job})
		id = answer.GetOperationId()
		return err
	})
	return id
}

// run runs the job to its end, which must be good.
func (r *replica) run() {
	r.c.t.Helper()
	ask, _ := r.c.follower()
	r.c.succeeded(2*time.Minute, ask, r.begin(ask.replica))
	r.alike()
}

// alike checks that both ends have the same newest snapshot with the same contents, and nothing besides what a job keeps at rest.
func (r *replica) alike() {
	r.c.t.Helper()
	source, target := r.c.snapshots(r.from, r.path), r.c.snapshots(r.to, r.path)
	if len(source) == 0 || len(target) == 0 || source[len(source)-1] != target[len(target)-1] {
		r.c.t.Fatalf("the source has %v, the target %v", source, target)
	}
	newest := r.path + "@" + strings.Fields(source[len(source)-1])[0]
	if r.c.zfs(r.from, "get", "-H", "-o", "value", "type", r.path) == "filesystem" {
		if a, b := r.c.sum(r.from, newest), r.c.sum(r.to, newest); a != b {
			r.c.t.Errorf("the contents of %s differ: %s, %s", newest, a, b)
		}
	}
	r.c.eventually(30*time.Second, "nothing is left over", func() error { return r.atRest(newest) })
}

// atRest says what either end has that a job does not keep at rest, or lacks.
func (r *replica) atRest(newest string) error {
	tag := "debvisor:" + r.job
	for _, side := range []struct {
		n         *lab.Node
		bookmarks int
	}{{r.from, 1}, {r.to, 0}} {
		var held []string
		for _, s := range r.c.snapshots(side.n, r.path) {
			name := r.path + "@" + strings.Fields(s)[0]
			for _, line := range lines(r.c.zfs(side.n, "holds", "-H", name)) {
				held = append(held, strings.Join(strings.Fields(line)[:2], " "))
			}
		}
		if want := []string{newest + " " + tag}; !slices.Equal(held, want) {
			return fmt.Errorf("%s holds %v, want %v", side.n.Name, held, want)
		}
		if marks := lines(r.c.zfs(side.n, "list", "-H", "-t", "bookmark", "-d", "1", "-o", "name", r.path)); len(marks) != side.bookmarks {
			return fmt.Errorf("%s has bookmarks %v", side.n.Name, marks)
		}
	}
	properties := strings.Fields(r.c.zfs(r.to, "get", "-H", "-o", "value", "receive_resume_token,readonly", r.path))
	if !slices.Equal(properties, []string{"-", "on"}) {
		return fmt.Errorf("the copy's rest of a receive, and whether it is read-only: %v", properties)
	}
	for _, n := range []*lab.Node{r.from, r.to} {
		for _, line := range lines(r.c.zfs(n, "list", "-H", "-o", "name")) {
			if strings.Contains(line, "%") || strings.Contains(line, "diverged") {
				return fmt.Errorf("%s has %s", n.Name, line)
			}
		}
	}
	return nil
}

// TestReplication: what a job does is seen by zfs on both machines.
func TestReplication(t *testing.T) {
	c := pooled.use(t)
	r := c.replicated("replicated")
	c.write(r.from, r.path, 8)
	t.Run("in full, and then what was added", func(t *testing.T) {
		r := r.in(t)
		r.run()
		c.write(r.from, r.path, 2)
		r.run()
		st, err := r.c.api(r.c.running()).storage.GetReplicationStatus(r.c.within(10*time.Second), &debvisorv1.JobRef{JobId: r.job})
		r.c.must(err)
		if st.GetState() != debvisorv1.ReplicationState_REPL_STATE_SUCCESS || st.GetBytesTransferred() == 0 || st.GetLastSnapshotName() == "" {
			t.Errorf("its status: %v", st)
		}
	})
	t.Run("what a job needs cannot be pruned or destroyed", func(t *testing.T) {
		r := r.in(t)
		_, err := r.c.api(r.c.running()).storage.CreateSnapshot(r.c.within(time.Minute), &debvisorv1.SnapshotRequest{Dataset: r.ref})
		r.c.must(err)
		_, err = r.c.api(r.c.running()).storage.PruneSnapshots(r.c.within(time.Minute), &debvisorv1.PruneRequest{Dataset: r.ref, Policy: &debvisorv1.RetentionPolicy{KeepLast: 1}})
		r.c.must(err)
		r.run()
		newest := r.c.snapshots(r.from, r.path)
		name := r.path + "@" + strings.Fields(newest[len(newest)-1])[0]
		if _, err := r.from.Run(r.c.within(time.Minute), "zfs", "destroy", name); err == nil {
			t.Errorf("%s could be destroyed past us", name)
		}
	})
	t.Run("a copy that was changed is set aside", func(t *testing.T) {
		r := r.in(t)
		r.c.zfs(r.to, "set", "readonly=off", r.path)
		r.c.zfs(r.to, "mount", r.path)
		r.c.write(r.to, r.path, 1)
		r.c.zfs(r.to, "snapshot", r.path+"@changed")
		r.c.zfs(r.to, "unmount", r.path)
		r.c.write(r.from, r.path, 1)
		ask, _ := r.c.follower()
		op := r.c.succeeded(2*time.Minute, ask, r.begin(ask.replica))
		aside := op.GetReplication().GetSetAside()
		if !strings.Contains(aside, "diverged") || len(r.c.snapshots(r.to, aside)) < 2 {
			t.Fatalf("it was set aside as %q: %v", aside, op)
		}
		r.discard(aside)
	})
	t.Run("hvctl", func(t *testing.T) { r.in(t).byHvctl() })
	t.Run("a volume", func(t *testing.T) {
		c := c.inPart(t)
		v := c.replicated("volume", "-s", "-V", "64M")
		_, err := v.from.Run(c.within(time.Minute), "dd", "status=none", "if=/dev/urandom", "bs=1M", "count=16", "oflag=direct", "of=/dev/zvol/"+v.path)
		c.must(err)
		v.run()
		if a, b := c.zfs(v.from, "get", "-Hp", "-o", "value", "volsize,referenced", v.path), c.zfs(v.to, "get", "-Hp", "-o", "value", "volsize,referenced", v.path); a != b {
			t.Errorf("the source has %s, the target %s", a, b)
		}
	})
	t.Run("a job that is deleted leaves nothing", func(t *testing.T) {
		r := r.in(t)
		_, err := r.c.api(r.c.running()).storage.DeleteReplication(r.c.within(time.Minute), &debvisorv1.JobRef{JobId: r.job})
		r.c.must(err)
		for _, n := range []*lab.Node{r.from, r.to} {
			for _, s := range r.c.snapshots(n, r.path) {
				if held := r.c.zfs(n, "holds", "-H", r.path+"@"+strings.Fields(s)[0]); held != "" {
					t.Errorf("on %s: %s", n.Name, held)
				}
			}
			if marks := r.c.zfs(n, "list", "-H", "-t", "bookmark", "-d", "1", "-o", "name", r.path); marks != "" {
				t.Errorf("on %s: %s", n.Name, marks)
			}
		}
	})
}

// discard destroys what was set aside, as is the operator's to do, which leaves what a job keeps.
func (r *replica) discard(aside string) {
	r.c.t.Helper()
	for _, s := range r.c.snapshots(r.to, aside) {
		for _, line := range lines(r.c.zfs(r.to, "holds", "-H", aside+"@"+strings.Fields(s)[0])) {
			r.c.zfs(r.to, "release", strings.Fields(line)[1], aside+"@"+strings.Fields(s)[0])
		}
	}
	r.c.zfs(r.to, "destroy", "-r", aside)
	r.alike()
}

// byHvctl does by hand what an operator would.
func (r *replica) byHvctl() {
	c := r.c
	at := c.running()
	c.write(r.from, r.path, 1)
	if out := c.hvctl(at, "replication", "run", r.job); !strings.Contains(out, r.path) {
		c.t.Errorf("replication run says:\n%s", out)
	}
	r.alike()
	for _, args := range [][]string{
		{"storage", "list"},
		{"snapshot", "list", r.from.Name + ":" + r.path},
		{"replication", "list"},
		{"replication", "status", r.job},
		{"snapshot", "prune", r.from.Name + ":" + r.path, "--keep-last", "1", "--dry-run"},
	} {
		if out := c.hvctl(at, args...); !strings.Contains(out, r.path) {
			c.t.Errorf("hvctl %s says:\n%s", strings.Join(args, " "), out)
		}
	}
}

// TestTenantsOnZFS: a tenant's caller reaches its own datasets and nothing else.
func TestTenantsOnZFS(t *testing.T) {
	c := pooled.use(t)
	n := c.Machines[0]
	at := c.running()
	c.dataset(n, "acme")
	c.dataset(n, "globex")
	c.hvctl(at, "tenant", "set", "acme", "--zfs", lab.PoolName+"/acme")
	c.hvctl(at, "principal", "set", "acme-ops", "--role", "operator", "--tenant", "acme")
	v := c.visitor(at, "acme-ops", "")
	storage := v.storage
	ref := func(name string) *debvisorv1.DatasetRef {
		return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: lab.PoolName, Name: name}
	}
	if _, err := storage.CreateSnapshot(v.ctx(), &debvisorv1.SnapshotRequest{Dataset: ref("acme")}); err != nil {
		t.Errorf("its own: %v", err)
	}
	for _, name := range []string{"globex", "nothing-there"} {
		_, err := storage.CreateSnapshot(v.ctx(), &debvisorv1.SnapshotRequest{Dataset: ref(name)})
		v.refusal(name, err, codes.NotFound)
	}
	for _, name := range []string{"acme/../globex", "acme@x/../../globex", "acme%2f..", "acme#b"} {
		_, err := storage.CreateSnapshot(v.ctx(), &debvisorv1.SnapshotRequest{Dataset: ref(name)})
		v.refusal(name, err, codes.InvalidArgument)
	}
	list, err := storage.ListStorage(v.ctx(), &debvisorv1.StorageFilter{})
	c.must(err)
	for _, d := range list.GetDatasets() {
		if d.GetRef().GetName() != "acme" {
			t.Errorf("it is shown %v", d)
		}
	}
	if len(list.GetDatasets()) != 1 {
		t.Errorf("it is shown %v", list)
	}
	if have := c.snapshots(n, lab.PoolName+"/globex"); len(have) != 0 {
		t.Errorf("of another's dataset there is %v", have)
	}
}
