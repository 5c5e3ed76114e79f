package power

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// settleTime is how long after it was asked for a start waits for a node that
// the VM may just have left to say so.
const settleTime = 10 * time.Second

// order is what is particular to one kind of operation.
type order struct {
	action agentv1.PowerAction
	task   string // its task's kind
	doing  string // while it is at work
}

// orders are the kinds of operations that this controller advances.
var orders = map[string]order{ //nolint:gochecknoglobals // a table, never changed
	"vm.start":     {agentv1.PowerAction_POWER_ACTION_START, "vm-start", "starting on "},
	"vm.shutdown":  {agentv1.PowerAction_POWER_ACTION_SHUTDOWN, "vm-shutdown", "waiting for the guest to shut down on "},
	"vm.destroy":   {agentv1.PowerAction_POWER_ACTION_DESTROY, "vm-destroy", "ending its QEMU on "},
	"vm.autostart": {agentv1.PowerAction_POWER_ACTION_TAKE_AUTOSTART, "vm-autostart", "turning libvirt's autostart off on "},
}

func ours(kind string) bool {
	_, ok := orders[kind]
	return ok
}

// moment is what a decision needs besides the records.
type moment struct {
	now  time.Time
	term task.Term
}

// stepName names a step, for logs and failpoints.
type stepName string

const (
	stepBegin     stepName = "begin"
	stepNote      stepName = "note"
	stepCancel    stepName = "cancel-task"
	stepSucceed   stepName = "succeed"
	stepFail      stepName = "fail"
	stepCancelled stepName = "cancelled"
	stepOff       stepName = "node-off"
)

// step is one transaction of one operation.
type step struct {
	name      stepName
	operation string
	log       string
	change    store.Change

	// What the change writes, for those who look at a step.
	op   *storev1.Operation
	task *storev1.Task
}

// about is what a line about the step tells.
func (s *step) about(more ...any) []any {
	return store.OperationIDs(s.op).Args(append([]any{"step", s.name}, more...)...)
}

// decision is one operation with all that is decided on.
type decision struct {
	moment
	order
	snapshot *cluster.Snapshot
	entry    cluster.Entry[*storev1.Operation]
	op       *storev1.Operation // a copy: what the step will write
	p        *storev1.Power     // of op
}

// decide gives the next step of an operation; nil: there is none yet. It is pure.
func decide(s *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], at moment) *step {
	op := proto.CloneOf(entry.Value)
	d := &decision{moment: at, order: orders[op.GetKind()], snapshot: s, entry: entry, op: op, p: op.GetPower()}
	switch {
	case d.p.GetVmUuid() == "" || d.p.GetNode() == "":
		d.p = &storev1.Power{}
		return d.fail("BROKEN_RECORD", "the operation does not say which VM it is about, or where that is")
	case op.GetState() == task.OpPending && op.GetCancelRequested():
		return d.cancelled("cancelled as asked; nothing was done")
	case op.GetState() == task.OpPending:
		return d.begin()
	}
	t, ok := s.Tasks[d.taskID()]
	switch {
	case !ok:
		return d.fail("BROKEN_RECORD", "the operation's task is missing from the records")
	case task.Ended(task.State(t.Value.GetState())):
		return d.end(t.Value)
	case s.ConfirmedOff(d.p.GetNode()):
		return d.off(t)
	case op.GetCancelRequested() && !t.Value.GetCancelRequested():
		return d.cancelTask(t)
	case op.GetCancelRequested():
		return d.note("cancelling" + d.unheard())
	}
	return d.note(d.doing + d.p.GetNode() + d.unheard())
}

// begin writes the operation's task, unless there is a reason not to, or not yet.
func (d *decision) begin() *step {
	vm, exists := d.snapshot.VMs[d.p.GetVmUuid()]
	if _, ok := d.snapshot.Nodes[d.p.GetNode()]; !ok {
		return d.fail("NODE_NOT_FOUND", fmt.Sprintf("node %s is not in the records any more", d.p.GetNode()))
	}
	if d.action != agentv1.PowerAction_POWER_ACTION_TAKE_AUTOSTART {
		if code, why := d.refusal(vm.Value, exists); code != "" {
			return d.fail(code, why)
		}
	}
	if why := d.wait(); why != "" {
		return d.note(why)
	}
	if d.action == agentv1.PowerAction_POWER_ACTION_START {
		if waited := d.snapshot.Unheard(); len(waited) > 0 {
			return d.fail(cluster.CodeRecovering, cluster.MayRun(waited))
		}
		if d.snapshot.Recovering() {
			return d.note("waiting to begin: the cluster was restored from a backup, and what its nodes run is being taken over")
		}
		if others := d.others(); len(others) > 0 {
			why := "VM " + d.name() + " is on " + strings.Join(others, ", ") + " too, as far as is known"
			if d.now.Sub(d.op.GetCreatedAt().AsTime()) < settleTime {
				return d.note("waiting to begin: " + why)
			}
			return d.fail("VM_ELSEWHERE", why+": look at both with virsh, and undefine the one that should not be")
		}
	}
	return d.write(vm)
}

