package agent

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// looking is a kind whose tasks change the host's ZFS: it is looked at after each.
type looking struct {
	worker.Kind
	look func()
}

// lookingAfter has the host's ZFS looked at after each task of the kinds.
func lookingAfter(kinds []worker.Kind, look func()) []worker.Kind {
	all := make([]worker.Kind, 0, len(kinds))
	for _, k := range kinds {
		all = append(all, looking{Kind: k, look: look})
	}
	return all
}

// Do runs a task.
func (l looking) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	defer l.look()
	return l.Kind.Do(ctx, t, run)
}

// Observe says what came of one.
func (l looking) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	defer l.look()
	return l.Kind.Observe(ctx, t, run)
}
