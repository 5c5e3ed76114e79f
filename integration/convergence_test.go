package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// beginWith begins a move with options and gives the operation's id.
func (m *mover) beginWith(a *api, o *debvisorv1.MigrateOptions) string {
	m.c.t.Helper()
	spec := m.spec()
	spec.Options = o
	return m.beginSpec(a, spec)
}

// mayPause sets whether a deadline may pause the guest.
func (m *mover) mayPause(a *api, may bool) {
	m.c.t.Helper()
	_, err := a.vms.SetVMPolicy(m.c.within(10*time.Second), &debvisorv1.VMPolicyRequest{Vm: vmRef(m.UUID), Policy: &debvisorv1.VMPolicy{MayPause: may}})
	m.c.must(err)
}

// TestADeadlineCancels gives a move too little time.
func TestADeadlineCancels(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	op := c.ended(time.Minute, a, g.beginWith(a, &debvisorv1.MigrateOptions{DeadlineSeconds: 2}))
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_FAILED || !strings.Contains(op.GetError().GetMessage(), "not copied within 2s") {
		t.Errorf("it ended %v: %v", op.GetState(), op.GetError())
	}
	g.stayed()
}

// TestADeadlinePauses has the guest of a move that takes too long stand still: it arrives, and runs.
func TestADeadlinePauses(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	g.mayPause(a, true)
	c.must(g.from.SetMigrateSpeed(g.UUID, steady))
	id := g.beginWith(a, &debvisorv1.MigrateOptions{DeadlineSeconds: 1, OnDeadline: debvisorv1.DeadlineAction_DEADLINE_ACTION_PAUSE})
	c.eventually(30*time.Second, "the guest is paused", func() error { return g.pausedOn(g.from) })
	c.must(g.from.SetMigrateSpeed(g.UUID, full))
	op := c.succeeded(time.Minute, a, id)
	g.arrived()
	g.mayPause(a, false)
	t.Logf("downtime %d ms", op.GetMigration().GetDowntimeMs())
}

// pausedOn says what is wrong unless the guest is paused on a node.
func (m *mover) pausedOn(n *lab.Node) error {
	d, err := n.Domain(m.UUID)
	if err == nil && d.State != lab.DomainPaused {
		err = fmt.Errorf("on %s it is %v", n.Name, d.State)
	}
	return err
}

// TestAPausedGuestStaysPaused: one that its user pauses while it is copied does not run on the target.
func TestAPausedGuestStaysPaused(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.begin(a)
	g.copying()
	c.under(a, id)
	g.libvirt(g.from, (*libvirt.Domain).Suspend)
	c.must(g.from.SetMigrateSpeed(g.UUID, steady))
	c.succeeded(time.Minute, a, id)
	c.must(g.pausedOn(g.to))
	g.libvirt(g.to, (*libvirt.Domain).Resume)
	g.arrived()
}

// under waits until a move has copied something.
func (c *cluster) under(a *api, id string) {
	c.t.Helper()
	c.eventually(30*time.Second, "memory is copied", func() error {
		op, err := a.operations.GetOperation(c.within(10*time.Second), &debvisorv1.OperationRef{Id: id})
		if err == nil && op.GetProgress().GetBytesDone() == 0 {
			err = errors.New("nothing yet")
		}
		return err
	})
}

// TestAStall stops what carries a migration: it is given up, and the guest goes on.
func TestAStall(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	c.must(g.from.SetMigrateSpeed(g.UUID, slow))
	id := g.beginWith(a, &debvisorv1.MigrateOptions{StallSeconds: 3})
	c.under(a, id)
	qemus, err := g.to.QEMUs(g.UUID)
	c.must(err)
	if len(qemus) != 1 {
		t.Fatalf("the target has %d processes of the guest", len(qemus))
	}
	for _, q := range qemus {
		c.must(q.Stop(c.within(10 * time.Second)))
	}
	op := c.ended(time.Minute, a, id)
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_FAILED || !strings.Contains(op.GetError().GetMessage(), "nothing was copied for 3s") {
		t.Errorf("it ended %v: %v", op.GetState(), op.GetError())
	}
	g.stayed()
}

