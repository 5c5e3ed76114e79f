package operations

import (
	"context"
	"time"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// freshCheck is how often a waiting call asks whether its replica still sees
// what goes on.
const freshCheck = time.Second

// appearWait is how long an operation that was submitted may take to be seen.
const appearWait = 5 * time.Second

// Watch hands the operation to see as it is and at each change until it has
// ended; changes that follow each other fast may be handed over as one, the
// last never left out. It ends with see's error, with NotFound once the
// operation is forgotten, and with Unavailable when this replica loses sight
// of the cluster or is about to stop (Move).
func (o *Operations) Watch(ctx context.Context, id string, see func(*storev1.Operation) error) error {
	return o.watch(ctx, id, o.moving, see)
}

// watch is Watch, but for what ends it when this replica stops.
func (o *Operations) watch(ctx context.Context, id string, stops <-chan struct{}, see func(*storev1.Operation) error) error {
	check := time.NewTicker(freshCheck)
	defer check.Stop()
	began := time.Now()
	var seen int64
	for {
		changed := o.view.Changed()
		entry, ok := o.view.Current().Operations[id]
		switch {
		case !ok && (seen > 0 || time.Since(began) > appearWait):
			_, err := o.Get(id)
			return err
		case ok && entry.ModRevision != seen:
			seen = entry.ModRevision
			if err := see(entry.Value); err != nil {
				return err
			}
			if task.OpEnded(entry.Value.GetState()) {
				return nil
			}
		}
		select {
		case <-changed:
		case <-check.C:
			if err := o.view.Fresh(); err != nil {
				return errdefs.New(errdefs.Unavailable, "REPLICA_STALE",
					"this replica has lost sight of the cluster; operation %s goes on, ask another replica for it", id).
					With("operation", id).WithRetry(time.Second).WithCause(err)
			}
		case <-stops:
			return errdefs.New(errdefs.Unavailable, "REPLICA_STOPS",
				"this replica stops; operation %s goes on, ask another replica for it", id).
				With("operation", id).WithRetry(time.Second)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Wait waits for the operation's end, however it ends. When ctx ends before,
// the operation goes on. Errors are Watch's, but that it is Leave that ends it.
func (o *Operations) Wait(ctx context.Context, id string) (*storev1.Operation, error) {
	var last *storev1.Operation
	err := o.watch(ctx, id, o.leaving, func(op *storev1.Operation) error {
		last = op
		return nil
	})
	if err != nil {
		return nil, err
	}
	return last, nil
}
