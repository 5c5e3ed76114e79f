package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// mover is a guest that a test moves.
type mover struct {
	*lab.Guest
	c        *cluster
	from, to *lab.Node // where it runs when the test begins, and the other one
	before   lab.History
	heard    int // bytes of its console that were said before
}

// Speeds of the guest's memory, MiB/s: with slow a move does not end before a test wants it to, with steady it takes some
// seconds, with full none that count.
const (
	slow   = 2
	steady = 12
	full   = 1 << 15
)

// guest gives the lab's guest of that name, which the first test that asks for it makes.
func (c *cluster) guest(name string) *mover {
	c.t.Helper()
	// Room for all that it counts while tests share it: one that begins its ring anew has no history any more.
	return c.guestLike(lab.GuestSpec{Name: name, Disks: []lab.DiskSpec{{MiB: 64}}})
}

// guestLike is guest for one that is made to a specification.
func (c *cluster) guestLike(spec lab.GuestSpec) *mover {
	c.t.Helper()
	name := spec.Name
	g, ok := c.shared.guests[name]
	if !ok {
		var err error
		g, err = c.AllNodes()[0].StartGuest(c.within(90*time.Second), spec)
		c.must(err)
		c.shared.guests[name] = g
	}
	m := &mover{Guest: g, c: c}
	for _, n := range c.AllNodes() {
		_ = n.SetMigrateSpeed(g.UUID, full) // it need not be there
	}
	c.eventually(time.Minute, "nothing is done to "+name, func() error { return c.unused("vm/" + g.UUID) })
	for i, n := range c.AllNodes() {
		d, err := n.Domain(g.UUID)
		c.must(err)
		if d.State == lab.DomainRunning || d.State == lab.DomainShutOff && m.from == nil {
			m.from, m.to = n, c.AllNodes()[1-i]
		}
	}
	if m.from == nil {
		c.t.Fatalf("guest %s is nowhere", name)
	}
	var err error
	if d, asked := m.from.Domain(g.UUID); asked == nil && d.State == lab.DomainShutOff {
		// A test before has rebooted the node.
		heard := len(g.Console())
		_, err = m.from.Run(c.within(time.Minute), "virsh", "-c", "qemu:///system", "start", g.UUID)
		c.must(err)
		c.eventually(time.Minute, name+" ticks again", func() error {
			if len(g.Console()) <= heard {
				return errors.New("its console is silent")
			}
			return nil
		})
	}
	m.heard = len(g.ConsoleText())
	m.before, err = g.History()
	c.must(err)
	c.must(m.known(c.within(30*time.Second), m.from))
	m.becomesMovable()
	return m
}

// unused says whether an operation holds a resource.
func (c *cluster) unused(resource string) error {
	if held := c.revisions(c.running(), "inuse/"+resource); len(held) > 0 {
		return fmt.Errorf("in use: %v", held)
	}
	return nil
}

// becomesMovable waits until every replica that runs would let the guest move. Each look makes a plan at each, of which a caller has
// 500 at most, for ten minutes.
func (m *mover) becomesMovable() {
	m.c.t.Helper()
	m.c.must(lab.EventuallyEvery(m.c.within(30*time.Second), 500*time.Millisecond, "the guest can move", m.movable))
}

// movable says what is wrong unless every replica that runs would let the guest move.
func (m *mover) movable() error {
	for _, r := range m.c.Replicas {
		if !r.Process.Alive() {
			continue
		}
		plan, err := m.c.api(r).migrations.PrepareMigration(m.c.within(10*time.Second), &debvisorv1.VMMigratePlan{Vm: vmRef(m.UUID), Target: node(m.to.Name)})
		if err != nil || !plan.GetAllowed() {
			return fmt.Errorf("%s says %q: %w", r.Name, plan.GetMessage(), err)
		}
	}
	return nil
}

