package integration

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// powered is a guest that a test starts and stops, and takes away in the end.
func (c *cluster) powered(name string) *mover {
	c.t.Helper()
	g, err := c.Nodes[0].StartGuest(c.within(90*time.Second), lab.GuestSpec{Name: name})
	c.must(err)
	c.t.Cleanup(func() { c.forget(g) })
	m := &mover{Guest: g, c: c, from: c.Nodes[0], to: c.Nodes[1]}
	c.must(m.known(c.within(30*time.Second), m.from))
	return m
}

// is waits until the node's libvirt has the guest in a state.
func (m *mover) is(n *lab.Node, want lab.DomainState) {
	m.c.t.Helper()
	m.c.eventually(30*time.Second, fmt.Sprintf("%s is %s on %s", m.Name, want, n.Name), func() error {
		d, err := n.Domain(m.UUID)
		if err == nil && d.State != want {
			err = fmt.Errorf("it is %+v", d)
		}
		return err
	})
}

// shows waits until every replica shows of the guest what is asked for.
func (m *mover) shows(what string, is func(*debvisorv1.VM) bool) {
	m.c.t.Helper()
	for _, r := range m.c.Replicas {
		a := m.c.api(r)
		m.c.eventually(30*time.Second, r.Name+" shows "+what, func() error {
			vm, err := a.vms.GetVM(m.c.within(10*time.Second), vmRef(m.UUID))
			if err == nil && !is(vm) {
				err = fmt.Errorf("it is %v", vm)
			}
			return err
		})
	}
}

// counts gives how many of the operations about the guest are of a kind.
func (m *mover) counts(kind string) int {
	m.c.t.Helper()
	list, err := m.c.api(m.c.running()).operations.ListOperations(m.c.within(10*time.Second), &debvisorv1.OperationFilter{Kind: kind, Limit: 1000})
	m.c.must(err)
	n := 0
	for _, op := range list.GetOperations() {
		if op.GetPower().GetVmId() == m.UUID {
			n++
		}
	}
	return n
}

