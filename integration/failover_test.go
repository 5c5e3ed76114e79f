package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// lost is a guest whose node is taken away.
type lost struct {
	*lab.Guest
	c        *cluster
	from, to *lab.Node
	ask      *api
}

// begins starts a guest that a test of failover has to itself, and waits until the cluster knows it and what it would be made of anew.
func (c *cluster) begins(spec lab.GuestSpec) *lost {
	c.t.Helper()
	l := &lost{c: c, from: c.AllNodes()[0], to: c.AllNodes()[1]}
	l.ask, _ = c.follower()
	var err error
	l.Guest, err = l.from.StartGuest(c.within(2*time.Minute), spec)
	c.must(err)
	c.t.Cleanup(l.remove)
	c.eventually(time.Minute, "its definition is kept", func() error {
		if len(c.revisions(c.running(), "definitions/"+l.UUID)) != 1 {
			return errors.New("there is none")
		}
		return nil
	})
	return l
}

// remove takes the guest away from wherever it is, for the tests that follow.
func (l *lost) remove() {
	for _, n := range l.c.AllNodes() {
		if n.On() {
			_ = n.Destroy(l.UUID) // it need not be there
			_ = n.Undefine(l.UUID)
		}
	}
}

func (l *lost) request(edit func(*debvisorv1.FailoverRequest)) *debvisorv1.FailoverRequest {
	req := &debvisorv1.FailoverRequest{Vm: vmRef(l.UUID)}
	if edit != nil {
		edit(req)
	}
	return req
}

