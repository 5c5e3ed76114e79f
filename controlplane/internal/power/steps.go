package power

import (
	"cmp"

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
