package drain

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// model is a cluster whose records change as etcd would let them: a step is
// applied only where its ground is as it was decided on.
type model struct {
	t    *testing.T
	rnd  *rand.Rand
	s    *cluster.Snapshot
	past []*cluster.Snapshot
	now  time.Time
	// written are the moves' operations that were ever written.
	written map[string]bool
	born    int
	history []string
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		t: t, rnd: rand.New(rand.NewPCG(seed, 7)), s: cluster.Empty(), now: noon, written: map[string]bool{},
	}
	m.change(func(d *cluster.Draft) {
		for i := range 3 + m.rnd.IntN(3) {
			id := string(rune('a' + i))
			node, status := newNode(t, id)
			node.ParallelMigrations = uint32(m.rnd.IntN(4))
			d.Nodes.Put(id, node, 1)
			d.Statuses.Put(id, status, 1)
		}
	})
	for range 1 + m.rnd.IntN(8) {
		m.appear("a")
	}
	m.appear("b")
	return m
}

// change makes the next snapshot.
func (m *model) change(how func(d *cluster.Draft)) {
	d := m.s.Draft()
	how(d)
	m.past = append(m.past, m.s)
	m.s = d.Snapshot(m.s.Revision + 1)
}

func (m *model) rev() int64 { return m.s.Revision + 1 }

func (m *model) note(format string, args ...any) {
	m.history = append(m.history, fmt.Sprintf(format, args...))
}

func (m *model) fatal(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.history {
		m.t.Log(line)
	}
	m.t.Fatalf(format, args...)
}

// appear defines a VM on a node.
func (m *model) appear(node string) {
	m.born++
	words := [][]string{{}, {}, {}, {"off"}, {"20"}, {"device"}, {"70"}}[m.rnd.IntN(7)]
	name := fmt.Sprintf("vm%d", m.born)
	m.note("%s appears on %s %v", name, node, words)
	m.change(func(d *cluster.Draft) { d.VMs.Put(name, newVM(m.t, name, node, words...), m.rev()) })
}

// submit writes an operation that the controller is to advance.
func (m *model) submit(kind string) string {
	id := fmt.Sprintf("op-%s-%d", kind, m.rev())
	m.note("submitting %s", id)
	m.change(func(d *cluster.Draft) {
		d.Operations.Put(id, &storev1.Operation{
			Id: id, Kind: kind, State: task.OpPending, Resources: []string{"evacuation/a"},
			Detail: &storev1.Operation_Evacuate{Evacuate: &storev1.Evacuate{
				Node: "a", Parallel: uint32(m.rnd.IntN(4)), WaitBlockedSeconds: uint32(m.rnd.IntN(2) * 30),
			}},
		}, m.rev())
		d.InUse.Put("evacuation/a", id, m.rev())
	})
	return id
}

// lead is one look of a leader at a snapshot, which may be an old one: it was
// just elected, or does not know yet that it no longer leads. The step may be
// lost before its commit, or committed by a leader that dies at once.
func (m *model) lead(id string, on *cluster.Snapshot) {
	entry, ok := on.Operations[id]
	if !ok || task.OpEnded(entry.Value.GetState()) {
		return
	}
	v := decide(on, entry, moment{
		now: m.now, mayPlan: m.rnd.IntN(4) > 0, world: func() *planner.World { return planner.NewWorld(on, nil) },
	})
	if v.step == nil {
		return
	}
	if m.rnd.IntN(10) == 0 {
		m.note("the leader dies before %s", describe(v.step))
		return
	}
	m.commit(on, entry, v.step)
}

// commit applies a step as etcd would.
func (m *model) commit(on *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], st *step) {
	id := entry.Value.GetId()
	conflict := m.s.Operations[id].ModRevision != entry.ModRevision
	for _, child := range st.begun {
		_, exists := m.s.Operations[child.GetId()]
		_, used := m.s.InUse[child.GetResources()[0]]
		conflict = conflict || exists || used
	}
	if st.node != nil {
		conflict = conflict || m.s.Nodes[st.node.GetId()].ModRevision != on.Nodes[st.node.GetId()].ModRevision
	}
	if c := st.stopping; c != nil {
		conflict = conflict || m.s.Operations[c.GetId()].ModRevision != on.Operations[c.GetId()].ModRevision
	}
	m.note("%s (conflict %v): %s", describe(st), conflict, tell(st.op))
	if conflict {
		return
	}
	m.change(func(d *cluster.Draft) {
		d.Operations.Put(id, st.op, m.rev())
		for _, child := range st.begun {
			if m.written[child.GetId()] {
				m.fatal("%s begins twice", child.GetId())
			}
			m.written[child.GetId()] = true
			d.Operations.Put(child.GetId(), child, m.rev())
			d.InUse.Put(child.GetResources()[0], child.GetId(), m.rev())
		}
		if st.node != nil {
			d.Nodes.Put(st.node.GetId(), st.node, m.rev())
		}
		if st.stopping != nil {
			d.Operations.Put(st.stopping.GetId(), st.stopping, m.rev())
		}
		if task.OpEnded(st.op.GetState()) {
			d.InUse.Delete("evacuation/a")
		}
	})
	m.invariants(id)
}

