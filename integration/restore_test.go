package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestRestore takes a backup, has the cluster go on, restores the backup while the former cluster is still there, and lets the
// two contend for the nodes: before an operator's word all is the former one's, afterwards all is the restored one's, and no VM is
// started meanwhile that a node may run which was not heard. Then the dead replicas are replaced.
func TestRestore(t *testing.T) {
	own := newShared("DEBVISOR_BIN", "../bin", false)
	t.Cleanup(func() {
		if err := own.close(); err != nil {
			t.Error(err)
		}
	})
	c := own.use(t)
	r := &restored{cluster: c, first: c.Replicas[0], former: c.Replicas[1:], dir: t.TempDir()}
	r.web, r.idle = c.guest("web"), c.guest("idle")
	r.backUp()
	r.goesOn()
	epoch := r.restore()
	r.isRefused(epoch)
	r.isConfirmed(epoch)
	r.formerWakes()
	r.replaceTheDead()
}

// restored is a cluster on its way back from a backup.
type restored struct {
	*cluster
	first     *lab.Replica   // which is restored
	former    []*lab.Replica // of which nobody told the former ones to stop
	web, idle *mover
	dir       string
}

func (r *restored) file() string { return filepath.Join(r.dir, "cluster.backup") }
func (r *restored) key() string  { return filepath.Join(r.dir, "recovery.key") }

