package worker

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// execute runs one task to its end, or until ctx ends or the journal breaks.
func (w *Worker) execute(ctx context.Context, id string) {
	accepted(w.get(id).kind())
	resumed := w.get(id).began
	e, err := w.change(id, func(e *entry) { e.state, e.began = task.Running, true })
	if err != nil {
		return
	}
	w.note(id, nil, true)
	log := e.ids().Logger(w.log)
	log.Info("task runs", "resumed", resumed, "observe_only", e.task.GetObserveOnly())
	ctx, span := w.span(obs.WithIDs(ctx, e.ids()), e, resumed)
	outcome := w.call(ctx, e, &run{worker: w, id: id, resumed: resumed, live: w.liveOf(id)})
	if outcome == nil {
		log.Info("task left for the agent's next start")
		span.EndAs("LEFT") // its next start begins another
		return
	}
	span.EndAs(outcome.GetErrorCode())
	ended(e.kind())
	w.end(id, outcome)
}

// span begins the span of one run of a task.
func (w *Worker) span(ctx context.Context, e *entry, resumed bool) (context.Context, obs.Span) {
	name := "do " + e.kind()
	if e.task.GetObserveOnly() {
		name = "observe " + e.kind()
	}
	ctx, span := w.tracing.Below(ctx, e.task.GetTraceparent(), name)
	span.Set("debvisor.operation_id", e.task.GetOperationId())
	span.Set("debvisor.task_id", e.id)
	if resumed {
		span.Set("debvisor.resumed", "true")
	}
	return ctx, span
}

// call calls the kind and makes an outcome of whatever goes wrong with it.
func (w *Worker) call(ctx context.Context, e *entry, r *run) (outcome *agentv1.TaskOutcome) {
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("task panicked", e.ids().Args("panic", fmt.Sprint(p), "stack", string(debug.Stack()))...)
			outcome = failure("PANIC", "the agent failed inside; its log has the details")
		}
	}()
	kind, ok := w.kinds[e.kind()]
	if !ok {
		return failure("UNKNOWN_KIND", fmt.Sprintf("this agent does not know tasks of kind %q", e.kind()))
	}
	method := kind.Do
	if e.task.GetObserveOnly() {
		method = kind.Observe
	}
	outcome = method(ctx, e.task, r)
	if outcome == nil && ctx.Err() == nil {
		return failure("NO_OUTCOME", "the task ended without an outcome")
	}
	return outcome
}

// end journals the outcome, then lets it be reported.
func (w *Worker) end(id string, outcome *agentv1.TaskOutcome) {
	e, err := w.change(id, func(e *entry) {
		e.state, e.outcome, e.endedAt = endState(outcome), outcome, time.Now()
	})
	if err != nil {
		return
	}
	w.log.Info("task ended", e.ids().Args("state", e.state,
		"error_code", outcome.GetErrorCode(), "error", outcome.GetErrorMessage())...)
	w.note(id, nil, true)
}

func (w *Worker) liveOf(id string) *live {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.live[id]
}

func failure(code, message string) *agentv1.TaskOutcome {
	return &agentv1.TaskOutcome{ErrorCode: code, ErrorMessage: message}
}

func cancelledBefore() *agentv1.TaskOutcome {
	return failure(CodeCancelled, "cancelled before it was begun")
}

// run implements Run.
type run struct {
	worker  *Worker
	id      string
	resumed bool
	live    *live
}

func (r *run) Progress(p *agentv1.TaskProgress)    { r.worker.note(r.id, p, false) }
func (r *run) ProgressNow(p *agentv1.TaskProgress) { r.worker.note(r.id, p, true) }
func (r *run) Resumed() bool                       { return r.resumed }
func (r *run) Cancelled() <-chan struct{}          { return r.live.cancelled }
func (r *run) Relayed() <-chan *agentv1.Side       { return r.live.relayed }
func (r *run) Marked(name string) bool             { return r.worker.get(r.id).marked(name) }

func (r *run) Overtaken() (by uint64, overtaken bool) { return r.worker.overtaken(r.id) }

func (r *run) Mark(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := r.worker.change(r.id, func(e *entry) {
		if !slices.Contains(e.marks, name) {
			e.marks = append(e.marks, name)
		}
	})
	return err
}
