package worker

import (
	"context"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// CodeCancelled is the error code of an outcome that ends its task CANCELLED.
// An empty code ends it SUCCEEDED, any other FAILED.
const CodeCancelled = "CANCELLED"

// Kind is what a sort of task does. Its name is the last part of its tasks'
// ids. Both methods hold the task's resource while they run, and both return
// nil only where ctx ended first: the agent stops, the task has not ended, and
// the agent's next start calls the method again. A panic is a FAILED outcome.
type Kind interface {
	// Name is the kind's name, such as "migrate-receive".
	Name() string
	// Do runs the task. Where run.Resumed, a former process of this journal
	// had begun it: Do must look first, and never repeat a step that may have
	// been done (its marks tell).
	Do(ctx context.Context, t *agentv1.Task, run Run) *agentv1.TaskOutcome
	// Observe says what came of a task that another journal may have begun.
	// It begins nothing new on the host.
	Observe(ctx context.Context, t *agentv1.Task, run Run) *agentv1.TaskOutcome
}

// Run is one run of a task, as its kind sees it. It is safe for concurrent use
// and must not be used once Do or Observe has returned.
type Run interface {
	// Progress tells how far the task is; the last of each second is sent.
	// The message must not be changed afterwards.
	Progress(p *agentv1.TaskProgress)
	// ProgressNow is Progress for news that others wait for: sent at once.
	ProgressNow(p *agentv1.TaskProgress)
	// Mark writes a named mark to the journal; it is on disk when Mark
	// returns nil. On an error the step that it announces must not be taken.
	Mark(ctx context.Context, name string) error
	// Marked tells whether this journal has the mark for the task.
	Marked(name string) bool
	// Overtaken tells whether this agent has been told of a later placement of
	// the task's VM than the one that the task was ordered for, and which.
	Overtaken() (by uint64, overtaken bool)
	// Resumed tells whether a former process of this journal began the task.
	Resumed() bool
	// Cancelled is closed when the leader wants the task ended.
	Cancelled() <-chan struct{}
	// Relayed brings what the leader relays of the other agent's side; only
	// the newest is kept, so a slow reader misses old ones only.
	Relayed() <-chan *agentv1.Side
}
