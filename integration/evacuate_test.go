package integration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// maintenance is a lab with three guests on the first node: two that can move, and one that cannot while another of its group is
// on the other node.
type maintenance struct {
	*cluster
	a      *api
	host   *lab.Node
	guests []*mover
	apart  *mover
}

// TestEvacuation empties a host for maintenance: given up midway, begun again, with the leader killed between two of its
// transactions, a VM that something keeps, and all of them back at the end. The lab is its own: all guests of a host move.
func TestEvacuation(t *testing.T) {
	t.Parallel() // beside TestMatrix: both wait more than they work
	own := newShared("DEBVISOR_FAILPOINT_BIN", "../build/failpoint/bin", true)
	t.Cleanup(func() {
		if err := own.close(); err != nil {
			t.Error(err)
		}
	})
	m := newMaintenance(own.use(t))
	m.givenUp()
	m.leaderDies()
	m.backAgain()
}

func newMaintenance(c *cluster) *maintenance {
	c.t.Helper()
	m := &maintenance{cluster: c, host: c.Nodes[0]}
	m.a, _ = c.follower()
	neighbour, err := c.Nodes[1].StartGuest(c.within(90*time.Second), lab.GuestSpec{Name: "neighbour"})
	c.must(err)
	for _, name := range []string{"one", "two", "apart"} {
		m.guests = append(m.guests, c.guestLike(lab.GuestSpec{Name: name}))
	}
	m.apart = m.guests[2]
	c.eventually(30*time.Second, "the neighbour is known", func() error {
		_, err := m.a.vms.GetVM(c.within(10*time.Second), vmRef(neighbour.UUID))
		return err
	})
	for _, id := range []string{neighbour.UUID, m.apart.UUID} {
		m.setGroup(id, "pair")
	}
	return m
}

// setGroup keeps a VM apart from the others of a group; "": from none.
func (m *maintenance) setGroup(vm, group string) {
	m.t.Helper()
	policy := &debvisorv1.VMPolicy{}
	if group != "" {
		policy.AntiAffinity = []*debvisorv1.AntiAffinity{{Group: group, Level: debvisorv1.SpreadLevel_SPREAD_LEVEL_NODE}}
	}
	_, err := m.a.vms.SetVMPolicy(m.within(30*time.Second), &debvisorv1.VMPolicyRequest{Vm: vmRef(vm), Policy: policy})
	m.must(err)
}

