package failover

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// commit makes the transaction that writes the operation as it now stands in d,
// on the ground that nobody changed it meanwhile.
func (d *decision) commit(name stepName, log string) *step {
	key := store.OperationKey(d.op.GetId())
	return &step{
		name: name, about: d.op.GetId(), log: log, op: d.op,
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

// order writes a task for a node's agent with the operation, on the ground that
// there is none of that attempt yet.
func (d *decision) order(name stepName, attempt, kind, node, resource string, spec *agentv1.TaskSpec, doing string) *step {
	t := &storev1.Task{
		Id: d.taskID(attempt, kind), OperationId: d.op.GetId(), Node: node, Resource: resource,
		State: task.Recorded(task.Assigned), Term: d.term.Record(), Spec: encoded(spec), CreatedAt: timestamppb.New(d.now),
		Traceparent: obs.Below(d.op.GetTraceparent(), d.op.GetId()),
	}
	d.op.Step = doing
	s := d.commit(name, doing)
	s.adds(t)
	return s
}

// adds adds a new task to a step.
func (s *step) adds(t *storev1.Task) {
	s.task = t
	s.change.Require = append(s.change.Require, store.Absent(store.TaskKey(t.GetId())))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
}

// cancelTask asks for a task's end. One that is begun may end otherwise.
func (d *decision) cancelTask(h *half, why string) *step {
	t := proto.CloneOf(h.task)
	t.CancelRequested = true
	d.op.Step = why + unheard(d.snapshot, t.GetNode())
	s := d.commit(stepCancelTask, why+": "+t.GetId())
	s.task = t
	s.change.Require = append(s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), h.entry.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	return s
}

// finish ends the operation and frees what it held.
func (d *decision) finish(name stepName, state task.OpState, log string) *step {
	d.op.State, d.op.EndedAt, d.op.Step = state, timestamppb.New(d.now), ""
	s := d.commit(name, log)
	for _, resource := range d.op.GetResources() {
		s.change.Deletes = append(s.change.Deletes, store.InUseKey(resource))
	}
	return s
}

func (d *decision) fail(code, message string) *step {
	d.because(code, message)
	return d.finish(stepFail, task.OpFailed, "failed: "+message)
}

func (d *decision) cancelled(message string) *step {
	d.because(codeCancelled, message)
	return d.finish(stepCancelled, task.OpCancelled, message)
}

const codeCancelled = "CANCELLED"

// because notes why the operation ends, or is being undone.
func (d *decision) because(code, message string) {
	d.op.ErrorCode, d.op.ErrorMessage = code, message
	d.op.ErrorContext = map[string]string{"vm": d.f.GetVmUuid(), "node": d.f.GetSource()}
	if d.f.GetTarget() != "" {
		d.op.ErrorContext["target"] = d.f.GetTarget()
	}
	if evidence := d.evidence(); len(evidence.GetBlocklisted()) > 0 {
		d.op.ErrorContext["blocklisted"] = strings.Join(evidence.GetBlocklisted(), ",")
	}
}

// encoded is deterministic; nil for what cannot be encoded: invalid UTF-8 only,
// which the wire does not let through.
func encoded(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}
