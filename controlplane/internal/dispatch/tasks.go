package dispatch

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// sendTasks sends a session the node's open tasks that it was not sent yet,
// the wishes that they end, and what the other side of each says.
func (l *leader) sendTasks(s *session, snapshot *cluster.Snapshot) {
	for _, entry := range snapshot.OpenTasksOn(s.node) {
		t := entry.Value
		id := t.GetId()
		if !s.sent.tasks[id] {
			m, err := wire(t, s.journal)
			if err != nil {
				l.log.Error("task not sent: its record cannot be read", store.TaskIDs(t).Args("error", err)...)
				continue
			}
			s.sent.tasks[id] = true
			l.log.Info("task sent", store.TaskIDs(t).Args("node", s.node, "observe_only", m.GetObserveOnly())...)
			s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_Task{Task: m}})
		}
		if t.GetCancelRequested() && !s.sent.cancels[id] {
			s.sent.cancels[id] = true
			s.cancel(id)
		}
		if side := l.otherSide(snapshot, t); side != nil && !proto.Equal(side, s.sent.sides[id]) {
			s.sent.sides[id] = side
			s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_PeerSide{PeerSide: &agentv1.PeerSide{TaskId: id, Side: side}}})
		}
	}
}

func (s *session) cancel(id string) {
	s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_CancelTask{CancelTask: &agentv1.CancelTask{TaskId: id}}})
}

// wire is a task as it is sent to an agent with that journal.
func wire(t *storev1.Task, journal string) (*agentv1.Task, error) {
	spec := &agentv1.TaskSpec{}
	if err := proto.Unmarshal(t.GetSpec(), spec); err != nil {
		return nil, err
	}
	return &agentv1.Task{
		Id: t.GetId(), OperationId: t.GetOperationId(), Resource: t.GetResource(), Spec: spec,
		Term:        task.TermOf(t.GetTerm()).Wire(),
		ObserveOnly: t.GetJournalId() != "" && t.GetJournalId() != journal,
		Traceparent: obs.Below(t.GetTraceparent(), t.GetId()),
	}, nil
}

// otherSide is what the other task of the same attempt last said of its side;
// nil: nothing, or there is none.
func (l *leader) otherSide(snapshot *cluster.Snapshot, t *storev1.Task) *agentv1.Side {
	attempt := attemptOf(t.GetId())
	for _, entry := range snapshot.TasksOf(t.GetOperationId()) {
		other := entry.Value
		if other.GetId() == t.GetId() || attemptOf(other.GetId()) != attempt {
			continue
		}
		if task.Ended(task.State(other.GetState())) {
			return recordedSide(other) // also where it was ended without its agent
		}
		l.mu.Lock()
		side := l.sides[other.GetId()]
		l.mu.Unlock()
		if side == nil {
			side = recordedSide(other)
		}
		return side
	}
	return nil
}

// attemptOf is the id without its last part.
func attemptOf(id string) string { return id[:max(0, strings.LastIndexByte(id, '/'))] }

// recordedSide is the side that a task's record tells.
func recordedSide(t *storev1.Task) *agentv1.Side {
	r := &agentv1.TaskReport{Progress: &agentv1.TaskProgress{}, Outcome: &agentv1.TaskOutcome{}}
	if proto.Unmarshal(t.GetProgress(), r.GetProgress()) != nil || proto.Unmarshal(t.GetOutcome(), r.GetOutcome()) != nil {
		return nil
	}
	return sideOf(r)
}

// sideOf is the side that a report tells; nil: none.
func sideOf(r *agentv1.TaskReport) *agentv1.Side {
	if side := r.GetOutcome().GetSide(); side != nil {
		return side
	}
	switch k := r.GetProgress().GetKind().(type) {
	case *agentv1.TaskProgress_MigrateReceive:
		return k.MigrateReceive.GetSide()
	case *agentv1.TaskProgress_MigrateSend:
		return k.MigrateSend.GetSide()
	}
	return nil
}
