// Package traces records the spans of operations, of their steps and of their
// tasks while its replica leads, where traces are collected at all. It reads the
// snapshot and nothing else, so that it serves every kind of operation and holds
// up none.
//
// The span of an operation or a task is recorded when the record says that it has
// ended; its id follows from the record's (obs.Piece). A leader that takes over
// therefore goes on with the same span, and records anew what ended shortly before
// its election: a former leader may have died before it could, and what is
// recorded twice is the same twice. The spans of steps are this leader's own: one
// that was at work when a leader was killed has none of that leader.
package traces

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// lookEvery is how often it is looked for what has ended.
	lookEvery = 500 * time.Millisecond
	// again is how long before its election a leader records anew what ended.
	again = time.Minute
	// mostSteps is how many steps of an operation have spans.
	mostSteps = 100
)

// View is where the snapshot comes from (store.View).
type View interface {
	Current() *cluster.Snapshot
	Changed() <-chan struct{}
}

// Recorder records spans. Tracing must not be nil.
type Recorder struct {
	View    View
	Tracing *obs.Tracing
}

// Lead records until ctx ends; it then returns nil.
func (r *Recorder) Lead(ctx context.Context, l election.Leadership) error {
	s := &stint{
		tracing: r.Tracing, term: l.Term.String(), began: time.Now(),
		steps: map[string]*step{}, told: map[string]time.Time{},
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := r.View.Changed()
		s.follow(ctx, r.View.Current(), time.Now())
		select {
		case <-changed:
		case now := <-tick.C:
			s.tell(ctx, r.View.Current(), now)
		case <-ctx.Done():
			now := time.Now()
			s.tell(ctx, r.View.Current(), now)
			s.leave(now)
			return nil
		}
	}
}

// stint is one term's work.
type stint struct {
	tracing *obs.Tracing
	term    string
	began   time.Time
	// steps are those at work, by their operations' ids.
	steps map[string]*step
	// told is when what was recorded had ended, by the ids of operations and
	// tasks; what has been told for long is no longer looked at.
	told map[string]time.Time
}

// step is the step that an operation is at.
type step struct {
	name  string
	count int
	span  obs.Span
}

// follow opens and ends the spans of steps.
func (s *stint) follow(ctx context.Context, snapshot *cluster.Snapshot, now time.Time) {
	for _, entry := range snapshot.ActiveOperations() {
		op := entry.Value
		if !s.tracing.Recorded(op.GetTraceparent()) {
			continue
		}
		name, was := phase(op.GetStep()), s.steps[op.GetId()]
		switch {
		case was == nil:
			was = &step{}
			s.steps[op.GetId()] = was
		case was.name == name || was.count >= mostSteps:
			continue
		}
		was.span.EndAt(now, "")
		*was = step{name: name, count: was.count + 1}
		if name == "" {
			continue
		}
		was.span = s.tracing.Open(ctx, obs.Piece{
			Traceparent: obs.Below(op.GetTraceparent(), op.GetId()), Name: "step: " + name, Begun: now,
		})
		was.span.Set("debvisor.operation_id", op.GetId())
		was.span.Set("debvisor.term", s.term)
		if started := op.GetStartedAt(); started != nil && started.AsTime().Before(s.began) && was.count == 1 {
			was.span.Set("debvisor.resumed", "true")
		}
	}
	for id, was := range s.steps {
		op := snapshot.Operations[id].Value
		if op == nil || task.OpEnded(op.GetState()) {
			was.span.EndAt(now, "")
			delete(s.steps, id)
		}
	}
}

// leave ends the spans of steps that another leader goes on with.
func (s *stint) leave(now time.Time) {
	for id, was := range s.steps {
		was.span.Set("debvisor.interrupted", "this replica no longer leads")
		was.span.EndAt(now, "")
		delete(s.steps, id)
	}
}

// phase is what of an operation's step stays the same for a while: what follows
// a comma or a colon tells how it goes.
func phase(text string) string {
	if i := strings.IndexAny(text, ",:;("); i >= 0 {
		text = text[:i]
	}
	return strings.TrimSpace(text)
}

// tell records the operations and tasks that have ended.
func (s *stint) tell(ctx context.Context, snapshot *cluster.Snapshot, now time.Time) {
	since := now.Add(-again)
	for id, at := range s.told {
		if at.Before(since) {
			delete(s.told, id)
		}
	}
	for id, entry := range snapshot.Tasks {
		if t := entry.Value; task.Ended(task.State(t.GetState())) && s.due(id, t.GetTraceparent(), t.GetEndedAt(), since) {
			s.task(ctx, t)
		}
	}
	for id, entry := range snapshot.Operations {
		if op := entry.Value; task.OpEnded(op.GetState()) && s.due(id, op.GetTraceparent(), op.GetEndedAt(), since) {
			s.operation(ctx, op)
		}
	}
}

// due tells whether what ended is to be recorded, and notes that it is.
func (s *stint) due(id, traceparent string, ended *timestamppb.Timestamp, since time.Time) bool {
	if ended == nil || ended.AsTime().Before(since) || !s.tracing.Recorded(traceparent) {
		return false
	}
	if _, done := s.told[id]; done {
		return false
	}
	s.told[id] = ended.AsTime()
	return true
}

func (s *stint) operation(ctx context.Context, op *storev1.Operation) {
	span := s.tracing.Open(ctx, obs.Piece{
		Of: op.GetId(), Traceparent: op.GetTraceparent(), Name: "operation " + op.GetKind(), Begun: op.GetCreatedAt().AsTime(),
	})
	span.Set("debvisor.operation_id", op.GetId())
	span.Set("debvisor.parent_operation_id", op.GetParent())
	span.Set("debvisor.resources", strings.Join(op.GetResources(), " "))
	if id := op.GetTraceId(); id != obs.TraceOf(op.GetTraceparent()) {
		span.Set("debvisor.trace_id", id) // the caller's own, which the logs tell
	}
	span.EndAt(op.GetEndedAt().AsTime(), op.GetErrorCode())
}

func (s *stint) task(ctx context.Context, t *storev1.Task) {
	outcome, code := &agentv1.TaskOutcome{}, ""
	if err := proto.Unmarshal(t.GetOutcome(), outcome); err != nil {
		code = "UNREADABLE_OUTCOME"
	}
	if outcome.GetErrorCode() != "" {
		code = outcome.GetErrorCode()
	}
	kind := t.GetId()[strings.LastIndexByte(t.GetId(), '/')+1:]
	span := s.tracing.Open(ctx, obs.Piece{
		Of: t.GetId(), Traceparent: t.GetTraceparent(), Name: "task " + kind, Begun: t.GetCreatedAt().AsTime(),
	})
	span.Set("debvisor.operation_id", t.GetOperationId())
	span.Set("debvisor.task_id", t.GetId())
	span.Set("debvisor.node", t.GetNode())
	span.EndAt(t.GetEndedAt().AsTime(), code)
}
