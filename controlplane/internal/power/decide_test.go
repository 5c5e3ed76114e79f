package power

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	opID = "op-1"
	vmID = "6f2f3a1e-0000-4000-8000-000000000001"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// records makes a snapshot of facts, comma-separated. An operation on the VM
// "web" of node "a", placement 4, one second old, unless they say otherwise:
//
//	pending | running       the operation
//	cancel, age D           its end was asked for; it is that old
//	ours, theirs            a tenant's caller asked, and the VM is that tenant's, or not
//	novm, conflict, moved, transient   what is wrong with the VM
//	down NODE, nolibvirt, nonode       what is wrong with the node
//	holds NODE, off NODE    that node has the VM too; it is said to be off
//	lost NODE, gone NODE    its copy of the VM is lost; it was, and is destroyed
//	task STATE [CODE]       the operation's task
//	asked                   which was asked to end
//	restored [NODE]         the cluster returns from a backup, and waits for that node
func records(t *testing.T, kind, facts string) (*cluster.Snapshot, cluster.Entry[*storev1.Operation]) {
	t.Helper()
	d := cluster.Empty().Draft()
	op := &storev1.Operation{
		Id: opID, Kind: kind, State: task.OpPending, Resources: []string{"vm/" + vmID}, CreatedAt: timestamppb.New(noon.Add(-time.Second)),
		Detail: &storev1.Operation_Power{Power: &storev1.Power{VmUuid: vmID, VmName: "web", Node: "a", Generation: 4, TimeoutMs: 9000, Force: true}},
	}
	vm := &storev1.VM{Uuid: vmID, Name: "web", Node: "a", Generation: 4}
	domain := &agentv1.Domain{Uuid: vmID, Name: "web", Persistent: true}
	nodes := map[string]*storev1.Node{"a": {Id: "a"}, "b": {Id: "b"}}
	online := storev1.NodeLiveness_NODE_LIVENESS_ONLINE
	statuses := map[string]*storev1.NodeStatus{
		"a": {Id: "a", Liveness: online, Domains: []string{vmID}, BootId: "1"}, "b": {Id: "b", Liveness: online, BootId: "1"},
	}
	var k *storev1.Task
	for fact := range strings.SplitSeq(facts, ",") {
		w := strings.Fields(fact)
		switch w[0] {
		case "pending":
		case "running":
			op.State = task.OpRunning
		case "cancel":
			op.CancelRequested = true
		case "restored":
			heard := map[string]bool{"a": true, "b": true}
			for _, node := range w[1:] {
				delete(heard, node)
			}
			d.SetRestore(&storev1.Restore{HeardNodes: slices.Sorted(maps.Keys(heard))}, 1)
		case "age":
			age, err := time.ParseDuration(w[1])
			if err != nil {
				t.Fatal(err)
			}
			op.CreatedAt = timestamppb.New(noon.Add(-age))
		case "ours", "theirs":
			op.Tenant = "ours"
			vm.Policy = encode(t, &debvisorv1.VMPolicy{Tenant: w[0]})
		case "novm":
			vm = nil
		case "conflict":
			vm.ConflictNodes = []string{"a", "b"}
		case "moved":
			vm.Node, vm.Generation = "b", 5
		case "transient":
			domain.Persistent = false
		case "down", "off":
			statuses[w[1]].Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
			if w[0] == "off" {
				nodes[w[1]].OffConfirmedAt, nodes[w[1]].OffBootId = timestamppb.New(noon), "1"
			}
		case "nolibvirt":
			statuses["a"].LibvirtDown = true
		case "nonode":
			delete(nodes, "a")
		case "holds":
			statuses[w[1]].Domains = []string{vmID}
		case "lost", "gone":
			state := storev1.LostCopyState_LOST_COPY_STATE_AWAITED
			if w[0] == "gone" {
				state = storev1.LostCopyState_LOST_COPY_STATE_GONE
			}
			d.LostCopies.Put(vmID+"/"+w[1], &storev1.LostCopy{VmUuid: vmID, Node: w[1], State: state}, 3)
		case "task":
			k = taskRecord(t, kind, w[1:])
		case "asked":
			k.CancelRequested = true
		default:
			t.Fatalf("what is %q?", fact)
		}
	}
	for id, n := range nodes {
		d.Nodes.Put(id, n, 3)
	}
	for id, s := range statuses {
		d.Statuses.Put(id, s, 3)
	}
	if vm != nil {
		vm.Domain = encode(t, domain)
		d.VMs.Put(vmID, vm, 4)
	}
	if k != nil {
		d.Tasks.Put(k.GetId(), k, 7)
	}
	d.Operations.Put(opID, op, 5)
	s := d.Snapshot(9)
	return s, s.Operations[opID]
}

