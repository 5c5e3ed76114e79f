package migrate

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// Kind is the kind of the operations that this controller advances.
const Kind = "migrate"

const (
	// progressEvery is the least time between two records of one operation's
	// progress.
	progressEvery = time.Second
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

// Controller advances migrations while its replica leads.
type Controller struct {
	view  View
	store Committer
	log   hclog.Logger
}

// New makes a controller.
func New(view View, committer Committer, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, log: log}
}

// Lead advances migrations until ctx ends, which is no error, or another
// leads (store.ErrFenced).
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := c.view.Changed()
		again, err := c.round(ctx, l)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case errors.Is(err, store.ErrFenced):
			return fmt.Errorf("advancing migrations: %w", err)
		case err != nil:
			c.log.Warn("migrations stand still until etcd answers", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
			}
			continue
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

// round takes one step of every migration that has one to take. It tells
// whether any was taken: then there may be more.
func (c *Controller) round(ctx context.Context, l election.Leadership) (again bool, err error) {
	snapshot := c.view.Current()
	for _, op := range snapshot.ActiveOperations() {
		if op.Value.GetKind() != Kind {
			continue
		}
		id, err := newRightID()
		if err != nil {
			return again, err
		}
		s := decide(snapshot, op, moment{now: time.Now(), rightID: id, term: l.Term})
		if s == nil {
			continue
		}
		if err := c.take(ctx, l, s); err != nil {
			return again, err
		}
		// Two migrations must not be planned on one snapshot: each reserves.
		return true, nil
	}
	return again, nil
}

// take commits a step and waits until the snapshot has it. A step whose ground
// has shifted is no error: it is decided anew.
func (c *Controller) take(ctx context.Context, l election.Leadership, s *step) error {
	holdAt(s.name)
	s.change.Fence = l.Fence
	revision, err := c.store.Commit(ctx, s.change)
	var conflict *store.ConflictError
	switch {
	case errors.As(err, &conflict):
		c.log.Debug("the records have changed, deciding anew", "operation", s.operation, "step", s.name, "key", conflict.Key)
		revision = c.view.Current().Revision + 1
		waiting, cancel := context.WithTimeout(ctx, lookEvery)
		defer cancel()
		_ = c.view.Await(waiting, revision) // later is looked at again anyway
		return nil
	case err != nil:
		return fmt.Errorf("%s of %s: %w", s.name, s.operation, err)
	}
	if s.name != stepProgress {
		c.log.Info(s.log, "operation", s.operation, "step", s.name, "term", l.Term)
	}
	if err := c.view.Await(ctx, revision); err != nil {
		return fmt.Errorf("waiting for the snapshot of %s: %w", s.operation, err)
	}
	return nil
}

// newRightID is 128 random bits in hex.
func newRightID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("random bits for a right: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// holdAt is where fault tests kill the leader: before it commits a step.
func holdAt(name stepName) {
	switch name {
	case stepSend:
		// gofail: var leaderAfterAccepted struct{}
	case stepCopying:
		// gofail: var leaderWhileCopying struct{}
	case stepSwitchedOver:
		// gofail: var leaderAfterSwitchover struct{}
	case stepSucceed:
		// gofail: var leaderBeforeFinish struct{}
	}
}