// migrate takes one step of one move's operation, as package migrate could.
func (m *model) migrate(kind bool) {
	var open []cluster.Entry[*storev1.Operation]
	for _, e := range m.s.ActiveOperations() {
		if e.Value.GetMigrate() != nil {
			open = append(open, e)
		}
	}
	if len(open) == 0 {
		return
	}
	op := proto.CloneOf(open[m.rnd.IntN(len(open))].Value)
	move := op.GetMigrate()
	luck := m.rnd.IntN(6)
	if kind {
		luck = 5
	}
	switch {
	case op.GetCancelRequested() && !move.GetSwitchedOver():
		op.State, op.ErrorCode = task.OpCancelled, "CANCELLED"
	case op.GetState() == task.OpPending:
		op.State = task.OpRunning
	case luck == 0:
		op.State, op.ErrorCode, op.ErrorMessage = task.OpFailed, []string{"MIGRATION_FAILED", "PLAN_REFUSED", "SOURCE_NOT_GONE"}[m.rnd.IntN(3)], "as it happens"
	case luck < 3:
		op.Progress = encode(m.t, &debvisorv1.OperationProgress{Percent: float64(m.rnd.IntN(100))})
	case luck == 3:
		move.SwitchedOver = true
	default:
		op.State = task.OpSucceeded
	}
	m.note("%s of %s: %v %s", op.GetId(), move.GetVmUuid(), op.GetState(), op.GetErrorCode())
	m.change(func(d *cluster.Draft) {
		if task.OpEnded(op.GetState()) {
			op.EndedAt = timestamppb.New(m.now)
			d.InUse.Delete(op.GetResources()[0])
		}
		if vm, ok := m.s.VMs[move.GetVmUuid()]; ok && op.GetState() == task.OpSucceeded {
			gone := proto.CloneOf(vm.Value)
			gone.Node = move.GetTarget()
			gone.Generation++
			d.VMs.Put(gone.GetUuid(), gone, m.rev())
		}
		d.Operations.Put(op.GetId(), op, m.rev())
	})
}

// invariants hold after every transaction.
func (m *model) invariants(id string) {
	m.t.Helper()
	op := m.s.Operations[id].Value
	byVM, leaving, arriving := map[string]int{}, map[string]int{}, map[string]int{}
	children := 0
	for _, e := range m.s.ActiveOperations() {
		move := e.Value.GetMigrate()
		if move == nil {
			continue
		}
		byVM[move.GetVmUuid()]++
		leaving[move.GetSource()]++
		arriving[move.GetTarget()]++
		if byVM[move.GetVmUuid()] > 1 {
			m.fatal("two moves of %s at once", move.GetVmUuid())
		}
		if e.Value.GetParent() == id {
			children++
			if !slices.ContainsFunc(op.GetEvacuate().GetMoves(), func(x *storev1.Move) bool {
				return x.GetOperation() == e.Value.GetId() && x.GetState() == moving
			}) {
				m.fatal("the parent has lost sight of %s", e.Value.GetId())
			}
		}
	}
	for node, n := range m.s.Nodes {
		most := int(n.Value.GetParallelMigrations())
		if most == 0 {
			most = defaultParallel
		}
		if leaving[node] > most || arriving[node] > most {
			m.fatal("%d leave %s and %d arrive; the most is %d", leaving[node], node, arriving[node], most)
		}
	}
	if !task.OpEnded(op.GetState()) {
		return
	}
	if children > 0 {
		m.fatal("%s has ended %v with %d moves at work", id, op.GetState(), children)
	}
	if op.GetEvacuate().GetSafeToReboot() != (op.GetKind() == Evacuate && op.GetState() == task.OpSucceeded) {
		m.fatal("%s ended %v, safe %v", id, op.GetState(), op.GetEvacuate().GetSafeToReboot())
	}
	if op.GetEvacuate().GetSafeToReboot() && len(planner.AgainstReboot(m.s, "a")) > 0 {
		m.fatal("it is not safe: %v", planner.AgainstReboot(m.s, "a"))
	}
	m.accounted(op)
}