// refusal is why a VM cannot be started or stopped at all; "": it can.
func (d *decision) refusal(vm *storev1.VM, exists bool) (code, why string) {
	var domain agentv1.Domain
	switch {
	case !exists, d.op.GetTenant() != "" && cluster.TenantOf(vm) != d.op.GetTenant():
		return "VM_NOT_FOUND", fmt.Sprintf("VM %s is not in the records any more", d.name())
	case len(vm.GetConflictNodes()) > 0:
		return "VM_CONFLICT", fmt.Sprintf("VM %s is reported running by %s: look at all with virsh, and destroy the ones that should not be",
			d.name(), strings.Join(vm.GetConflictNodes(), " and "))
	case vm.GetNode() != d.p.GetNode() || vm.GetGeneration() != d.p.GetGeneration():
		return "PLACEMENT_CHANGED", fmt.Sprintf("VM %s belongs to %s (placement %d) by now; this was asked for %s (placement %d)",
			d.name(), vm.GetNode(), vm.GetGeneration(), d.p.GetNode(), d.p.GetGeneration())
	case proto.Unmarshal(vm.GetDomain(), &domain) != nil:
		return "BROKEN_RECORD", fmt.Sprintf("the record of VM %s cannot be read", d.name())
	case !domain.GetPersistent():
		return "VM_NOT_PERSISTENT", fmt.Sprintf("VM %s has no persistent definition: define it first (virsh define)", d.name())
	}
	return "", ""
}

// wait is what has to pass before anything is written; "": nothing has.
func (d *decision) wait() string {
	if why := d.unheard(); why != "" {
		return strings.TrimPrefix(why, ": ")
	}
	if d.snapshot.Statuses[d.p.GetNode()].Value.GetLibvirtDown() {
		return "waiting for libvirt of " + d.p.GetNode() + ", which does not answer"
	}
	return ""
}

// others are the nodes, besides its own, that have the VM as they last said;
// one that is said to be powered off has nothing that runs, and a copy that is lost
// cannot write.
func (d *decision) others() []string {
	var found []string
	for id, status := range d.snapshot.Statuses {
		if id != d.p.GetNode() && !d.snapshot.ConfirmedOff(id) && !d.snapshot.HasLost(d.p.GetVmUuid(), id) && slices.Contains(status.Value.GetDomains(), d.p.GetVmUuid()) {
			found = append(found, id)
		}
	}
	slices.Sort(found)
	return found
}

// write writes the operation's only task.
func (d *decision) write(vm cluster.Entry[*storev1.VM]) *step {
	spec, err := proto.Marshal(&agentv1.TaskSpec{Kind: &agentv1.TaskSpec_VmPower{VmPower: &agentv1.VMPower{
		Action: d.action, VmUuid: d.p.GetVmUuid(), VmName: d.p.GetVmName(), Generation: d.p.GetGeneration(),
		TimeoutMs: d.p.GetTimeoutMs(), Force: d.p.GetForce(),
	}}})
	if err != nil {
		return d.fail("INTERNAL", "the task could not be encoded")
	}
	t := &storev1.Task{
		Id: d.taskID(), OperationId: d.op.GetId(), Node: d.p.GetNode(), Resource: "vm/" + d.p.GetVmUuid(),
		State: task.Recorded(task.Assigned), Term: d.term.Record(), Spec: spec, CreatedAt: timestamppb.New(d.now),
		Traceparent: obs.Below(d.op.GetTraceparent(), d.op.GetId()),
	}
	d.op.State, d.op.StartedAt, d.op.Step = task.OpRunning, timestamppb.New(d.now), d.doing+d.p.GetNode()
	s := d.commit(stepBegin, fmt.Sprintf("%s of %s on %s", d.op.GetKind(), d.name(), d.p.GetNode()))
	s.task = t
	s.change.Require = append(s.change.Require, store.Absent(store.TaskKey(t.GetId())))
	if d.action != agentv1.PowerAction_POWER_ACTION_TAKE_AUTOSTART {
		// What it was judged by must still be so.
		s.change.Require = append(s.change.Require, store.Unchanged(store.VMKey(d.p.GetVmUuid()), vm.ModRevision))
	}
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	return s
}

func (d *decision) taskID() string { return d.op.GetId() + "/1/" + d.task }

func (d *decision) name() string { return cmp.Or(d.p.GetVmName(), d.p.GetVmUuid()) }

// unheard says that the node's agent is not heard, for the operation's step.
func (d *decision) unheard() string {
	switch d.snapshot.Statuses[d.p.GetNode()].Value.GetLiveness() {
	case storev1.NodeLiveness_NODE_LIVENESS_ONLINE, storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return ""
	}
	return ": waiting for the agent of " + d.p.GetNode() + ", which is not heard"
}
