package recovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

const (
	// lookEvery is how often it is looked though no record changed.
	lookEvery = time.Second
	// settleTime is how long all must have been heard before the return is over:
	// longer than the inventory takes to see that two nodes run one VM.
	settleTime = 10 * time.Second
	// observeFor is how long a node that is heard may take to say what became of a
	// task.
	observeFor = 2 * time.Minute
)

// View is where the snapshot comes from (store.View).
type View interface {
	Current() *cluster.Snapshot
	Changed() <-chan struct{}
	Await(ctx context.Context, revision int64) error
}

// Committer writes to etcd (store.Store).
type Committer interface {
	Commit(ctx context.Context, c store.Change) (revision int64, err error)
}

// Controller brings a return from a backup to its end.
type Controller struct {
	view  View
	store Committer
	log   hclog.Logger
}

// New makes a controller.
func New(view View, committer Committer, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, log: log}
}

// Lead works until ctx ends, which is no error, or another leads
// (store.ErrFenced). In a cluster that is not returning from a backup it waits.
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	w := watch{heard: map[string]time.Time{}}
	for {
		changed := c.view.Changed()
		err := c.round(ctx, l, &w)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case errors.Is(err, store.ErrFenced):
			return fmt.Errorf("returning from a backup: %w", err)
		case err != nil:
			c.log.Warn("the return from a backup waits until etcd answers", "error", err)
			changed = nil // with the tick
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// round takes the step that is due, if one is.
func (c *Controller) round(ctx context.Context, l election.Leadership, w *watch) error {
	s := c.view.Current()
	w.look(s, time.Now())
	for _, entry := range s.ActiveOperations() {
		if !entry.Value.GetRestored() {
			continue
		}
		change, why, ok := w.end(s, entry, time.Now())
		if !ok {
			continue
		}
		if err := c.commit(ctx, l, change); err != nil {
			return err
		}
		c.log.Warn("an operation of the backup is ended", "operation_id", entry.Value.GetId(), "kind", entry.Value.GetKind(), "seen", why)
	}
	s = c.view.Current()
	if !w.over(s, time.Now()) {
		return nil
	}
	next := proto.CloneOf(s.Restore.Value)
	next.ReconciledAt = timestamppb.Now()
	err := c.commit(ctx, l, store.Change{
		Require: []store.Condition{store.Unchanged(store.RestoreKey(), s.Restore.ModRevision)},
		Puts:    []store.Put{store.PutProto(store.RestoreKey(), next)},
	})
	if err == nil {
		c.log.Info("the return from a backup is over: the records are those of what the nodes run", "epoch", next.GetEpoch(), "differences", len(next.GetDifferences()))
	}
	return err
}

// commit commits a change and waits until the snapshot has it; one whose ground
// has shifted is decided anew.
func (c *Controller) commit(ctx context.Context, l election.Leadership, change store.Change) error {
	change.Fence = l.Fence
	revision, err := c.store.Commit(ctx, change)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.view.Await(ctx, revision)
}