// refuses checks that a failover is refused for those reasons and no others, by the dry run as well.
func (l *lost) refuses(why string, edit func(*debvisorv1.FailoverRequest), want ...string) {
	l.c.t.Helper()
	ofVM := func(codes []string) []string { // what speaks against single nodes comes with their names
		return slices.DeleteFunc(codes, func(code string) bool { return strings.Contains(code, ":") })
	}
	var told []string
	plan, err := l.ask.migrations.PlanFailover(l.c.within(20*time.Second), l.request(edit))
	l.c.must(err)
	for _, r := range plan.GetReasons() {
		told = append(told, r.GetCode())
	}
	if plan.GetAllowed() || !sameSet(told, want) {
		l.c.t.Errorf("%s: the dry run says %v: %s", why, told, plan.GetMessage())
	}
	_, err = l.ask.migrations.ExecuteFailover(withRequestID(l.c.within(20*time.Second), requestID()), l.request(edit))
	details := refused(l.c.t, err, codes.FailedPrecondition)
	if told := ofVM(strings.Split(details.GetContext()["reasons"], ",")); !sameSet(told, want) {
		l.c.t.Errorf("%s: refused for %v, want %v: %s", why, told, want, details.GetMessage())
	}
	if unused := l.c.unused("vm/" + l.UUID); unused != nil {
		l.c.t.Errorf("%s: %v", why, unused)
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// missed waits until the cluster takes a node for lost.
func (c *cluster) missed(ask *api, n *lab.Node) {
	c.t.Helper()
	c.eventually(time.Minute, n.Name+" is missed", func() error {
		nodes, err := ask.nodes.ListNodes(c.within(10*time.Second), &debvisorv1.Empty{})
		if err != nil {
			return err
		}
		if s := find(nodes, n.Name); s.GetState() != debvisorv1.NodeState_NODE_STATE_UNREACHABLE {
			return fmt.Errorf("it is %v", s.GetState())
		}
		return nil
	})
}

// failsOver asks twice at once and gives the result of the one that was taken; the other is told which that is. Meanwhile may do something.
func (l *lost) failsOver(edit func(*debvisorv1.FailoverRequest), meanwhile func()) *debvisorv1.FailoverResult {
	l.c.t.Helper()
	ctx := l.c.within(3 * time.Minute)
	var results [2]*debvisorv1.FailoverResult
	var failed [2]error
	var group sync.WaitGroup
	_, leader := l.c.follower()
	for i, r := range l.c.others(leader) {
		ask := l.c.api(r)
		asked := withRequestID(ctx, requestID())
		group.Go(func() {
			for ctx.Err() == nil {
				results[i], failed[i] = ask.migrations.ExecuteFailover(asked, l.request(edit))
				if status.Code(failed[i]) != codes.Unavailable {
					return
				}
			}
		})
	}
	if meanwhile != nil {
		meanwhile()
	}
	group.Wait()
	taken := slices.IndexFunc(failed[:], func(err error) bool { return err == nil })
	if taken < 0 {
		l.c.t.Fatalf("neither was taken: %v; %v", failed[0], failed[1])
	}
	if other := failed[1-taken]; status.Code(other) != codes.Aborted || !strings.Contains(fmt.Sprint(other), results[taken].GetOperationId()) {
		l.c.t.Errorf("asked twice at once: the second is answered %v, want that %s is at it", other, results[taken].GetOperationId())
	}
	return results[taken]
}

// copies are what the API tells of the guest's copy on the node that has lost it.
func (l *lost) copies(ctx context.Context) ([]*debvisorv1.LostCopy, error) {
	list, err := l.ask.migrations.ListLostCopies(ctx, &debvisorv1.Empty{})
	return slices.DeleteFunc(list.GetCopies(), func(c *debvisorv1.LostCopy) bool {
		return c.GetVm().GetVmId() != l.UUID || c.GetNode().GetNodeId().GetId() != l.from.Name
	}), err
}

// forgotten waits until the node that came back has nothing of the guest any more, and says so.
func (l *lost) forgotten() *debvisorv1.LostCopy {
	l.c.t.Helper()
	var last *debvisorv1.LostCopy
	l.c.eventually(time.Minute, "the copy on "+l.from.Name+" is gone", func() error {
		list, err := l.copies(l.c.within(10 * time.Second))
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].GetState() != "gone" || list[0].GetLastError() != "" {
			return fmt.Errorf("told is %v", list)
		}
		last = list[0]
		return nil
	})
	if d, err := l.from.Domain(l.UUID); err != nil || d.State != lab.DomainAbsent {
		l.c.t.Errorf("on %s it is %+v: %v", l.from.Name, d, err)
	}
	if qemus, err := l.from.QEMUs(l.UUID); err != nil || len(qemus) > 0 {
		l.c.t.Errorf("%s has its QEMUs %v: %v", l.from.Name, qemus, err)
	}
	return last
}

// onlyOn checks that the guest runs there, is nowhere else, and is known to be there.
func (l *lost) onlyOn(n *lab.Node) {
	l.c.t.Helper()
	m := &mover{Guest: l.Guest, c: l.c}
	l.c.must(m.runsOnly(n))
	l.c.must(m.known(l.c.within(30*time.Second), n))
}

// freezes has a guest's QEMU and its node's agent stand still, as on a host that hangs; wake lets the QEMU go on alone.
func (l *lost) freezes() (wake func()) {
	l.c.t.Helper()
	qemus, err := l.from.QEMUs(l.UUID)
	l.c.must(err)
	if len(qemus) != 1 {
		l.c.t.Fatalf("its QEMUs are %v", qemus)
	}
	l.c.must(l.from.Agent.Stop(l.c.within(10 * time.Second)))
	l.c.must(qemus[0].Stop(l.c.within(10 * time.Second)))
	return func() { l.c.must(qemus[0].Cont()) }
}

// blocklist is Ceph's.
func (c *cluster) blocklist() string {
	c.t.Helper()
	out, err := c.Ceph.Admin(c.within(30*time.Second), "ceph", "osd", "blocklist", "ls")
	c.must(err)
	return out
}

// oneWriter checks that an image was written to by one guest after the other: all that the new one has written follows all of the former's.
func (l *lost) oneWriter(former lab.History) lab.History {
	l.c.t.Helper()
	h, err := l.c.HistoryIn(l.c.within(30*time.Second), l.Disks[0].Path)
	l.c.must(err)
	l.c.must(h.CheckRestarted(former))
	var boots []string
	for _, r := range h {
		if n := len(boots); n == 0 || boots[n-1] != r.Boot {
			boots = append(boots, r.Boot)
		}
	}
	if len(boots) != 2 {
		l.c.t.Errorf("%d records were written by %v, one after the other", len(h), boots)
	}
	return h
}

// TestFailoverRBD brings a guest on an image back whose node and QEMU stand still, without anybody's word. When its QEMU is woken it can
// write no more; when its node is, it loses its copy, and only then the blocklist forgets. The leader, the target's agent and the returning
// one die meanwhile.
func TestFailoverRBD(t *testing.T) {
	c := cephed.use(t)
	began := time.Now()
	step := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	const password = "open-ark" // as long as VNC's can be
	c.shared.secrets = append(c.shared.secrets, password)
	l := c.begins(lab.GuestSpec{
		Name: "ark", Disks: []lab.DiskSpec{{Kind: lab.DiskRBD}}, Devices: "<graphics type='vnc' port='-1' autoport='yes' passwd='" + password + "'/>",
	})
	c.eventually(30*time.Second, "only that its node is there speaks against it", func() error {
		plan, err := l.ask.migrations.PlanFailover(c.within(20*time.Second), l.request(nil))
		if err == nil && len(plan.GetReasons()) != 1 {
			err = errors.New(plan.GetMessage())
		}
		return err
	})
	l.refuses("its node is there", nil, "NODE_REACHABLE")
	before := c.blocklist()
	step("refused")

	returns := l.from.Failpoints()
	c.must(returns.Arm(c.within(10*time.Second), "failoverAfterDestroy", hold))
	wake := l.freezes()
	t.Cleanup(func() { _ = l.from.Agent.Cont() })
	c.missed(l.ask, l.from)
	step("missed")
	former, err := c.HistoryIn(c.within(30*time.Second), l.Disks[0].Path)
	c.must(err)
	said := len(l.Console())
	_, leader := c.follower()
	decides, starts := leader.Failpoints(), l.to.Failpoints()
	c.must(errors.Join(
		decides.Arm(c.within(10*time.Second), "leaderBeforeBringBack", hold), starts.Arm(c.within(10*time.Second), "failoverAfterDefine", hold),
	))
	result := l.failsOver(nil, func() {
		c.must(decides.AwaitHit(c.within(time.Minute), "leaderBeforeBringBack"))
		c.must(errors.Join(leader.Process.Kill(), leader.Start()))
		step("the leader has died")
		c.must(starts.AwaitHit(c.within(time.Minute), "failoverAfterDefine"))
		c.must(errors.Join(l.to.Agent.Kill(), l.to.Agent.Start()))
	})
	t.Logf("brought back within %d ms, by %q", result.GetDurationMs(), result.GetProof())
	c.eventually(time.Minute, "the guest goes on", func() error {
		if n := len(l.Console()); n < said+20 {
			return fmt.Errorf("%d new values on its console", n-said)
		}
		return nil
	})
	step("it goes on")
	list, err := l.copies(c.within(10 * time.Second))
	c.must(err)
	if len(list) != 1 || list[0].GetState() != "awaited" || len(list[0].GetBlocklisted()) == 0 {
		t.Fatalf("told of its copy is %v", list)
	}
	fenced := list[0].GetBlocklisted()
	for _, address := range fenced {
		if !strings.HasPrefix(address, l.from.Addr+":") || !strings.Contains(c.blocklist(), address) {
			t.Errorf("fenced is %s; on the blocklist is %s", address, c.blocklist())
		}
	}
	h := l.oneWriter(former)

	heard := len(l.ConsoleText())
	wake()
	c.eventually(30*time.Second, "the former guest cannot write", func() error {
		if !strings.Contains(l.ConsoleText()[heard:], "tick failed") {
			return errors.New("it has not said so")
		}
		return nil
	})
	log, err := os.ReadFile(l.from.QEMULog(l.Name))
	c.must(err)
	if !strings.Contains(string(log), "rbd request failed") || !strings.Contains(string(log), " -108 ") {
		t.Errorf("its QEMU does not speak of -108: %s", log[max(0, len(log)-2000):])
	}
	if now := l.oneWriter(h); len(now) <= len(h) {
		t.Errorf("%d records before it was woken, %d after", len(h), len(now))
	}
	step("its former copy has failed to write")

	c.must(l.from.Agent.Cont())
	c.must(returns.AwaitHit(c.within(time.Minute), "failoverAfterDestroy"))
	for _, address := range fenced {
		if !strings.Contains(c.blocklist(), address) {
			t.Errorf("%s is not on the blocklist any more, and nobody has said that the copy is gone", address)
		}
	}
	c.must(errors.Join(l.from.Agent.Kill(), l.from.Agent.Start()))
	gone := l.forgotten()
	for _, address := range fenced {
		if strings.Contains(c.blocklist(), address) {
			t.Errorf("%s is still on the blocklist, before it had %q; told is %v", address, before, gone)
		}
	}
	step("its copy is gone")
	l.onlyOn(l.to)
	l.oneWriter(h)
	shown, err := l.to.Run(c.within(10*time.Second), "virsh", "-c", "qemu:///system", "dumpxml", "--security-info", l.UUID)
	c.must(err)
	if strings.Contains(shown, password) || !strings.Contains(shown, " passwd='") {
		t.Errorf("its console asked for a password, which nobody was told; now it is defined as %s", shown)
	}
}

// TestFailoverBound: what a definition and disks alone do not bring back is refused before anything is lost.
func TestFailoverBound(t *testing.T) {
	c := cephed.use(t)
	ask, n := c.api(c.running()), c.Nodes[0]
	for _, v := range []struct{ name, uuid, os, metadata, want string }{
		{
			"varied", "44444444-0000-0000-0000-000000000001",
			"<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/varied.fd</nvram>", "", "BOUND_TO_HOST",
		},
		{"verbose", "44444444-0000-0000-0000-000000000002", "", "<metadata><e2e:text xmlns:e2e='urn:e2e'>" + strings.Repeat("x", 300<<10) + "</e2e:text></metadata>", "DEFINITION_UNKNOWN"},
	} {
		c.must(n.Define(fmt.Sprintf(`<domain type='qemu'><name>%s</name><uuid>%s</uuid>%s<memory unit='MiB'>16</memory><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>%s</os>
<features><acpi/></features><devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`, v.name, v.uuid, v.metadata, v.os)))
		t.Cleanup(func() {
			_, _ = n.Run(context.Background(), "virsh", "-c", "qemu:///system", "undefine", "--keep-nvram", v.uuid)
		})
		c.eventually(30*time.Second, v.name+" is refused for what it is", func() error {
			plan, err := ask.migrations.PlanFailover(c.within(10*time.Second), &debvisorv1.FailoverRequest{Vm: vmRef(v.uuid), NodeIsOff: true})
			if err != nil {
				return err
			}
			var told []string
			for _, r := range plan.GetReasons() {
				told = append(told, r.GetCode())
			}
			if want := []string{"NODE_REACHABLE", v.want}; !sameSet(told, want) {
				return fmt.Errorf("it says %v: %s", told, plan.GetMessage())
			}
			return nil
		})
	}
	if kept := c.revisions(c.running(), "definitions/44444444-0000-0000-0000-000000000002"); len(kept) > 0 {
		t.Errorf("a definition that is too large is kept: %v", kept)
	}
}

// TestFailoverZFS brings a guest on a replicated volume back on the word that its node is off, with the target's agent killed in the
// middle; the node returns, loses its copy, and gets the data back by replication.
func TestFailoverZFS(t *testing.T) {
	c := pooled.use(t)
	began := time.Now()
	step := func(what string) { t.Logf("%5.1f s: %s", time.Since(began).Seconds(), what) }
	l := c.begins(lab.GuestSpec{Name: "heir", Disks: []lab.DiskSpec{{Kind: lab.DiskZvol}}})
	step("the guest ticks")
	path := strings.TrimPrefix(l.Disks[0].Path, "/dev/zvol/")
	r := &replica{c: c, from: l.from, to: l.to, path: path}
	r.ref = c.knownDataset(l.from, strings.TrimPrefix(path, lab.PoolName+"/"))
	all := func(r *debvisorv1.FailoverRequest) { r.NodeIsOff, r.AcceptDataLossSeconds = true, 3600 }
	l.refuses("nothing has a copy of it", all, "NODE_REACHABLE", "NOT_PROTECTED")
	job, err := l.ask.storage.PlanZfsReplication(c.within(time.Minute), &debvisorv1.ZfsReplicationPlan{Dataset: r.ref, Target: nodeNamed(l.to)})
	c.must(err)
	r.job = job.GetJobId()
	t.Cleanup(func() { c.dropJobs(path) })
	r.run()
	copied, err := l.HistoryAt(l.from, l.Disks[0])
	c.must(err)
	c.eventually(30*time.Second, "only that its node is there speaks against it", func() error {
		plan, err := l.ask.migrations.PlanFailover(c.within(20*time.Second), l.request(all))
		if err == nil && len(plan.GetReasons()) != 1 {
			err = errors.New(plan.GetMessage())
		}
		return err
	})
	l.refuses("its node is there", all, "NODE_REACHABLE")

	step("replicated")
	c.must(l.from.PowerOff(c.within(30 * time.Second)))
	c.missed(l.ask, l.from)
	step("missed")
	l.refuses("nothing said", nil, "NO_PROOF", "DATA_LOSS_NOT_ACCEPTED")
	l.refuses("no proof", func(r *debvisorv1.FailoverRequest) { r.AcceptDataLossSeconds = 3600 }, "NO_PROOF")
	l.refuses("no loss accepted", func(r *debvisorv1.FailoverRequest) { r.NodeIsOff = true }, "DATA_LOSS_NOT_ACCEPTED")
	l.refuses("a stale replica", func(r *debvisorv1.FailoverRequest) { r.NodeIsOff, r.AcceptDataLossSeconds = true, 1 }, "DATA_TOO_OLD")

	step("refused")
	points := l.to.Failpoints()
	c.must(points.Arm(c.within(10*time.Second), "failoverAfterSucceed", hold))
	said := len(l.Console())
	result := l.failsOver(all, func() {
		c.must(points.AwaitHit(c.within(time.Minute), "failoverAfterSucceed"))
		c.must(errors.Join(l.to.Agent.Kill(), l.to.Agent.Start()))
	})
	t.Logf("brought back within %d ms of %d s old data, by %q", result.GetDurationMs(), result.GetDataAgeSeconds(), result.GetProof())
	if result.GetTarget().GetNodeId().GetId() != l.to.Name || len(result.GetProof()) == 0 {
		t.Errorf("the result is %v", result)
	}
	c.eventually(90*time.Second, "the guest goes on", func() error {
		if n := len(l.Console()); n < said+20 {
			return fmt.Errorf("%d new values on its console", n-said)
		}
		return nil
	})
	step("it goes on")
	now, err := l.HistoryAt(l.to, l.Disks[0])
	c.must(err)
	if err := now.CheckRestarted(now[:min(len(now), int(result.GetDataAgeSeconds()))]); err != nil {
		t.Errorf("the guest's disk: %v", err)
	}
	if len(now) < 20 || len(copied) == 0 {
		t.Errorf("%d records, %d were there before", len(now), len(copied))
	}
	if ro, of := c.zfs(l.to, "get", "-H", "-o", "value", "readonly", path), c.zfs(l.to, "get", "-H", "-o", "value", "org.debvisor:job", path); ro != "off" || of != "-" {
		t.Errorf("the disk has readonly=%s, and is the copy of %s", ro, of)
	}

	c.must(l.from.PowerOn(c.within(time.Minute)))
	c.must(l.from.Agent.Start())
	step("its node is on again")
	gone := l.forgotten()
	l.onlyOn(l.to)
	step("its copy is gone")
	if !gone.GetReverseOffered() {
		t.Errorf("no replication back is offered: %v", gone)
	}
	l.reversed(path)
	step("replicated back")
}

// reversed has the data replicated back, to the very dataset that was lost: what the lost node wrote last is given up, as the plan says.
func (l *lost) reversed(path string) {
	c := l.c
	c.t.Helper()
	made, err := l.ask.migrations.ReverseReplication(withRequestID(c.within(time.Minute), requestID()), &debvisorv1.LostCopyRef{Vm: vmRef(l.UUID), Node: nodeNamed(l.from)})
	c.must(err)
	if len(made.GetJobs()) != 1 {
		c.t.Fatalf("made are %v", made)
	}
	back := &replica{c: c, from: l.to, to: l.from, path: path, job: made.GetJobs()[0].GetJobId()}
	var plan *debvisorv1.ReplicationDecision
	c.eventually(time.Minute, "what would be lost is known", func() error {
		job, err := l.ask.storage.PlanZfsReplication(c.within(30*time.Second), made.GetJobs()[0].GetPlan())
		if plan = job.GetDecision(); err == nil && plan.GetDivergence() != debvisorv1.Divergence_DIVERGENCE_TARGET_WRITTEN {
			err = fmt.Errorf("the decision is %v", plan)
		}
		return err
	})
	_, err = l.ask.storage.RunZfsReplication(withRequestID(c.within(2*time.Minute), requestID()), &debvisorv1.JobRef{JobId: back.job, ConfirmPlanId: plan.GetPlanId()})
	c.must(err)
	back.alike()
	if mark := c.zfs(l.from, "get", "-H", "-o", "value", "org.debvisor:job", path); mark != back.job {
		c.t.Errorf("what was lost is the copy of %s, want %s", mark, back.job)
	}
}

// dropJobs deletes the replication jobs of a dataset, for the tests that follow.
func (c *cluster) dropJobs(path string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := c.Dial(c.running())
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	ask := debvisorv1.NewStorageServiceClient(conn)
	list, err := ask.ListReplications(ctx, &debvisorv1.ReplicationFilter{})
	if err != nil {
		return
	}
	for _, job := range list.GetReplications() {
		if job.GetDataset().GetPool()+"/"+job.GetDataset().GetName() == path {
			_, _ = ask.DeleteReplication(ctx, &debvisorv1.JobRef{JobId: job.GetJobId()})
		}
	}
}

// knownDataset waits until the cluster knows a dataset that is there.
func (c *cluster) knownDataset(n *lab.Node, name string) *debvisorv1.DatasetRef {
	c.t.Helper()
	ref := &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: lab.PoolName, Name: name, Node: nodeNamed(n)}
	ask := c.api(c.running()).storage
	c.eventually(time.Minute, "the cluster knows "+name, func() error {
		list, err := ask.ListStorage(c.within(10*time.Second), &debvisorv1.StorageFilter{Node: ref.GetNode()})
		if err == nil && !slices.ContainsFunc(list.GetDatasets(), func(d *debvisorv1.Dataset) bool { return d.GetRef().GetName() == name }) {
			err = fmt.Errorf("it knows %d datasets of %s", len(list.GetDatasets()), n.Name)
		}
		return err
	})
	return ref
}
