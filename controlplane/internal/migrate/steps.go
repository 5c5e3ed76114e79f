package migrate

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of an attempt's two tasks.
const (
	receiveKind = "migrate-receive"
	sendKind    = "migrate-send"
)

func (m *migration) taskID(kind string) string {
	return m.op.GetId() + "/" + strconv.FormatUint(uint64(m.m.GetAttempt()), 10) + "/" + kind
}

// half reads one of the attempt's tasks; nil where it is not written yet.
func (m *migration) half(kind string) (*half, error) {
	entry, ok := m.snapshot.Tasks[m.taskID(kind)]
	if !ok {
		return nil, nil //nolint:nilnil // absence is an answer here
	}
	h := &half{entry: entry, task: entry.Value}
	if err := proto.Unmarshal(h.task.GetProgress(), &h.progress); err != nil {
		return nil, fmt.Errorf("the progress of task %s cannot be read", h.task.GetId())
	}
	if err := proto.Unmarshal(h.task.GetOutcome(), &h.outcome); err != nil {
		return nil, fmt.Errorf("the outcome of task %s cannot be read", h.task.GetId())
	}
	return h, nil
}

// step makes the transaction that writes the operation as it now stands in m,
// on the ground that nobody changed it meanwhile.
func (m *migration) step(name stepName, log string) *step {
	key := store.OperationKey(m.op.GetId())
	return &step{
		name: name, operation: m.op.GetId(), log: log, op: m.op, errorCode: m.op.GetErrorCode(),
		change: store.Change{
			Require: []store.Condition{store.Unchanged(key, m.entry.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, m.op)},
		},
	}
}

// withTask adds a new task to a step.
func (m *migration) withTask(s *step, kind, node string, spec *agentv1.TaskSpec) *step {
	encoded, err := proto.Marshal(spec)
	if err != nil {
		return m.fail("INTERNAL", "a task could not be encoded")
	}
	t := &storev1.Task{
		Id: m.taskID(kind), OperationId: m.op.GetId(), Node: node, Resource: "vm/" + m.m.GetVmUuid(),
		State: task.Recorded(task.Assigned), Term: m.term.Record(), Spec: encoded, CreatedAt: timestamppb.New(m.now),
		Traceparent: obs.Below(m.op.GetTraceparent(), m.op.GetId()),
	}
	s.change.Require = append(s.change.Require, store.Absent(store.TaskKey(t.GetId())))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	s.task = t
	return s
}

func (m *migration) peerAddress(node string) string {
	return m.snapshot.Statuses[node].Value.GetPeerAddress()
}

// unheard says that a node's agent is not heard, for an operation's step.
func (m *migration) unheard(node string) string {
	status := m.snapshot.Statuses[node].Value
	if status.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		return ""
	}
	return ": waiting for the agent of " + node + ", which is not heard"
}

// note writes the operation's step where it says something new.
func (m *migration) note(text string) *step {
	if m.op.GetStep() == text {
		return nil
	}
	m.op.Step = text
	return m.step(stepProgress, text)
}

// progress copies the source's figures to the operation, once a second.
func (m *migration) progress() *step {
	waiting := m.unheard(m.m.GetSource()) + m.unheard(m.m.GetTarget())
	text := phase(m.send.progress.GetMigrateSend()) + waiting
	if m.m.GetSwitchedOver() {
		text = "switching over" + waiting
	}
	if m.op.GetCancelRequested() && !m.m.GetSwitchedOver() {
		text = "cancelling" + waiting
	}
	p := m.send.progress.GetMigrateSend()
	if p.GetBytesTotal() == 0 {
		if m.m.GetSwitchedOver() || m.op.GetCancelRequested() {
			return m.note(text)
		}
		return m.note("starting on " + m.m.GetSource() + waiting)
	}
	was := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(m.op.GetProgress(), was); err != nil {
		was.Reset()
	}
	now := figures(p)
	same := was.GetBytesDone() == now.GetBytesDone() && was.GetBytesTotal() == now.GetBytesTotal()
	since := was.GetUpdatedAt()
	soon := since != nil && m.now.Unix()-since.GetSeconds() < int64(progressEvery.Seconds())
	if m.op.GetStep() == text && (same || soon) {
		return nil
	}
	now.UpdatedAt = &debvisorv1.Timestamp{Seconds: m.now.Unix(), Nanos: int32(m.now.Nanosecond())}
	encoded, err := proto.Marshal(now)
	if err != nil {
		return m.note(text)
	}
	m.op.Progress, m.op.Step = encoded, text
	if since == nil && !m.m.GetSwitchedOver() {
		return m.step(stepCopying, "memory is being copied")
	}
	return m.step(stepProgress, text)
}

