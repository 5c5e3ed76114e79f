package migrate

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/task"
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

// Facts is what agents were asked of their hosts (advisor.Advisor).
type Facts interface {
	planner.Facts
	// Learn asks; it tells whether there is an answer to any of it.
	Learn(ctx context.Context, questions []planner.Question) (learned bool)
}

// Auditor writes the audit log (audit.Log).
type Auditor interface {
	Add(e *audit.Event) (kept bool)
}

// Controller advances migrations while its replica leads.
type Controller struct {
	view  View
	store Committer
	facts Facts
	audit Auditor
	log   hclog.Logger

	// pauses is until when an operation whose step was not taken is let be.
	pauses map[string]time.Time
	// questions are to be asked; learned is sent to when one was answered.
	questions chan []planner.Question
	learned   chan struct{}
}

// New makes a controller.
func New(view View, committer Committer, facts Facts, auditor Auditor, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, facts: facts, audit: auditor, log: log}
}

// ask has questions asked, unless others are just being asked: then they will
// come up again.
func (c *Controller) ask(questions []planner.Question) {
	select {
	case c.questions <- questions:
	default:
	}
}

// learn asks what plans need to know, until ctx ends.
func (c *Controller) learn(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case questions := <-c.questions:
			if c.facts.Learn(ctx, questions) {
				select {
				case c.learned <- struct{}{}:
				default:
				}
			}
		}
	}
}

// Lead advances migrations until ctx ends, which is no error, or another
// leads (store.ErrFenced).
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	c.pauses = map[string]time.Time{}
	c.questions, c.learned = make(chan []planner.Question), make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() { c.learn(ctx) })
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := c.view.Changed()
		again, err := c.round(ctx, l)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case err != nil:
			return fmt.Errorf("advancing migrations: %w", err)
		case again:
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-c.learned:
		case <-tick.C:
		}
	}
}

// round takes one step of every migration that has one to take, each decided on
// the snapshot that holds the steps before it: what they begin reserves room.
// All have their turn before any has another. It tells whether any was taken:
// then there may be more. What one migration's step fails of does not hold up
// the others.
func (c *Controller) round(ctx context.Context, l election.Leadership) (again bool, err error) {
	var world *planner.World
	var worldOf *cluster.Snapshot
	for _, was := range c.view.Current().ActiveOperations() {
		now, snapshot := time.Now(), c.view.Current()
		op, ok := snapshot.Operations[was.Value.GetId()]
		if !ok || op.Value.GetKind() != Kind || op.Value.GetRestored() || task.OpEnded(op.Value.GetState()) || now.Before(c.pauses[op.Value.GetId()]) {
			continue
		}
		id, err := newRightID()
		if err != nil {
			return again, err
		}
		s := decide(snapshot, op, moment{now: now, rightID: id, term: l.Term, facts: c.facts, ask: c.ask, world: func() *planner.World {
			if worldOf != snapshot {
				worldOf, world = snapshot, planner.NewWorld(snapshot, nil) // each request has the facts
			}
			return world
		}})
		if s == nil {
			continue
		}
		switch err := c.take(ctx, l, s); {
		case err == nil:
			delete(c.pauses, s.operation)
			again = true
		case errors.Is(err, store.ErrFenced) || ctx.Err() != nil:
			return again, err
		default:
			c.log.Warn("a migration stands still until etcd takes its step", s.about("error", err)...)
			c.pauses[s.operation] = time.Now().Add(retryAfter)
		}
	}
	return again, nil
}

// take commits a step and waits until the snapshot has it. A step whose ground
// has shifted is no error: it is decided anew.
func (c *Controller) take(ctx context.Context, l election.Leadership, s *step) error {
	holdAt(s.name)
	s.change.Fence = l.Fence
	if s.audit != nil {
		c.audit.Add(s.audit) // rather twice than never
	}
	revision, err := c.store.Commit(ctx, s.change)
	var conflict *store.ConflictError
	switch {
	case errors.As(err, &conflict):
		c.log.Debug("the records have changed, deciding anew", s.about("key", conflict.Key)...)
		revision = c.view.Current().Revision + 1
		waiting, cancel := context.WithTimeout(ctx, lookEvery)
		defer cancel()
		_ = c.view.Await(waiting, revision) // later is looked at again anyway
		return nil
	case err != nil:
		return fmt.Errorf("%s of %s: %w", s.name, s.operation, err)
	}
	if s.name != stepProgress {
		c.log.Info(s.log, s.about("term", l.Term)...)
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