// TestBandwidth: a migration keeps to its own limit, and those that leave a node share the node's. What counts is libvirt's word.
func TestBandwidth(t *testing.T) {
	c := plain.use(t)
	a, _ := c.follower()
	first := c.guest("web")
	second := c.guestLike(lab.GuestSpec{Name: "mixed", Disks: everyDisk})
	if second.from != first.from {
		c.succeeded(time.Minute, a, second.begin(a))
		second = c.guestLike(lab.GuestSpec{Name: "mixed", Disks: everyDisk})
	}
	limit := func(l *debvisorv1.NodeLimits) {
		t.Helper()
		_, err := a.nodes.SetNodeLimits(c.within(10*time.Second), &debvisorv1.NodeLimitsRequest{Node: node(first.from.Name), Limits: l})
		c.must(err)
	}
	limit(&debvisorv1.NodeLimits{MigrationBandwidthMib: 6, ParallelMigrations: 2})

	speed := func(m *mover) (bps, limit uint64) {
		m.libvirt(m.from, func(d *libvirt.Domain) error {
			job, err := d.GetJobStats(0)
			if err != nil {
				return err
			}
			bps = job.MemBps
			limit, err = d.MigrateGetMaxSpeed(0)
			return err
		})
		return bps, limit
	}
	one := first.beginWith(a, &debvisorv1.MigrateOptions{BandwidthMib: 4})
	c.under(a, one)
	c.eventually(20*time.Second, "libvirt knows how fast it copies", func() error {
		if bps, _ := speed(first); bps == 0 || bps > 5<<20 {
			return fmt.Errorf("%d bytes a second", bps)
		}
		return nil
	})
	two := second.beginWith(a, &debvisorv1.MigrateOptions{})
	c.eventually(30*time.Second, "the two share the node's 6 MiB/s", func() error {
		if _, limit := speed(first); limit != 3 {
			return fmt.Errorf("the first may copy %d MiB/s", limit)
		}
		return nil
	})
	limit(&debvisorv1.NodeLimits{}) // of later ones
	for _, id := range []string{one, two} {
		_, err := a.operations.CancelOperation(c.within(30*time.Second), &debvisorv1.OperationRef{Id: id})
		c.must(err)
		c.ended(30*time.Second, a, id)
	}
	first.stayed()
	second.stayed()
	c.must(second.filesOnly(second.from))
	first.libvirt(first.from, func(d *libvirt.Domain) error {
		kept, err := d.MigrateGetMaxSpeed(0)
		if err == nil && kept == 3 {
			err = errors.New("the guest has kept the limit")
		}
		return err
	})
}

// TestParallelConnections moves a guest's memory in several streams: QEMU has them all, between the two hosts as well.
func TestParallelConnections(t *testing.T) {
	const streams = 3
	c := plain.use(t)
	g := c.guestLike(lab.GuestSpec{Name: "mixed", Disks: everyDisk})
	a, _ := c.follower()
	before := g.contents(g.from)
	c.must(g.from.SetMigrateSpeed(g.UUID, steady))
	id := g.beginWith(a, &debvisorv1.MigrateOptions{ParallelConnections: streams})
	c.eventually(time.Minute, "memory has several streams", func() error {
		n, err := g.memoryStreams(g.to)
		if err == nil && n != streams+1 { // and the one that tells them what to do
			err = fmt.Errorf("%d connections at the target's QEMU", n)
		}
		return err
	})
	c.must(g.from.SetMigrateSpeed(g.UUID, full))
	c.succeeded(time.Minute, a, id)
	g.arrived()
	g.holds(g.to, before, false)
	c.must(g.filesOnly(g.to))
}

// memoryStreams counts the connections for memory that the guest's QEMU has taken on a node, as the kernel tells.
func (m *mover) memoryStreams(n *lab.Node) (int, error) {
	qemus, err := n.QEMUs(m.UUID)
	if err != nil || len(qemus) == 0 {
		return 0, errors.Join(errors.New("no QEMU"), err)
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/unix", qemus[0].Pid))
	if err != nil {
		return 0, err
	}
	streams := 0
	for line := range strings.Lines(string(table)) {
		const state, path, connected = 5, 7, "03"
		words := strings.Fields(line)
		if len(words) > path && words[state] == connected && strings.HasSuffix(words[path], "/io/mig.sock") {
			streams++
		}
	}
	return streams, nil
}