// stalledAfter is how long nothing may be copied before the operation says so.
const stalledAfter = 10 * time.Second

// phase tells what the source is at.
func phase(p *agentv1.MigrateSendProgress) string {
	text := cmp.Or(p.GetPhase(), "copying memory")
	switch stalled := time.Duration(p.GetStalledMs()) * time.Millisecond; {
	case stalled >= stalledAfter:
		text += fmt.Sprintf(", nothing copied for %d s", int(stalled.Seconds()))
	case p.GetPausedAtDeadline():
		text += ", the guest paused at the deadline"
	case p.GetThrottlePercent() > 0:
		text += fmt.Sprintf(", the guest slowed down by %d %%", p.GetThrottlePercent())
	}
	return text
}

func figures(p *agentv1.MigrateSendProgress) *debvisorv1.OperationProgress {
	out := &debvisorv1.OperationProgress{
		BytesTotal: p.GetBytesTotal(), BytesDone: p.GetBytesDone(), BytesPerSecond: p.GetBytesPerSecond(),
		DirtyBytesPerSecond: p.GetDirtyBytesPerSecond(),
	}
	if total := p.GetBytesTotal(); total > 0 {
		out.Percent = 100 * float64(total-min(p.GetBytesRemaining(), total)) / float64(total)
	}
	if gain := p.GetBytesPerSecond(); gain > p.GetDirtyBytesPerSecond() {
		out.EtaMs = 1000 * p.GetBytesRemaining() / (gain - p.GetDirtyBytesPerSecond())
	}
	return out
}

// finish ends the operation and frees what it held.
func (m *migration) finish(name stepName, state task.OpState, log string) *step {
	m.op.State = state
	m.op.EndedAt = timestamppb.New(m.now)
	m.op.Step = ""
	m.m.Right = nil
	s := m.step(name, log)
	for _, resource := range m.op.GetResources() {
		s.change.Deletes = append(s.change.Deletes, store.InUseKey(resource))
	}
	return s
}

// succeed moves the placement: the target runs the VM, the source has let go.
func (m *migration) succeed() *step {
	m.m.DowntimeMs = m.receive.outcome.GetDowntimeMs()
	m.m.Bytes = m.send.outcome.GetBytes()
	m.m.DurationMs = uint64(max(m.now.Sub(m.op.GetStartedAt().AsTime()).Milliseconds(), 0))
	entry := m.snapshot.VMs[m.m.GetVmUuid()]
	vm := &storev1.VM{Uuid: m.m.GetVmUuid(), Name: m.m.GetVmName()}
	if entry.Value != nil {
		vm = proto.CloneOf(entry.Value)
	}
	vm.Node = m.m.GetTarget()
	vm.Generation++
	full := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(m.op.GetProgress(), full); err == nil {
		full.Percent, full.EtaMs = 100, 0
		if encoded, err := proto.Marshal(full); err == nil {
			m.op.Progress = encoded
		}
	}
	s := m.finish(stepSucceed, task.OpSucceeded, fmt.Sprintf("%s runs on %s", m.m.GetVmName(), m.m.GetTarget()))
	s.change.Require = append(s.change.Require, store.Unchanged(store.VMKey(vm.GetUuid()), entry.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.VMKey(vm.GetUuid()), vm))
	s.vm = vm
	return s
}

func (m *migration) fail(code, message string) *step {
	return m.failWith(code, message, map[string]string{})
}

// failWith is fail with more context, which it takes over.
func (m *migration) failWith(code, message string, about map[string]string) *step {
	m.op.ErrorCode, m.op.ErrorMessage = code, message
	about["vm"] = m.m.GetVmUuid()
	for key, node := range map[string]string{"source": m.m.GetSource(), "target": m.m.GetTarget()} {
		if node != "" { // else the planner was to choose
			about[key] = node
		}
	}
	m.op.ErrorContext = about
	return m.finish(stepFail, task.OpFailed, "failed: "+message)
}

func (m *migration) cancelled() *step {
	m.op.ErrorCode, m.op.ErrorMessage = "CANCELLED", fmt.Sprintf("cancelled as asked; the VM stays on %s", m.m.GetSource())
	return m.finish(stepCancelled, task.OpCancelled, "cancelled")
}