func taskRecord(t *testing.T, kind string, w []string) *storev1.Task {
	t.Helper()
	state, ok := agentv1.TaskState_value["TASK_STATE_"+strings.ToUpper(w[0])]
	if !ok {
		t.Fatalf("what state is %q?", w[0])
	}
	outcome := &agentv1.TaskOutcome{}
	if len(w) > 1 {
		outcome.ErrorCode, outcome.ErrorMessage = w[1], "the agent says "+w[1]
	}
	return &storev1.Task{Id: opID + "/1/" + orders[kind].task, OperationId: opID, State: storev1.TaskState(state), Outcome: encode(t, outcome)}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDecide: want is the step's name and the operation's error code, or what
// it waits for; empty: no step.
func TestDecide(t *testing.T) {
	for _, c := range []struct{ name, kind, facts, want string }{
		{"a start", "vm.start", "pending", "begin"},
		{"a shutdown", "vm.shutdown", "pending", "begin"},
		{"a node may run it that was not heard since a restore", "vm.start", "pending,restored b", "fail RESTORE_UNFINISHED"},
		{"what a restore's nodes run is being taken over", "vm.start", "pending,restored", "note waiting to begin: the cluster was restored from a backup, and what its nodes run is being taken over"},
		{"what runs may be stopped after a restore", "vm.destroy", "pending,restored b", "begin"},
		{"its node is not heard", "vm.start", "pending,down a", "note waiting for the agent of a, which is not heard"},
		{"its node's libvirt is down", "vm.destroy", "pending,nolibvirt", "note waiting for libvirt of a, which does not answer"},
		{"cancelled while it waits", "vm.start", "pending,down a,cancel", "cancelled CANCELLED"},
		{"no such VM any more", "vm.start", "pending,novm", "fail VM_NOT_FOUND"},
		{"its tenant's VM", "vm.start", "pending,ours", "begin"},
		{"another tenant's VM by now", "vm.start", "pending,theirs", "fail VM_NOT_FOUND"},
		{"a conflict", "vm.destroy", "pending,conflict", "fail VM_CONFLICT"},
		{"it belongs elsewhere by now", "vm.shutdown", "pending,moved", "fail PLACEMENT_CHANGED"},
		{"no definition", "vm.start", "pending,transient", "fail VM_NOT_PERSISTENT"},
		{"its node is gone", "vm.start", "pending,nonode", "fail NODE_NOT_FOUND"},
		{"another node has it, perhaps not for long", "vm.start", "pending,holds b", "note waiting to begin: VM web is on b too, as far as is known"},
		{"another node has it", "vm.start", "pending,holds b,age 11s", "fail VM_ELSEWHERE"},
		{"another node that is off had it", "vm.start", "pending,holds b,off b", "begin"},
		{"another node that is not heard had it", "vm.start", "pending,holds b,down b,age 11s", "fail VM_ELSEWHERE"},
		{"what is stopped may be elsewhere too", "vm.destroy", "pending,holds b", "begin"},
		{"autostart is turned off though it is in conflict by now", "vm.autostart", "pending,conflict,holds b", "begin"},

		{"at work", "vm.shutdown", "running,task running", "note waiting for the guest to shut down on a"},
		{"at work on a node that is not heard", "vm.start", "running,task assigned,down a", "note starting on a: waiting for the agent of a, which is not heard"},
		{"cancelled, the task is written", "vm.start", "running,task assigned,cancel", "cancel-task"},
		{"cancelling", "vm.start", "running,task assigned,cancel,asked,down a", "note cancelling: waiting for the agent of a, which is not heard"},
		{"done", "vm.start", "running,task succeeded", "succeed"},
		{"done before it could be cancelled", "vm.start", "running,task succeeded,cancel", "succeed"},
		{"refused by the agent", "vm.start", "running,task failed VM_PAUSED", "fail VM_PAUSED"},
		{"cancelled by the agent", "vm.shutdown", "running,task cancelled CANCELLED,cancel", "cancelled CANCELLED"},
		{"at work on a node that is said to be off", "vm.shutdown", "running,task accepted,off a", "node-off"},
		{"cancelled on a node that is said to be off", "vm.shutdown", "running,task assigned,cancel,asked,off a", "node-off"},
		{"ended as its node is off", "vm.start", "running,task failed NODE_OFF,off a", "fail NODE_OFF"},
		{"its lost copy is elsewhere", "vm.start", "pending,holds b,lost b,age 11s", "begin"},
		{"its lost copy was elsewhere", "vm.start", "pending,holds b,gone b,age 11s", "fail VM_ELSEWHERE"},
		{"its task is missing", "vm.start", "running", "fail BROKEN_RECORD"},
	} {
		t.Run(c.name, func(t *testing.T) {
			snapshot, entry := records(t, c.kind, c.facts)
			s := decide(snapshot, entry, moment{now: noon, term: task.Term{Revision: 8}})
			got := ""
			if s != nil {
				got = string(s.name)
				if s.name == stepNote {
					got += " " + s.op.GetStep()
				}
				if s.op.GetErrorCode() != "" {
					got += " " + s.op.GetErrorCode()
				}
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if s != nil && task.OpEnded(s.op.GetState()) != (len(s.change.Deletes) == 1) {
				t.Errorf("it is %s and frees %v", s.op.GetState(), s.change.Deletes)
			}
		})
	}
}

// TestTheTaskSaysAll: what the agent is told, and that nothing is said twice.
func TestTheTaskSaysAll(t *testing.T) {
	snapshot, entry := records(t, "vm.shutdown", "pending")
	s := decide(snapshot, entry, moment{now: noon, term: task.Term{Revision: 8}})
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
		t.Fatal(err)
	}
	order := spec.GetVmPower()
	if order.GetAction() != agentv1.PowerAction_POWER_ACTION_SHUTDOWN || order.GetVmUuid() != vmID || order.GetGeneration() != 4 ||
		order.GetTimeoutMs() != 9000 || !order.GetForce() || s.task.GetNode() != "a" || s.task.GetResource() != "vm/"+vmID ||
		s.task.GetId() != "op-1/1/vm-shutdown" {
		t.Errorf("%v: %v", s.task, order)
	}
	snapshot, entry = records(t, "vm.start", "running,task running")
	entry.Value.Step = "starting on a"
	if s := decide(snapshot, entry, moment{now: noon}); s != nil {
		t.Errorf("%s says again %q", s.name, s.op.GetStep())
	}
}
