package recovery

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
	"github.com/debvisor/debvisor/shared/task"
)

// codeRestored is the code of operations and tasks of which a backup does not
// tell the end.
const codeRestored = "RESTORED"

// watch is what a leader remembers of the return. Losing it costs time only.
type watch struct {
	// heard is since when each node is known to have been heard.
	heard map[string]time.Time
	// quiet is since when nothing is waited for; zero: something is.
	quiet time.Time
}

// look notes what has come about.
func (w *watch) look(s *cluster.Snapshot, now time.Time) {
	for _, node := range s.Restore.Value.GetHeardNodes() {
		if _, known := w.heard[node]; !known {
			w.heard[node] = now
		}
	}
	waits := !s.Recovering() || s.Unconfirmed() || len(s.Unheard()) > 0 ||
		slices.ContainsFunc(s.ActiveOperations(), func(e cluster.Entry[*storev1.Operation]) bool { return e.Value.GetRestored() })
	switch {
	case waits:
		w.quiet = time.Time{}
	case w.quiet.IsZero():
		w.quiet = now
	}
}

// over tells whether the return has come to its end.
func (w *watch) over(s *cluster.Snapshot, now time.Time) bool {
	w.look(s, now)
	return s.Recovering() && !w.quiet.IsZero() && now.Sub(w.quiet) >= settleTime
}

// end gives the change that ends an operation of the backup, and what was seen
// of it; false: what became of it may still be told.
func (w *watch) end(s *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], now time.Time) (store.Change, string, bool) {
	var change store.Change
	var seen []string
	for _, t := range s.TasksOf(entry.Value.GetId()) {
		if task.Ended(task.State(t.Value.GetState())) {
			seen = append(seen, t.Value.GetId()+" on "+t.Value.GetNode()+": "+outcome(t.Value))
			continue
		}
		why, unknown := w.unknown(s, t.Value, now)
		if !unknown {
			return store.Change{}, "", false
		}
		seen = append(seen, t.Value.GetId()+" on "+t.Value.GetNode()+": "+why)
		change.Require = append(change.Require, store.Unchanged(store.TaskKey(t.Value.GetId()), t.ModRevision))
		change.Puts = append(change.Puts, store.PutProto(store.TaskKey(t.Value.GetId()), ended(t.Value, why, now)))
	}
	words := strings.Join(seen, "; ")
	next := proto.CloneOf(entry.Value)
	next.State, next.Step, next.EndedAt, next.ErrorCode = task.OpFailed, "", timestamppb.New(now), codeRestored
	next.ErrorMessage = "the cluster was restored from a backup that was taken while this was at work; look at what it was about. Its tasks: " +
		cmp.Or(words, "none were begun")
	change.Require = append(change.Require, store.Unchanged(store.OperationKey(next.GetId()), entry.ModRevision))
	change.Puts = append(change.Puts, store.PutProto(store.OperationKey(next.GetId()), next))
	for resource, holder := range s.InUse {
		if holder.Value == next.GetId() {
			change.Deletes = append(change.Deletes, store.InUseKey(resource))
		}
	}
	slices.Sort(change.Deletes)
	return change, words, true
}

// unknown tells that nobody will say what became of a task, and why.
func (w *watch) unknown(s *cluster.Snapshot, t *storev1.Task, now time.Time) (why string, unknown bool) {
	_, registered := s.Nodes[t.GetNode()]
	since, heard := w.heard[t.GetNode()]
	switch {
	case !registered:
		return "not known: the node is not in the records", true
	case s.ConfirmedOff(t.GetNode()):
		return "not known: the node is powered off, by the word of " + s.Nodes[t.GetNode()].Value.GetOffConfirmedBy(), true
	case heard && now.Sub(since) >= observeFor:
		return fmt.Sprintf("not known: the node has not said for %s what became of it", observeFor), true
	}
	return "", false
}

// outcome is what a task's record says of its end, in words.
func outcome(t *storev1.Task) string {
	var out agentv1.TaskOutcome
	word := strings.ToLower(strings.TrimPrefix(t.GetState().String(), "TASK_STATE_"))
	if proto.Unmarshal(t.GetOutcome(), &out) == nil && out.GetErrorCode() != "" {
		word += " (" + out.GetErrorCode() + ": " + out.GetErrorMessage() + ")"
	}
	return word
}

// ended is the record of a task of which nothing is known.
func ended(t *storev1.Task, why string, now time.Time) *storev1.Task {
	next := proto.CloneOf(t)
	next.State, next.EndedAt = task.Recorded(task.Failed), timestamppb.New(now)
	out, err := proto.Marshal(&agentv1.TaskOutcome{ErrorCode: codeRestored, ErrorMessage: why})
	if err == nil {
		next.Outcome = out
	}
	return next
}