// evacuate begins an evacuation by hvctl and gives its id.
func (m *maintenance) evacuate(args ...string) string {
	m.t.Helper()
	args = append([]string{"node", "evacuate", m.host.Name, "--no-wait"}, args...)
	out, err := m.Hvctl(m.within(time.Minute), m.a.replica, args...)
	if err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

// moves are an operation's moves by the VM's name.
func (m *maintenance) moves(id string) map[string]*debvisorv1.VMMove {
	m.t.Helper()
	op, err := m.a.operations.GetOperation(m.within(10*time.Second), &debvisorv1.OperationRef{Id: id})
	m.must(err)
	moves := map[string]*debvisorv1.VMMove{}
	for _, move := range op.GetEvacuation().GetMoves() {
		moves[move.GetVmName()] = move
	}
	return moves
}

// become waits until the moves are in those states.
func (m *maintenance) become(id string, want map[string]debvisorv1.VMMoveState) {
	m.t.Helper()
	m.eventually(time.Minute, "the moves are as wanted", func() error {
		moves := m.moves(id)
		for name, state := range want {
			if got := moves[name]; got.GetState() != state {
				return fmt.Errorf("%s is %v: %s", name, got.GetState(), got.GetMessage())
			}
		}
		return nil
	})
}

// The states of moves, in short.
const (
	isMoving  = debvisorv1.VMMoveState_VM_MOVE_STATE_MOVING
	isMoved   = debvisorv1.VMMoveState_VM_MOVE_STATE_MOVED
	isBlocked = debvisorv1.VMMoveState_VM_MOVE_STATE_BLOCKED
)

// givenUp cancels an evacuation while two guests are on their way at once.
func (m *maintenance) givenUp() {
	m.t.Helper()
	for _, g := range m.guests[:2] {
		m.must(g.from.SetMigrateSpeed(g.UUID, slow))
	}
	id := m.evacuate("--reason", "new disks", "--wait-blocked", "1h")
	m.become(id, map[string]debvisorv1.VMMoveState{"one": isMoving, "two": isMoving, "apart": isBlocked})
	for _, g := range m.guests[:2] {
		g.copying()
	}
	if message := m.moves(id)["apart"].GetMessage(); !strings.Contains(message, "pair") || !strings.Contains(message, m.Nodes[1].Name) {
		m.t.Errorf("what keeps the third guest is not named: %q", message)
	}
	op, err := m.a.operations.CancelOperation(m.within(time.Minute), &debvisorv1.OperationRef{Id: id})
	m.must(err)
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_CANCELLED || !strings.Contains(op.GetError().GetMessage(), "stays cordoned") {
		m.t.Errorf("cancelling gave %v: %v", op.GetState(), op.GetError())
	}
	for _, g := range m.guests {
		g.stayed()
		_ = m.host.SetMigrateSpeed(g.UUID, full)
	}
	detail := m.detail()
	if !detail.GetSummary().GetCordoned() || detail.GetCordonReason() != "new disks" || detail.GetSafeToReboot() {
		m.t.Errorf("after the cancellation: %v", detail)
	}
}

func (m *maintenance) detail() *debvisorv1.NodeDetail {
	m.t.Helper()
	detail, err := m.a.nodes.GetNode(m.within(10*time.Second), node(m.host.Name))
	m.must(err)
	return detail
}

// leaderDies evacuates again. The leader is killed before it writes that the guests move.
func (m *maintenance) leaderDies() {
	m.t.Helper()
	_, leader := m.follower()
	if m.a.replica == leader {
		m.a, leader = m.follower()
	}
	points := leader.Failpoints()
	m.must(points.Arm(m.within(10*time.Second), "drainBeforeMove", hold))
	id := m.evacuate("--wait-blocked", "1h")
	m.must(points.AwaitHit(m.within(30*time.Second), "drainBeforeMove"))
	m.must(leader.Kill())
	m.become(id, map[string]debvisorv1.VMMoveState{"one": isMoved, "two": isMoved, "apart": isBlocked})
	m.must(leader.Start())
	for _, g := range m.guests[:2] {
		m.must(g.runsOnly(g.to))
		m.onceOnly(id, g)
	}
	if m.detail().GetSafeToReboot() {
		m.t.Error("the host counts as safe to reboot while a guest runs there")
	}

	// What keeps the third goes away, and it moves by itself.
	m.setGroup(m.apart.UUID, "")
	op := m.succeeded(time.Minute, m.a, id)
	if !op.GetEvacuation().GetSafeToReboot() || !m.detail().GetSafeToReboot() {
		m.t.Errorf("it does not say that the host is safe to reboot: %v", op)
	}
	domains, err := m.host.Domains()
	m.must(err)
	for uuid, d := range domains {
		m.t.Errorf("%s still has domain %s: %+v", m.host.Name, uuid, d)
	}
	for _, g := range m.guests {
		g.arrived()
	}
}

// onceOnly checks that one operation alone moved a guest for the evacuation.
func (m *maintenance) onceOnly(id string, g *mover) {
	m.t.Helper()
	list, err := m.a.operations.ListOperations(m.within(10*time.Second), &debvisorv1.OperationFilter{Kind: "migrate", Resource: "vm/" + g.UUID})
	m.must(err)
	of := slices.DeleteFunc(list.GetOperations(), func(op *debvisorv1.Operation) bool { return op.GetParentId() != id })
	if len(of) != 1 {
		m.t.Errorf("%d operations moved %s, want one: %v", len(of), g.Name, of)
	}
}

// backAgain restores the host.
func (m *maintenance) backAgain() {
	m.t.Helper()
	out, err := m.Hvctl(m.within(2*time.Minute), m.a.replica, "node", "evacuate", m.host.Name, "--restore")
	if err != nil || !strings.Contains(out, "3 VMs came back") {
		m.t.Fatalf("hvctl says %q: %v", out, err)
	}
	for _, g := range m.guests {
		g.stayed()
	}
	m.eventually(10*time.Second, "every replica shows the host in use again", func() error {
		if m.detail().GetSummary().GetCordoned() {
			return errors.New("it is cordoned")
		}
		return nil
	})
}
