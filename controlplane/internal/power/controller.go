package power

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

const (
	// lookEvery is how often operations are looked at though no record changed:
	// what is waited for then is only the clock.
	lookEvery = time.Second
	// retryAfter is the pause after etcd gave no answer.
	retryAfter = 500 * time.Millisecond
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

// Controller advances starts and stops while its replica leads.
type Controller struct {
	view  View
	store Committer
	log   hclog.Logger
}

// New makes a controller.
func New(view View, committer Committer, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, log: log}
}

// Lead advances starts and stops until ctx ends, which is no error, or another
// leads (store.ErrFenced).
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := c.view.Changed()
		err := c.round(ctx, l)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case errors.Is(err, store.ErrFenced):
			return fmt.Errorf("advancing starts and stops: %w", err)
		case err != nil:
			c.log.Warn("starts and stops wait until etcd answers", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// round takes one step of each operation that has one to take. What it writes
// changes the snapshot, which has it called again.
func (c *Controller) round(ctx context.Context, l election.Leadership) error {
	snapshot := c.view.Current()
	var last int64
	for _, op := range snapshot.ActiveOperations() {
		if !ours(op.Value.GetKind()) || op.Value.GetRestored() {
			continue
		}
		s := decide(snapshot, op, moment{now: time.Now(), term: l.Term})
		if s == nil {
			continue
		}
		revision, err := c.take(ctx, l, s)
		if err != nil {
			return err
		}
		last = max(last, revision)
	}
	if err := c.view.Await(ctx, last); err != nil {
		return fmt.Errorf("waiting for the snapshot: %w", err)
	}
	return nil
}

// take commits a step and gives the revision at which it is in etcd. A step
// whose ground has shifted is no error: it is decided anew.
func (c *Controller) take(ctx context.Context, l election.Leadership, s *step) (revision int64, err error) {
	holdAt(s.name)
	s.change.Fence = l.Fence
	revision, err = c.store.Commit(ctx, s.change)
	var conflict *store.ConflictError
	switch {
	case errors.As(err, &conflict):
		c.log.Debug("the records have changed, deciding anew", s.about("key", conflict.Key)...)
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("%s of %s: %w", s.name, s.operation, err)
	}
	c.log.Info(s.log, s.about("term", l.Term)...)
	return revision, nil
}

// holdAt is where fault tests kill the leader: before it commits a step.
func holdAt(name stepName) {
	switch name {
	case stepBegin:
		// gofail: var leaderBeforeOrder struct{}
	case stepSucceed:
		// gofail: var leaderBeforeOrderEnd struct{}
	}
}