// known waits until every replica shows the guest running on the node and in nobody's hands.
func (m *mover) known(ctx context.Context, at *lab.Node) error {
	for _, r := range m.c.Replicas {
		if r.Process.Alive() {
			a := m.c.api(r)
			err := lab.Eventually(ctx, fmt.Sprintf("%s knows %s on %s", r.Name, m.Name, at.Name), func() error {
				vm, err := a.vms.GetVM(ctx, &debvisorv1.VMRef{VmId: m.UUID})
				if err != nil {
					return err
				}
				if vm.GetNode().GetNodeId().GetId() != at.Name || vm.GetState() != debvisorv1.VMState_VM_STATE_RUNNING || vm.GetOperationId() != "" {
					return fmt.Errorf("it is %v", vm)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// spec asks for the guest's move.
func (m *mover) spec() *debvisorv1.VMMigrateSpec {
	return &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: m.UUID}, Source: node(m.from.Name), Target: node(m.to.Name)}
}

func node(id string) *debvisorv1.NodeRef {
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: id}}
}

// runsOnly says what is wrong unless one node alone runs the guest: persistently there and unknown to the other by libvirt, and
// with one process there and none on the other.
func (m *mover) runsOnly(at *lab.Node) error {
	var failed []error
	for _, n := range m.c.AllNodes() {
		d, err := n.Domain(m.UUID)
		qemus, err2 := n.QEMUs(m.UUID)
		want, processes := lab.Domain{State: lab.DomainAbsent}, 0
		if n == at {
			want, processes = lab.Domain{State: lab.DomainRunning, Persistent: true}, 1
		}
		failed = append(failed, err, err2)
		if d != want || len(qemus) != processes {
			failed = append(failed, fmt.Errorf("%s: the guest is %+v with processes %v, want %+v with %d", n.Name, d, qemus, want, processes))
		}
	}
	return errors.Join(failed...)
}

// arrived checks that the guest has moved, lives and has lost nothing, and that nothing of the move is left. It waits for what
// is cleared away after an operation's end, and for the guest to go on.
func (m *mover) arrived() {
	m.c.t.Helper()
	m.settled(m.to)
}

// stayed is arrived for a move that did not come to pass.
func (m *mover) stayed() {
	m.c.t.Helper()
	m.settled(m.from)
}

func (m *mover) settled(at *lab.Node) {
	m.c.t.Helper()
	m.c.must(m.runsOnly(at))
	m.goesOn()
	h, err := m.History()
	m.c.must(err)
	if err := h.Check(m.before); err != nil {
		m.c.t.Fatalf("the guest's disk: %v", err)
	}
	m.c.eventually(15*time.Second, "nothing is left of the move", m.c.clean)
	m.c.must(m.known(m.c.within(30*time.Second), at))
	m.c.must(m.runsOnly(at))
}

// starts is how often libvirt started a QEMU for the guest on a node.
func (m *mover) starts(n *lab.Node) int {
	m.c.t.Helper()
	raw, err := os.ReadFile(n.QEMULog(m.Name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.c.t.Fatal(err)
	}
	return strings.Count(string(raw), ": starting up libvirt version")
}

// goesOn waits until the guest has counted on, and checks that nothing of its memory was lost.
func (m *mover) goesOn() {
	m.c.t.Helper()
	begin := len(m.Console())
	m.c.eventually(time.Minute, "the guest goes on", func() error {
		if n := len(m.Console()); n < begin+20 {
			return fmt.Errorf("%d new values; trouble on its console: %q", n-begin, m.Trouble(m.heard))
		}
		return nil
	})
	if trouble := m.Trouble(m.heard); trouble != "" {
		m.c.t.Fatalf("the guest says %q", trouble)
	}
}

// clean says what is left of migrations: tunnels' processes, their directories, domains that are not persistent, resources in
// use, tasks that have not ended.
func (c *cluster) clean() error {
	var failed []error
	for _, n := range c.AllNodes() {
		tunnels, err := tunnels(n)
		failed = append(failed, err)
		for _, t := range tunnels {
			failed = append(failed, fmt.Errorf("%s: process %v", n.Name, t.Args))
		}
		dirs, err := tunnelDirs(n)
		failed = append(failed, err)
		for _, d := range dirs {
			failed = append(failed, fmt.Errorf("%s: %s", n.Name, d))
		}
		domains, err := n.Domains()
		failed = append(failed, err)
		for id, d := range domains {
			if !d.Persistent || d.State == lab.DomainPaused {
				failed = append(failed, fmt.Errorf("%s: domain %s is %+v", n.Name, id, d))
			}
		}
	}
	for key := range c.revisions(c.running(), "inuse/") {
		failed = append(failed, fmt.Errorf("etcd: %s", key))
	}
	return errors.Join(failed...)
}

// tunnelDirs are the directories of migrations' tunnels on a node.
func tunnelDirs(n *lab.Node) ([]string, error) {
	if n.Machine == nil {
		return filepath.Glob(n.Root("/run/debvisor/tunnel/*"))
	}
	out, err := n.Run(context.Background(), "find", "/run/debvisor", "-path", "/run/debvisor/tunnel/*", "-prune", "-print")
	return strings.Fields(out), err
}

// running is a replica that runs.
func (c *cluster) running() *lab.Replica {
	for _, r := range c.Replicas {
		if r.Process.Alive() {
			return r
		}
	}
	c.t.Fatal("no replica runs")
	return nil
}

// tunnels are the processes that carry migrations on a node.
func tunnels(n *lab.Node) ([]lab.Task, error) {
	all, err := n.Tasks()
	var found []lab.Task
	for _, t := range all {
		if filepath.Base(t.Args[0]) == "debvisor-agent" && len(t.Args) > 1 && t.Args[1] == "tunnel" {
			found = append(found, t)
		}
	}
	return found, err
}
