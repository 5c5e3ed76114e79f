package drain

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
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

const opID = "op-parent"

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// state is a cluster and one operation in the making.
type state struct {
	t          *testing.T
	d          *cluster.Draft
	op         *storev1.Operation
	nodes      map[string]*storev1.Node
	statuses   map[string]*storev1.NodeStatus
	vms        map[string]*storev1.VM
	operations []*storev1.Operation
}

// records builds a snapshot from facts:
//
//	nodes a b c              64 GiB each
//	vm NAME NODE [GIB] [off] a VM, running with 1 GiB where nothing else is said
//	evacuate|restore|rebalance [running] [cancel] [wait S] [parallel N] [downtime] [since D]
//	                         the operation, about node a; plan: its moves are given
//	cordoned NODE, down NODE, libvirt-down NODE, parallel NODE N
//	move VM FROM TO STATE [try N] [wave N] [was TEXT]
//	child VM STATE [CODE] [D] the move's own operation, ended D ago; switched, percent N
//	other VM FROM TO         somebody else's migration at work; queued: not begun
//	earlier KIND STATE VM FROM TO  an ended operation with one move that is done
func records(t *testing.T, facts string) (*cluster.Snapshot, cluster.Entry[*storev1.Operation]) {
	t.Helper()
	s := &state{
		t: t, d: cluster.Empty().Draft(), nodes: map[string]*storev1.Node{},
		statuses: map[string]*storev1.NodeStatus{}, vms: map[string]*storev1.VM{},
	}
	for fact := range strings.SplitSeq(facts, ",") {
		s.fact(strings.Fields(fact))
	}
	for id, n := range s.nodes {
		s.d.Nodes.Put(id, n, 3)
		s.d.Statuses.Put(id, s.statuses[id], 3)
	}
	for id, vm := range s.vms {
		s.d.VMs.Put(id, vm, 4)
		s.statuses[vm.GetNode()].Domains = append(s.statuses[vm.GetNode()].Domains, id)
	}
	if s.op != nil {
		s.d.Operations.Put(opID, s.op, 5)
	}
	for _, op := range s.operations {
		s.d.Operations.Put(op.GetId(), op, 6)
		for _, resource := range op.GetResources() {
			if !task.OpEnded(op.GetState()) {
				s.d.InUse.Put(resource, op.GetId(), 6)
			}
		}
	}
	snapshot := s.d.Snapshot(9)
	return snapshot, snapshot.Operations[opID]
}

func (s *state) fact(w []string) {
	switch w[0] {
	case "nodes":
		for _, id := range w[1:] {
			s.nodes[id], s.statuses[id] = newNode(s.t, id)
		}
	case "vm":
		s.vms[w[1]] = newVM(s.t, w[1], w[2], w[3:]...)
	case Evacuate, Restore, Rebalance:
		s.operation(w)
	case "cordoned":
		s.nodes[w[1]].Cordoned = true
	case "down":
		s.statuses[w[1]].Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
	case "libvirt-down":
		s.statuses[w[1]].LibvirtDown = true
	case "parallel":
		s.nodes[w[1]].ParallelMigrations = uint32(number(s.t, w[2]))
	case "move":
		s.move(w)
	case "child":
		s.child(w)
	case "other", "queued":
		state := task.OpRunning
		if w[0] == "queued" {
			state = task.OpPending
		}
		s.operations = append(s.operations, &storev1.Operation{
			Id: "op-other-" + w[1], Kind: moveKind, State: state, Resources: []string{"vm/" + w[1]},
			Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmUuid: w[1], VmName: w[1], Source: w[2], Target: w[3]}},
		})
	case "earlier":
		n := len(s.operations)
		s.operations = append(s.operations, &storev1.Operation{
			Id: fmt.Sprintf("op-earlier-%d", n), Kind: w[1], State: opState(s.t, w[2]),
			EndedAt: timestamppb.New(noon.Add(time.Duration(n-100) * time.Minute)),
			Detail: &storev1.Operation_Evacuate{Evacuate: &storev1.Evacuate{Node: "a", Moves: []*storev1.Move{
				{VmUuid: w[3], VmName: w[3], Source: w[4], Target: w[5], State: moved, Operation: fmt.Sprintf("op-earlier-%d-move", n)},
			}}},
		})
	default:
		s.t.Fatalf("what is %q?", w)
	}
}

func (s *state) operation(w []string) {
	e := &storev1.Evacuate{Node: "a"}
	s.op = &storev1.Operation{
		Id: opID, Kind: w[0], State: task.OpPending, Resources: []string{"evacuation/a"}, Principal: "ann",
		Detail: &storev1.Operation_Evacuate{Evacuate: e},
	}
	if w[0] == Rebalance {
		e.Node = ""
	}
	for i := 1; i < len(w); i++ {
		switch w[i] {
		case "running":
			s.op.State = task.OpRunning
			s.op.StartedAt = timestamppb.New(noon.Add(-time.Minute))
		case "cancel":
			s.op.CancelRequested = true
		case "plan":
			e.PlanId = "plan-1"
		case "downtime":
			e.AllowDowntime = true
		case "wait":
			i++
			e.WaitBlockedSeconds = uint32(number(s.t, w[i]))
		case "parallel":
			i++
			e.Parallel = uint32(number(s.t, w[i]))
		case "since":
			i++
			e.BlockedSince = timestamppb.New(noon.Add(-span(s.t, w[i])))
		default:
			s.t.Fatalf("what is %q?", w[i])
		}
	}
}