// TestPower starts and stops a guest by our API, asked of a follower.
func TestPower(t *testing.T) {
	c := plain.use(t)
	m := c.powered("power")
	a, _ := c.follower()
	ctx := c.within(3 * time.Minute)
	first := m.starts(m.from)

	shut, err := a.vms.ShutdownVM(ctx, &debvisorv1.VMShutdownRequest{Vm: vmRef(m.UUID), TimeoutSeconds: 60})
	c.must(err)
	if shut.GetState() != debvisorv1.VMState_VM_STATE_SHUTOFF {
		t.Errorf("shut down: %v", shut)
	}
	m.is(m.from, lab.DomainShutOff)
	again, err := a.vms.ShutdownVM(ctx, &debvisorv1.VMShutdownRequest{Vm: vmRef(m.Name)})
	if err != nil || again.GetState() != debvisorv1.VMState_VM_STATE_SHUTOFF {
		t.Errorf("what is off was not shut down: %v, %v", again, err)
	}
	for range 2 { // what runs is a success
		up, err := a.vms.StartVM(ctx, vmRef(m.UUID))
		if err != nil || up.GetState() != debvisorv1.VMState_VM_STATE_RUNNING {
			t.Fatalf("started: %v, %v", up, err)
		}
	}
	m.goesOn()
	if n := m.starts(m.from); n != first+1 {
		t.Errorf("libvirt has started it %d times for one start", n-first)
	}
	gone, err := a.vms.DestroyVM(ctx, vmRef(m.UUID))
	if err != nil || gone.GetState() != debvisorv1.VMState_VM_STATE_SHUTOFF {
		t.Fatalf("destroyed: %v, %v", gone, err)
	}
	m.is(m.from, lab.DomainShutOff)
	h, err := m.History()
	c.must(err)
	if err := h.Check(nil); err == nil {
		t.Error("the guest's disk shows no second boot")
	}

	// Its node is not heard: a start is refused, and a stop waits until it is.
	c.must(m.from.Agent.Kill())
	m.shows("that its node is not heard", func(vm *debvisorv1.VM) bool { return vm.GetState() == debvisorv1.VMState_VM_STATE_UNKNOWN })
	_, err = a.vms.StartVM(ctx, vmRef(m.UUID))
	if d := refused(t, err, codes.FailedPrecondition); d.GetCode() != "NODE_NOT_REACHABLE" {
		t.Errorf("a start on a node that is not heard: %v", d)
	}
	waiting, err := a.vms.DestroyVM(metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none"), vmRef(m.UUID))
	c.must(err)
	c.eventually(20*time.Second, "it says for whom it waits", func() error { return c.waitsFor(a, waiting.GetOperationId(), m.from) })
	_, err = a.vms.StartVM(ctx, vmRef(m.UUID))
	refused(t, err, codes.Aborted)
	if _, err := a.operations.CancelOperation(ctx, &debvisorv1.OperationRef{Id: waiting.GetOperationId()}); err != nil {
		t.Errorf("what waits is not cancelled: %v", err)
	}
	c.must(m.from.Agent.Start())
	c.must(c.whole(c.within(time.Minute)))
}

// TestPolicyAndAutostart: both are taken, kept by us, carried along by a move; after a boot a VM is started where it belongs, and
// nowhere else.
func TestPolicyAndAutostart(t *testing.T) {
	c := plain.use(t)
	m := c.powered("autostart")
	a, _ := c.follower()
	ctx := c.within(5 * time.Minute)
	c.hvctl(a.replica, "tenant", "set", "acme")
	policy := &debvisorv1.VMPolicy{Tenant: "acme", Priority: 7, AntiAffinity: []*debvisorv1.AntiAffinity{{Group: "db"}}}
	_, err := a.vms.SetVMPolicy(ctx, &debvisorv1.VMPolicyRequest{Vm: vmRef(m.UUID), Policy: policy})
	c.must(err)

	// libvirt has no event for autostart: it is seen with the next one.
	m.libvirt(m.from, func(d *libvirt.Domain) error { return errors.Join(d.SetAutostart(true), d.Suspend(), d.Resume()) })
	kept := func(vm *debvisorv1.VM) bool {
		return vm.GetAutostart() && vm.GetPolicy().GetTenant() == "acme" && vm.GetPolicy().GetPriority() == 7 &&
			vm.GetPolicy().GetAntiAffinity()[0].GetLevel() == debvisorv1.SpreadLevel_SPREAD_LEVEL_NODE
	}
	m.shows("autostart as ours, and the policy", kept)
	c.eventually(20*time.Second, "libvirt's autostart is off", func() error {
		d, err := m.from.Domain(m.UUID)
		if err == nil && d.Autostart {
			err = errors.New("it is on")
		}
		return err
	})

	c.eventually(30*time.Second, "the guest can move", m.movable)
	c.succeeded(2*time.Minute, a, m.begin(a))
	m.shows("both after the move", func(vm *debvisorv1.VM) bool { return kept(vm) && vm.GetNode().GetNodeId().GetId() == m.to.Name })
	if n := m.counts("vm.autostart"); n != 1 {
		t.Errorf("autostart was taken over %d times", n)
	}

	// The node that it left has its definition still, and boots.
	var xml string
	m.libvirt(m.to, func(d *libvirt.Domain) (err error) {
		xml, err = d.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
		return err
	})
	reboot := func(n *lab.Node) {
		t.Helper()
		c.must(errors.Join(n.PowerOff(ctx), n.PowerOn(ctx)))
		log := c.mark(n.Agent.LogFile())
		c.must(n.Agent.Start())
		log.says("session open")               //nolint:contextcheck // waits within the test's own context
		c.must(c.whole(c.within(time.Minute))) //nolint:contextcheck // likewise
	}
	c.must(m.from.Define(xml))
	reboot(m.from)
	m.is(m.from, lab.DomainShutOff)
	m.is(m.to, lab.DomainRunning)
	c.must(m.from.Undefine(m.UUID))
	if n := m.counts("vm.start"); n != 0 {
		t.Errorf("%d starts of what belongs elsewhere and runs there", n)
	}

	before := m.starts(m.to)
	reboot(m.to)
	m.is(m.to, lab.DomainRunning)
	m.is(m.from, lab.DomainAbsent)
	m.shows("that it runs, in nobody's hands", func(vm *debvisorv1.VM) bool {
		return vm.GetState() == debvisorv1.VMState_VM_STATE_RUNNING && vm.GetOperationId() == ""
	})
	if n := m.counts("vm.start"); n != 1 || m.starts(m.to) != before+1 {
		t.Errorf("%d operations started it, libvirt did %d times", n, m.starts(m.to)-before)
	}
	m.goesOn()
}

// TestAgentDiesDuringAStart kills the agent around each thing that a start does: the guest is started once.
func TestAgentDiesDuringAStart(t *testing.T) {
	c := faulty.use(t)
	m := c.powered("reborn")
	a, _ := c.follower()
	for _, point := range []string{"startAfterAccepted", "startBeforeCreate", "startAfterCreate", "startAfterResume", "startBeforeOutcome"} {
		t.Run(point, func(t *testing.T) {
			ctx := c.within(2 * time.Minute)
			_, err := a.vms.DestroyVM(ctx, vmRef(m.UUID))
			c.must(err)
			m.is(m.from, lab.DomainShutOff)
			before := m.starts(m.from)
			points := m.from.Failpoints()
			c.must(points.Arm(ctx, point, hold))
			begun, err := a.vms.StartVM(metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none"), vmRef(m.UUID))
			c.must(err)
			c.must(points.AwaitHit(c.within(30*time.Second), point))
			c.must(errors.Join(m.from.Agent.Kill(), m.from.Agent.Start()))
			c.succeeded(time.Minute, a, begun.GetOperationId())
			m.is(m.from, lab.DomainRunning)
			if n := m.starts(m.from) - before; n != 1 {
				t.Errorf("libvirt has started it %d times", n)
			}
			m.goesOn()
		})
	}
}

// TestLeaderDiesDuringAStart kills the leader before it orders a start, and before it says that it is done.
func TestLeaderDiesDuringAStart(t *testing.T) {
	c := faulty.use(t)
	m := c.powered("ruled")
	for _, point := range []string{"leaderBeforeOrder", "leaderBeforeOrderEnd"} {
		t.Run(point, func(t *testing.T) {
			ctx := c.within(2 * time.Minute)
			a, _ := c.follower()
			_, err := a.vms.DestroyVM(ctx, vmRef(m.UUID))
			c.must(err)
			before := m.starts(m.from)
			leader, err := c.Leader(ctx)
			c.must(err)
			points := leader.Failpoints()
			c.must(points.Arm(ctx, point, hold))
			begun, err := a.vms.StartVM(metadata.AppendToOutgoingContext(ctx, "debvisor-wait", "none"), vmRef(m.UUID))
			c.must(err)
			c.must(points.AwaitHit(c.within(30*time.Second), point))
			c.must(leader.Kill())
			c.succeeded(time.Minute, a, begun.GetOperationId())
			m.is(m.from, lab.DomainRunning)
			if n := m.starts(m.from) - before; n != 1 {
				t.Errorf("libvirt has started it %d times", n)
			}
			c.must(leader.Start())
			c.must(c.whole(c.within(time.Minute)))
		})
	}
}
