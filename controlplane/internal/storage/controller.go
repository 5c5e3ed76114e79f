package storage

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff/look"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/task"
)

// retryAfter is the pause after etcd gave no answer.
const retryAfter = 500 * time.Millisecond

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

// Auditor writes the audit log (audit.Log).
type Auditor interface {
	Add(e *audit.Event) (kept bool)
}

// Controller advances operations on storage while its replica leads.
type Controller struct {
	view  View
	store Committer
	ask   look.Ask
	audit Auditor
	log   hclog.Logger
	pace  pace

	// pauses is until when an operation, or job, whose step was not taken is let be.
	pauses map[string]time.Time
	// unfit is why no transaction holds the next step of an operation.
	unfit map[string]error
	// watched is when the jobs' RPOs were last looked at.
	watched time.Time
}

// New makes a controller.
func New(view View, committer Committer, ask look.Ask, auditor Auditor, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, ask: ask, audit: auditor, log: log, pace: ordinary()}
}

// Lead advances operations until ctx ends, which is no error, or another leads
// (store.ErrFenced). Nothing that it began goes on when it has returned.
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	c.pauses, c.unfit, c.watched = map[string]time.Time{}, map[string]error{}, time.Time{}
	ctx, cancel := context.WithCancel(ctx)
	d := newDesk(c.ask, c.view, c.log)
	defer d.wait()
	defer cancel()
	tick := time.NewTicker(c.pace.look)
	defer tick.Stop()
	for {
		changed := c.view.Changed()
		again, err := c.round(ctx, l, d)
		if err == nil {
			err = c.watch(ctx, l)
		}
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case err != nil:
			return fmt.Errorf("advancing operations on storage: %w", err)
		case again:
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-d.learned:
		case <-tick.C:
		}
	}
}

// round takes one step of every operation that has one to take, each decided on
// the snapshot that holds the steps before it: what a pruning may destroy depends
// on what runs have begun to send. It tells whether any was taken: then there may
// be more. What one operation's step fails of does not hold up the others.
func (c *Controller) round(ctx context.Context, l election.Leadership, desk *desk) (again bool, err error) {
	active := map[string]bool{}
	for _, was := range c.view.Current().ActiveOperations() {
		id := was.Value.GetId()
		now, snapshot := time.Now(), c.view.Current()
		op, ok := snapshot.Operations[id]
		if !ok || !ours(op.Value.GetKind()) || op.Value.GetRestored() || task.OpEnded(op.Value.GetState()) {
			continue
		}
		active[id] = true
		if now.Before(c.pauses[id]) {
			continue
		}
		right, err := newRightID()
		if err != nil {
			return again, err
		}
		s, q := decide(snapshot, op, moment{now: now, term: l.Term, rightID: right, answer: desk.answer(id), unfit: c.unfit[id], pace: c.pace})
		if q != nil {
			desk.put(ctx, id, q)
		}
		if s == nil {
			continue
		}
		took, err := c.take(ctx, l, s, snapshot.Revision)
		if err != nil {
			return again, err
		}
		if took && s.name != stepNote && s.name != stepProgress {
			desk.forget(id) // it was decided on; listings may be long
		}
		again = again || took
	}
	desk.keep(active)
	maps.DeleteFunc(c.unfit, func(id string, _ error) bool { return !active[id] })
	return again, nil
}

// take commits a step, decided on the snapshot of that revision, and waits until
// the snapshot has it. A step whose ground
// has shifted is no error: it is decided anew. An error is that another leads, or
// that ctx has ended.
func (c *Controller) take(ctx context.Context, l election.Leadership, s *step, decidedOn int64) (took bool, err error) {
	holdAt(s.name)
	s.change.Fence = l.Fence
	if s.audit != nil {
		c.audit.Add(s.audit) // rather twice than never
	}
	revision, err := c.store.Commit(ctx, s.change)
	var conflict *store.ConflictError
	switch {
	case errors.As(err, &conflict):
		c.log.Debug("the records have changed, deciding anew", s.told("key", conflict.Key)...)
		waiting, cancel := context.WithTimeout(ctx, c.pace.look)
		defer cancel()
		_ = c.view.Await(waiting, decidedOn+1) // it may be there already; later is looked at again anyway
		return true, ctx.Err()
	case errors.Is(err, store.ErrFenced) || ctx.Err() != nil:
		return false, err
	case s.op != nil && store.IsTooLarge(err):
		// To try again is no use: the operation ends of it, by steps that are small.
		c.log.Error("a step of an operation on storage does not fit in a transaction", s.told("error", err)...)
		c.unfit[s.about] = err
		c.pauses[s.about] = time.Now().Add(retryAfter)
		return false, nil
	case err != nil:
		c.log.Warn("an operation on storage stands still until etcd takes its step", s.told("error", err)...)
		c.pauses[s.about] = time.Now().Add(retryAfter)
		return false, nil
	}
	delete(c.pauses, s.about)
	if s.name != stepNote && s.name != stepProgress {
		c.log.Info(s.log, s.told("term", l.Term)...)
	}
	if err := c.view.Await(ctx, revision); err != nil {
		return false, fmt.Errorf("waiting for the snapshot of %s: %w", s.about, err)
	}
	return true, nil
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
	case stepBegin:
		// gofail: var leaderBeforeStorageBegin struct{}
	case stepTask:
		// gofail: var leaderBeforeStorageTask struct{}
	case stepTaken:
		// gofail: var leaderBeforeReplicationPlan struct{}
	case stepReceive:
		// gofail: var leaderBeforeReplicationReceive struct{}
	case stepSend:
		// gofail: var leaderBeforeReplicationSend struct{}
	case stepAgain:
		// gofail: var leaderBeforeStorageAgain struct{}
	case stepCancelTask:
		// gofail: var leaderBeforeStorageCancel struct{}
	case stepSucceed:
		// gofail: var leaderBeforeStorageEnd struct{}
	}
}