func (s *state) move(w []string) {
	m := &storev1.Move{
		VmUuid: w[1], VmName: w[1], Source: w[2], Target: strings.TrimPrefix(w[3], "-"),
		State: storev1.MoveState(storev1.MoveState_value["MOVE_STATE_"+strings.ToUpper(w[4])]),
	}
	for i := 5; i+1 < len(w); i += 2 {
		switch w[i] {
		case "try":
			m.Tries = uint32(number(s.t, w[i+1]))
		case "wave":
			m.Wave = uint32(number(s.t, w[i+1]))
		case "was":
			m.Message = w[i+1]
		default:
			s.t.Fatalf("what is %q?", w[i])
		}
	}
	if m.GetState() == moving {
		m.Tries = max(m.GetTries(), 1)
	}
	if m.GetTries() > 0 {
		m.Operation = childID(opID, m.GetVmUuid(), m.GetTries())
	}
	e := s.op.GetEvacuate()
	e.Moves = append(e.Moves, m)
}

func (s *state) child(w []string) {
	moves := s.op.GetEvacuate().GetMoves()
	m := moves[slices.IndexFunc(moves, func(m *storev1.Move) bool { return m.GetVmUuid() == w[1] })]
	op := &storev1.Operation{
		Id: m.GetOperation(), Kind: moveKind, Parent: opID, State: opState(s.t, w[2]), Resources: []string{"vm/" + w[1]},
		Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmUuid: w[1], VmName: w[1], Source: m.GetSource(), Target: m.GetTarget()}},
	}
	ended := noon.Add(-time.Second)
	for i := 3; i < len(w); i++ {
		switch {
		case w[i] == "switched":
			op.GetMigrate().SwitchedOver = true
		case w[i] == "asked":
			op.CancelRequested = true
		case w[i] == "percent":
			i++
			op.Progress = encode(s.t, &debvisorv1.OperationProgress{Percent: float64(number(s.t, w[i]))})
		case strings.ToUpper(w[i]) == w[i]:
			op.ErrorCode, op.ErrorMessage = w[i], "libvirt says no"
		default:
			ended = noon.Add(-span(s.t, w[i]))
		}
	}
	if task.OpEnded(op.GetState()) {
		op.EndedAt = timestamppb.New(ended)
	}
	s.operations = append(s.operations, op)
}

func newNode(t *testing.T, id string) (*storev1.Node, *storev1.NodeStatus) {
	return &storev1.Node{Id: id}, &storev1.NodeStatus{
		Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, PeerAddress: id + ":7445", LastSeen: timestamppb.New(noon),
		Capacity: encode(t, &debvisorv1.NodeCapacity{Cpus: 8, MemoryBytes: 64 << 30, MemoryAvailableBytes: 60 << 30}),
	}
}

func newVM(t *testing.T, name, node string, more ...string) *storev1.VM {
	domain := &agentv1.Domain{
		Uuid: name, Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: 1 << 30, Persistent: true,
	}
	for _, word := range more {
		switch word {
		case "off":
			domain.State = debvisorv1.VMState_VM_STATE_SHUTOFF
		case "device":
			domain.HostDevices = []string{"0000:03:00.0"}
		default:
			domain.MemoryBytes = uint64(number(t, word)) << 30
		}
	}
	return &storev1.VM{Uuid: name, Name: name, Node: node, Generation: 4, Domain: encode(t, domain)}
}

func opState(t *testing.T, word string) storev1.OperationState {
	t.Helper()
	v, ok := storev1.OperationState_value["OPERATION_STATE_"+strings.ToUpper(word)]
	if !ok {
		t.Fatalf("what state is %q?", word)
	}
	return storev1.OperationState(v)
}

func number(t *testing.T, word string) int {
	t.Helper()
	n, err := strconv.Atoi(word)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func span(t *testing.T, word string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(word)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// look decides on a snapshot at a time, with the real planner.
func look(s *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], now time.Time) verdict {
	return decide(s, entry, moment{now: now, mayPlan: true, world: func() *planner.World { return planner.NewWorld(s, nil) }})
}

// describe writes a step as the cases do: its name, what it begins or ends, and
// how the operation ends.
func describe(s *step) string {
	if s == nil {
		return "none"
	}
	parts := []string{string(s.name)}
	if s.node != nil {
		parts = append(parts, fmt.Sprintf("cordon=%v", s.node.GetCordoned()))
	}
	var begun []string
	for _, op := range s.begun {
		begun = append(begun, op.GetMigrate().GetVmUuid()+">"+op.GetMigrate().GetTarget())
	}
	slices.Sort(begun)
	parts = append(parts, begun...)
	if s.stopping != nil {
		parts = append(parts, s.stopping.GetMigrate().GetVmUuid())
	}
	if s.name == stepEnd {
		parts = append(parts, strings.TrimPrefix(s.op.GetState().String(), "OPERATION_STATE_"))
		if s.op.GetState() == task.OpFailed {
			parts = append(parts, s.op.GetErrorCode())
		}
		if s.op.GetEvacuate().GetSafeToReboot() {
			parts = append(parts, "safe")
		}
	}
	return strings.Join(parts, " ")
}

// tell writes an operation's moves in short.
func tell(op *storev1.Operation) string {
	var parts []string
	for _, m := range op.GetEvacuate().GetMoves() {
		word := strings.ToLower(strings.TrimPrefix(m.GetState().String(), "MOVE_STATE_"))
		parts = append(parts, m.GetVmUuid()+" "+word+cmp.Or(map[bool]string{true: " " + m.GetTarget()}[m.GetTarget() != ""], ""))
	}
	return strings.Join(parts, ", ")
}