// backUp takes a backup of a replica that does not lead, and shows that a damaged one is none.
func (r *restored) backUp() {
	r.t.Helper()
	follower, _, err := r.Follower(r.within(30 * time.Second))
	r.must(err)
	r.hvctl(follower, "cluster", "backup", r.file(), "--recovery-key", r.key())
	for _, path := range []string{r.file(), r.key()} {
		info, err := os.Stat(path)
		r.must(err)
		if info.Mode().Perm() != 0o600 {
			r.t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
	if out := r.hvctl(follower, "cluster", "backup", "verify", r.file()); !strings.Contains(out, lab.ClusterName) {
		r.t.Errorf("verify says %q", out)
	}
	if _, err := r.Hvctl(r.within(30*time.Second), follower, "cluster", "backup", r.file(), "--recovery-key", r.key()); err == nil {
		r.t.Error("a backup was overwritten")
	}
	state := r.status(follower)
	if state.GetLastBackupAt() == nil || state.GetMayFail() != 1 || len(state.GetReplicas()) != 3 || state.GetSchema() != 1 {
		r.t.Errorf("the cluster's status is %v", state)
	}
	whole, err := os.ReadFile(r.file())
	r.must(err)
	short, other := filepath.Join(r.dir, "short"), filepath.Join(r.dir, "other.key")
	r.must(os.WriteFile(short, whole[:len(whole)/2], 0o600))
	r.hvctl(follower, "cluster", "backup", filepath.Join(r.dir, "second"), "--recovery-key", other)
	for path, want := range map[[2]string]string{
		{short, r.key()}: "cut short", {r.file(), other}: "another recovery key", {r.file(), short}: "no recovery key",
	} {
		out, err := r.rpcd(path[0], path[1], filepath.Join(r.dir, "data"))
		if err == nil || !strings.Contains(err.Error(), want) {
			r.t.Errorf("restoring %v: %s, %v; want %q", path, out, err, want)
		}
	}
	if _, err := r.rpcd(r.file(), r.key(), r.first.Data); err == nil || !strings.Contains(err.Error(), "exists") {
		r.t.Errorf("restoring into a replica's directory: %v", err)
	}
}

// rpcd runs debvisor-rpcd restore where the first replica is.
func (r *restored) rpcd(file, key, data string) (string, error) {
	return r.first.Run(r.within(time.Minute), r.Program("debvisor-rpcd"), "restore", "--from", file, "--recovery-key", key, "--data-dir", data,
		"--name", r.first.Name, "--host", r.first.Addr, "--etcd-peer-listen", fmt.Sprintf("%s:%d", r.first.Addr, lab.PeersPort))
}

func (r *restored) status(at *lab.Replica) *debvisorv1.ClusterStatus {
	r.t.Helper()
	state, err := r.api(at).cluster.GetClusterStatus(r.within(10*time.Second), &debvisorv1.Empty{})
	r.must(err)
	return state
}

// goesOn makes the backup old: one VM moves, another ends.
func (r *restored) goesOn() {
	r.t.Helper()
	leader, err := r.Leader(r.within(30 * time.Second))
	r.must(err)
	a := r.api(leader)
	r.succeeded(time.Minute, a, r.web.begin(a))
	_, err = r.idle.from.Run(r.within(30*time.Second), "virsh", "-c", "qemu:///system", "destroy", r.idle.UUID)
	r.must(err)
}

// restore restores the first replica while the others stand still.
func (r *restored) restore() (epoch uint64) {
	r.t.Helper()
	before := r.status(r.first).GetCluster()
	r.must(r.first.Kill())
	for _, other := range r.former {
		r.must(other.Stop(r.within(10 * time.Second)))
	}
	was := r.first.Data + "-former"
	r.must(os.Rename(r.first.Data, was))
	out, err := r.rpcd(r.file(), r.key(), r.first.Data)
	r.must(err)
	if !strings.Contains(out, "cluster restore confirm --epoch") {
		r.t.Errorf("restore says %q", out)
	}
	for _, name := range []string{"operator.pem", "operator-key.pem"} { // the operator has them elsewhere
		raw, err := os.ReadFile(filepath.Join(was, "pki", name))
		r.must(err)
		r.must(os.WriteFile(r.first.PKI(name), raw, 0o600))
	}
	r.must(r.first.Start())
	r.must(r.first.Serving(r.within(time.Minute)))
	r.eventually(30*time.Second, "the restored replica leads", func() error {
		if known := r.status(r.first).GetCluster(); known.GetLeader() != r.first.Name || len(known.GetReplicas()) != 1 {
			return fmt.Errorf("the cluster is %v", known)
		}
		return nil
	})
	now := r.status(r.first)
	if now.GetCluster().GetEpoch() <= before.GetEpoch() || now.GetRestore().GetEpoch() != now.GetCluster().GetEpoch() {
		r.t.Errorf("epoch %d follows %d, the restore's is %d", now.GetCluster().GetEpoch(), before.GetEpoch(), now.GetRestore().GetEpoch())
	}
	return now.GetRestore().GetEpoch()
}

// isRefused shows that nobody listens to the restored cluster before an operator's word, and the nodes go on with the former one
// once it wakes.
func (r *restored) isRefused(epoch uint64) {
	r.t.Helper()
	r.log(r.Nodes[0].Agent.LogFile()).says("no session", "takes no sessions until an operator says")
	for _, other := range r.former {
		r.must(other.Cont())
	}
	var leader *lab.Replica
	r.eventually(time.Minute, "the former cluster has the nodes", func() error {
		for _, other := range r.former {
			nodes, err := r.api(other).nodes.ListNodes(r.within(5*time.Second), &debvisorv1.Empty{})
			if err != nil {
				return err
			}
			for _, n := range r.Nodes {
				if s := find(nodes, n.Name); s.GetState() != debvisorv1.NodeState_NODE_STATE_ONLINE {
					return fmt.Errorf("%s: node %s is %v", other.Name, n.Name, s.GetState())
				}
			}
			leader = other
		}
		return nil
	})
	// It was given work meanwhile, and does it: the nodes are its own.
	a := r.api(leader)
	r.hvctl(leader, "node", "cordon", r.Nodes[0].Name, "--reason", "the former cluster works")
	if _, err := a.nodes.UncordonNode(r.within(10*time.Second), node(r.Nodes[0].Name)); err != nil {
		r.t.Error(err)
	}
	state := r.status(r.first)
	if state.GetNodesOnline() != 0 || len(state.GetRestore().GetWaitingFor()) != len(r.Nodes) || state.GetRestore().GetConfirmedAt() != nil {
		r.t.Errorf("before an operator's word the restored cluster has %v", state)
	}
	for _, s := range state.GetReplicas() {
		if s.GetReady() {
			r.t.Errorf("replica %s is ready", s.GetReplica().GetName())
		}
	}
	for _, other := range r.former {
		r.must(other.Stop(r.within(10 * time.Second)))
	}
	_, err := r.api(r.first).cluster.ConfirmRestore(r.within(10*time.Second), &debvisorv1.RestoreConfirmation{Epoch: epoch + 1, Reason: "a wrong one"})
	if status.Code(err) != codes.InvalidArgument {
		r.t.Errorf("the word about another epoch: %v", err)
	}
}

// isConfirmed gives the word, while one node is not heard.
func (r *restored) isConfirmed(epoch uint64) {
	r.t.Helper()
	a, silent := r.api(r.first), r.web.to
	r.must(silent.Agent.Kill())
	r.hvctl(r.first, "cluster", "restore", "confirm", "--epoch", fmt.Sprint(epoch), "--reason", "the former replicas stand still")
	r.eventually(time.Minute, "the restored cluster waits for one node only", func() error {
		if waits := r.status(r.first).GetRestore().GetWaitingFor(); !slices.Equal(waits, []string{silent.Name}) {
			return fmt.Errorf("it waits for %v", waits)
		}
		return nil
	})
	_, err := a.vms.StartVM(r.within(30*time.Second), vmRef(r.idle.UUID))
	if e := errdefs.FromStatus(err); e == nil || e.Code != "RESTORE_UNFINISHED" || !strings.Contains(e.Message, silent.Name) {
		r.t.Errorf("a VM is started while a node is not heard that may run it: %v", err)
	}
	plan, err := a.migrations.PlanFailover(r.within(30*time.Second), &debvisorv1.FailoverRequest{Vm: vmRef(r.web.UUID)})
	if err != nil || plan.GetAllowed() {
		r.t.Errorf("a VM may be brought back while a node is not heard that may run it: %v, %v", plan, err)
	}
	r.must(silent.Agent.Start())
	r.eventually(time.Minute, "the return is over", func() error {
		if state := r.status(r.first).GetRestore(); state.GetReconciledAt() == nil || len(state.GetWaitingFor()) > 0 {
			return fmt.Errorf("the return is %v", state)
		}
		return nil
	})
	told := strings.Join(r.status(r.first).GetRestore().GetDifferences(), "\n")
	for _, want := range []string{r.web.Name + " (" + r.web.UUID + ")", r.idle.Name + " (" + r.idle.UUID + ") is off"} {
		if !strings.Contains(told, want) {
			r.t.Errorf("the differences do not tell of %q: %s", want, told)
		}
	}
	vm, err := a.vms.GetVM(r.within(10*time.Second), vmRef(r.web.UUID))
	if err != nil || vm.GetNode().GetNodeId().GetId() != r.web.to.Name {
		r.t.Errorf("what runs on %s is placed so: %v, %v", r.web.to.Name, vm, err)
	}
	r.must(r.web.runsOnly(r.web.to))
	if _, err := a.vms.StartVM(r.within(time.Minute), vmRef(r.idle.UUID)); err != nil {
		r.t.Errorf("a VM cannot be started once all is heard: %v", err)
	}
}

// formerWakes lets the former cluster go on: no node listens to it any more.
func (r *restored) formerWakes() {
	r.t.Helper()
	for _, other := range r.former {
		r.must(other.Cont())
	}
	stale := r.api(r.former[0])
	r.eventually(time.Minute, "the former cluster has lost the nodes", func() error {
		nodes, err := stale.nodes.ListNodes(r.within(5*time.Second), &debvisorv1.Empty{})
		if err != nil {
			return err
		}
		for _, n := range r.Nodes {
			if s := find(nodes, n.Name); s.GetState() != debvisorv1.NodeState_NODE_STATE_UNREACHABLE {
				return fmt.Errorf("node %s is %v", n.Name, s.GetState())
			}
		}
		return nil
	})
	conn, err := r.Dial(r.first)
	r.must(err)
	defer func() { _ = conn.Close() }()
	r.must(lab.Eventually(r.within(20*time.Second), "the restored cluster has all nodes", func() error { return r.online(r.within(5*time.Second), conn) }))
	// What it orders now is what it alone does.
	web := r.web
	web.from, web.to = web.to, web.from
	a := r.api(r.first)
	r.succeeded(time.Minute, a, web.begin(a))
	r.must(web.runsOnly(web.to))
	for _, other := range r.former {
		r.must(other.Kill())
	}
}

// replaceTheDead makes three replicas of one again, and then replaces one that dies.
func (r *restored) replaceTheDead() {
	r.t.Helper()
	join := func(other *lab.Replica) {
		r.must(os.RemoveAll(other.Data))
		r.must(other.Join(r.within(time.Minute), r.first))
		r.must(other.Start())
		r.must(other.Serving(r.within(time.Minute)))
	}
	whole := func() {
		r.eventually(time.Minute, "three replicas are ready and vote", func() error {
			state := r.status(r.first)
			if len(state.GetReplicas()) != 3 || state.GetMayFail() != 1 {
				return fmt.Errorf("the cluster is %v", state)
			}
			return nil
		})
	}
	for _, other := range r.former {
		join(other)
	}
	whole()
	dead := r.former[1]
	remove := func(ctx context.Context, args ...string) error {
		_, err := r.Hvctl(ctx, r.first, append([]string{"cluster", "member", "remove"}, args...)...)
		return err
	}
	for what, want := range map[string]string{dead.Name: "REPLICA_IS_HEARD", "r9": "REPLICA_NOT_FOUND"} {
		if err := remove(r.within(30*time.Second), what); err == nil || !strings.Contains(err.Error(), want) {
			r.t.Errorf("removing %s: %v, want %s", what, err, want)
		}
	}
	r.must(dead.Kill())
	r.must(remove(r.within(30*time.Second), dead.Name, "--even-if-running"))
	if err := remove(r.within(30*time.Second), dead.Name); err == nil {
		r.t.Error("a replica was removed twice")
	}
	log := r.mark(dead.LogFile())
	r.must(dead.Start())
	select {
	case <-dead.Process.Done():
	case <-r.within(30 * time.Second).Done():
		r.t.Error("a removed replica serves")
	}
	log.says("removed")
	join(dead)
	whole()
	if _, err := r.Leader(r.within(30 * time.Second)); err != nil {
		r.t.Error(err)
	}
	r.must(r.web.runsOnly(r.web.to))
}