// accounted checks that an ended operation says of every VM what became of it.
func (m *model) accounted(op *storev1.Operation) {
	m.t.Helper()
	for _, x := range op.GetEvacuate().GetMoves() {
		at := m.s.VMs[x.GetVmUuid()].Value.GetNode()
		switch x.GetState() {
		case moving:
			m.fatal("%s is still said to move", x.GetVmUuid())
		case moved:
			if op.GetKind() == Evacuate && at == "a" && op.GetState() == task.OpSucceeded {
				m.fatal("%s is said to have moved and is on a", x.GetVmUuid())
			}
		case blocked, failed:
			if x.GetMessage() == "" {
				m.fatal("%s is %v without a reason", x.GetVmUuid(), x.GetState())
			}
		}
	}
	if op.GetState() != task.OpSucceeded || op.GetKind() != Evacuate {
		return
	}
	for _, vm := range m.s.VMsOn("a") {
		if !isOff(m.t, vm.Value) {
			m.fatal("%s runs on a after a success", vm.Value.GetUuid())
		}
	}
}

func isOff(t *testing.T, vm *storev1.VM) bool {
	domain := &agentv1.Domain{}
	if err := proto.Unmarshal(vm.GetDomain(), domain); err != nil {
		t.Fatal(err)
	}
	return domain.GetState() == debvisorv1.VMState_VM_STATE_SHUTOFF
}

// mess is anything that may happen.
func (m *model) mess(id string) {
	m.now = m.now.Add(time.Duration(m.rnd.IntN(2000)) * time.Millisecond)
	switch m.rnd.IntN(24) {
	case 0:
		m.appear("a")
	case 1:
		m.put(id, func(op *storev1.Operation) { op.CancelRequested = m.rnd.IntN(3) == 0 || op.GetCancelRequested() })
	case 2:
		m.node(func(n *storev1.Node) { n.Cordoned = m.rnd.IntN(3) > 0 })
	case 3:
		m.status(func(s *storev1.NodeStatus) {
			s.Liveness = []storev1.NodeLiveness{
				storev1.NodeLiveness_NODE_LIVENESS_ONLINE, storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE,
			}[m.rnd.IntN(2)]
		})
	case 4, 5, 6, 7, 8, 9, 10:
		m.migrate(false)
	case 11:
		m.lead(id, m.past[max(0, len(m.past)-1-m.rnd.IntN(6))])
	default:
		m.lead(id, m.s)
	}
}

func (m *model) put(id string, how func(*storev1.Operation)) {
	op := proto.CloneOf(m.s.Operations[id].Value)
	if task.OpEnded(op.GetState()) {
		return
	}
	how(op)
	m.change(func(d *cluster.Draft) { d.Operations.Put(id, op, m.rev()) })
}

func (m *model) node(how func(*storev1.Node)) {
	for _, id := range []string{"a", "b"}[m.rnd.IntN(2):] {
		n := proto.CloneOf(m.s.Nodes[id].Value)
		how(n)
		m.note("%s is cordoned: %v", id, n.GetCordoned())
		m.change(func(d *cluster.Draft) { d.Nodes.Put(id, n, m.rev()) })
		return
	}
}

func (m *model) status(how func(*storev1.NodeStatus)) {
	for _, id := range []string{"a", "b"}[m.rnd.IntN(2):] {
		s := proto.CloneOf(m.s.Statuses[id].Value)
		how(s)
		m.note("%s is %v", id, s.GetLiveness())
		m.change(func(d *cluster.Draft) { d.Statuses.Put(id, s, m.rev()) })
		return
	}
}

// calm lets everything go well until the operation has ended.
func (m *model) calm(id string) *storev1.Operation {
	m.t.Helper()
	for _, node := range []string{"a", "b"} {
		s := proto.CloneOf(m.s.Statuses[node].Value)
		s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_ONLINE
		m.change(func(d *cluster.Draft) { d.Statuses.Put(node, s, m.rev()) })
	}
	for range 2000 {
		if op := m.s.Operations[id].Value; task.OpEnded(op.GetState()) {
			return op
		}
		m.now = m.now.Add(time.Second)
		m.migrate(true)
		m.lead(id, m.s)
	}
	m.fatal("%s does not end: %v", id, m.s.Operations[id].Value)
	return nil
}

// TestNothingIsBegunTwiceOrLost runs random interleavings of moves' ends, VMs
// that come, cordons, nodes that are not heard, cancellations, leaders that die
// before a commit and leaders that decide on an old snapshot; then evacuates
// again, and restores.
func TestNothingIsBegunTwiceOrLost(t *testing.T) {
	seeds := 400
	if testing.Short() {
		seeds = 50
	}
	ends := map[storev1.OperationState]int{}
	for seed := range seeds {
		m := newModel(t, uint64(seed))
		for _, kind := range []string{Evacuate, Evacuate, Restore} {
			id := m.submit(kind)
			for range m.rnd.IntN(80) {
				m.mess(id)
			}
			ends[m.calm(id).GetState()]++
		}
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
	for _, state := range []storev1.OperationState{task.OpSucceeded, task.OpFailed, task.OpCancelled} {
		if ends[state] < seeds/20 {
			t.Errorf("only %d of %d operations ended %v: the mess is not what it should be", ends[state], 3*seeds, state)
		}
	}
}
