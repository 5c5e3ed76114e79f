package power

import (
	"cmp"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// commit makes the transaction that writes the operation as it now stands in d,
// on the ground that nobody changed it meanwhile.
func (d *decision) commit(name stepName, log string) *step {
	key := store.OperationKey(d.op.GetId())
	return &step{
		name: name, operation: d.op.GetId(), log: log, op: d.op,
		change: store.Change{
			Require: []store.Condition{store.Unchanged(key, d.entry.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, d.op)},
		},
	}
}

// note writes the operation's step where it says something new.
func (d *decision) note(text string) *step {
	if d.op.GetStep() == text {
		return nil
	}
	d.op.Step = text
	return d.commit(stepNote, text)
}

// cancelTask asks for the task's end. One that is begun may end otherwise.
func (d *decision) cancelTask(entry cluster.Entry[*storev1.Task]) *step {
	t := proto.CloneOf(entry.Value)
	t.CancelRequested = true
	d.op.Step = "cancelling" + d.unheard()
	s := d.commit(stepCancel, "cancelling")
	s.task = t
	s.change.Require = append(s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), entry.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	return s
}

// codeOff is the code of a task that was ended without its agent, on an operator's
// word that its node is powered off, and of its operation.
const codeOff = "NODE_OFF"

// off ends the task of a node that an operator says is powered off: nothing runs
// there, and the VM must not be held for it, as it may be wanted elsewhere.
func (d *decision) off(entry cluster.Entry[*storev1.Task]) *step {
	node := d.snapshot.Nodes[d.p.GetNode()]
	why := fmt.Sprintf("%s is powered off, by the word of %s (%s)", d.p.GetNode(), node.Value.GetOffConfirmedBy(), node.Value.GetOffReason())
	outcome, err := proto.Marshal(&agentv1.TaskOutcome{ErrorCode: codeOff, ErrorMessage: why})
	if err != nil {
		return d.note(why)
	}
	t := proto.CloneOf(entry.Value)
	t.State, t.Outcome, t.EndedAt = task.Recorded(task.Failed), outcome, timestamppb.New(d.now)
	d.op.Step = why
	s := d.commit(stepOff, "ending "+t.GetId()+": "+why)
	s.task = t
	// A sign of life that came meanwhile makes the word void.
	s.change.Require = append(
		s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), entry.ModRevision),
		store.Unchanged(store.NodeKey(d.p.GetNode()), node.ModRevision),
		store.Unchanged(store.StatusKey(d.p.GetNode()), d.snapshot.Statuses[d.p.GetNode()].ModRevision),
	)
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	return s
}

// end ends the operation as its task has ended.
func (d *decision) end(t *storev1.Task) *step {
	var outcome agentv1.TaskOutcome
	if err := proto.Unmarshal(t.GetOutcome(), &outcome); err != nil {
		return d.fail("BROKEN_RECORD", "what came of the operation's task cannot be read")
	}
	switch task.State(t.GetState()) {
	case task.Succeeded:
		return d.finish(stepSucceed, task.OpSucceeded, d.op.GetKind()+" of "+d.name()+" is done")
	case task.Cancelled:
		return d.cancelled(cmp.Or(outcome.GetErrorMessage(), "cancelled as asked"))
	}
	return d.fail(cmp.Or(outcome.GetErrorCode(), "INTERNAL"), cmp.Or(outcome.GetErrorMessage(), "the agent gave no reason"))
}

// finish ends the operation and frees what it held.
func (d *decision) finish(name stepName, state task.OpState, log string) *step {
	d.op.State = state
	d.op.EndedAt = timestamppb.New(d.now)
	d.op.Step = ""
	s := d.commit(name, log)
	for _, resource := range d.op.GetResources() {
		s.change.Deletes = append(s.change.Deletes, store.InUseKey(resource))
	}
	return s
}

func (d *decision) fail(code, message string) *step {
	d.op.ErrorCode, d.op.ErrorMessage = code, message
	d.op.ErrorContext = map[string]string{"vm": d.p.GetVmUuid(), "node": d.p.GetNode()}
	return d.finish(stepFail, task.OpFailed, "failed: "+message)
}

func (d *decision) cancelled(message string) *step {
	d.op.ErrorCode, d.op.ErrorMessage = "CANCELLED", message
	return d.finish(stepCancelled, task.OpCancelled, message)
}
