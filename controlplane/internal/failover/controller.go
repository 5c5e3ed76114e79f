package failover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// lookEvery is how often operations and lost copies are looked at though no
	// record changed: what is waited for then is only the clock.
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

// Controller advances failovers and what is left of them while its replica leads.
type Controller struct {
	view  View
	store Committer
	log   hclog.Logger
}

// New makes a controller.
func New(view View, committer Committer, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, log: log}
}

// Lead advances failovers and lost copies until ctx ends, which is no error, or
// another leads (store.ErrFenced).
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	pauses := map[string]time.Time{}
	for {
		changed := c.view.Changed()
		again, err := c.round(ctx, l, pauses)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case err != nil:
			return fmt.Errorf("advancing failovers: %w", err)
		case again:
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

// round takes one step of each failover and each lost copy that has one to take,
// each decided on the snapshot that holds the steps before it. It tells whether any
// was taken: then there may be more. What one of them fails of does not hold up the
// others, until pauses say.
func (c *Controller) round(ctx context.Context, l election.Leadership, pauses map[string]time.Time) (again bool, err error) {
	for _, next := range c.due(c.view.Current()) {
		now := time.Now()
		if now.Before(pauses[next.about]) {
			continue
		}
		s := next.decide(c.view.Current(), moment{now: now, term: l.Term})
		if s == nil {
			continue
		}
		switch err := c.take(ctx, l, s); {
		case err == nil:
			delete(pauses, next.about)
			again = true
		case errors.Is(err, store.ErrFenced) || ctx.Err() != nil:
			return again, err
		default:
			c.log.Warn("a failover stands still until etcd takes its step", s.told("error", err)...)
			pauses[next.about] = now.Add(retryAfter)
		}
	}
	return again, nil
}

// subject is what may have a step to take.
type subject struct {
	about  string
	decide func(*cluster.Snapshot, moment) *step
}

// due are all failovers at work, then all lost copies.
func (c *Controller) due(s *cluster.Snapshot) []subject {
	var all []subject
	for _, op := range s.ActiveOperations() {
		if id := op.Value.GetId(); op.Value.GetKind() == Kind && !op.Value.GetRestored() {
			all = append(all, subject{id, func(s *cluster.Snapshot, at moment) *step {
				if entry, ok := s.Operations[id]; ok && !task.OpEnded(entry.Value.GetState()) {
					return decide(s, entry, at)
				}
				return nil
			}})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.LostCopies)) {
		all = append(all, subject{key, func(s *cluster.Snapshot, at moment) *step {
			if entry, ok := s.LostCopies[key]; ok {
				return decideCopy(s, entry, at)
			}
			return nil
		}})
	}
	return all
}

// take commits a step and waits until the snapshot has it. A step whose ground has
// shifted is no error: it is decided anew.
func (c *Controller) take(ctx context.Context, l election.Leadership, s *step) error {
	holdAt(s.name)
	s.change.Fence = l.Fence
	revision, err := c.store.Commit(ctx, s.change)
	var conflict *store.ConflictError
	switch {
	case errors.As(err, &conflict):
		c.log.Debug("the records have changed, deciding anew", s.told("key", conflict.Key)...)
		waiting, cancel := context.WithTimeout(ctx, lookEvery)
		defer cancel()
		_ = c.view.Await(waiting, c.view.Current().Revision+1) // later is looked at again anyway
		return nil
	case err != nil:
		return fmt.Errorf("%s of %s: %w", s.name, s.about, err)
	}
	if s.name != stepNote {
		c.log.Info(s.log, s.told("term", l.Term)...)
	}
	if err := c.view.Await(ctx, revision); err != nil {
		return fmt.Errorf("waiting for the snapshot of %s: %w", s.about, err)
	}
	return nil
}

// holdAt is where fault tests kill the leader: before it commits a step.
func holdAt(name stepName) {
	switch name {
	case stepFence:
		// gofail: var leaderBeforeFence struct{}
	case stepStart:
		// gofail: var leaderBeforeBringBack struct{}
	case stepSucceed:
		// gofail: var leaderBeforeFailoverEnd struct{}
	case stepDiscard:
		// gofail: var leaderBeforeDiscard struct{}
	case stepUnfence:
		// gofail: var leaderBeforeUnfence struct{}
	}
}
