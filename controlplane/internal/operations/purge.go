package operations

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// Ended operations are kept for KeepFor or as long as there are no more than
// KeepMost of them, whichever is less.
const (
	KeepFor  = 30 * 24 * time.Hour
	KeepMost = 10_000
)

// Purge forgets, once, the operations that are too old or too many at that
// moment, and their tasks. The leader calls it from time to time.
func (o *Operations) Purge(ctx context.Context, fence *store.Fence, now time.Time) error {
	snapshot := o.view.Current()
	change := store.Change{Fence: fence}
	commit := func() error {
		if len(change.Deletes) == 0 {
			return nil
		}
		if _, err := o.store.Commit(ctx, change); err != nil {
			return fmt.Errorf("forgetting old operations: %w", err)
		}
		change.Deletes = nil
		return nil
	}
	for _, op := range outdated(snapshot, now) {
		keys := []string{store.OperationKey(op.GetId())}
		for _, t := range snapshot.TasksOf(op.GetId()) {
			keys = append(keys, store.TaskKey(t.Value.GetId()))
		}
		if len(change.Deletes)+len(keys) > store.MaxChangeOps {
			if err := commit(); err != nil {
				return err
			}
		}
		change.Deletes = append(change.Deletes, keys...)
	}
	return commit()
}

// outdated gives the ended operations that are too old or too many.
func outdated(s *cluster.Snapshot, now time.Time) []*storev1.Operation {
	var ended []*storev1.Operation
	for _, entry := range s.Operations {
		if task.OpEnded(entry.Value.GetState()) {
			ended = append(ended, entry.Value)
		}
	}
	slices.SortFunc(ended, func(a, b *storev1.Operation) int {
		return b.GetEndedAt().AsTime().Compare(a.GetEndedAt().AsTime())
	})
	for i, op := range ended {
		if i >= KeepMost || now.Sub(op.GetEndedAt().AsTime()) > KeepFor {
			return ended[i:]
		}
	}
	return nil
}
