package schedule

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
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// lookEvery is how often the clock is looked at.
	lookEvery = time.Second
	// retryAfter is the pause after etcd gave no answer, or refused a change.
	retryAfter = time.Second
	// refusedFor is the pause of a policy whose change etcd does not take.
	refusedFor = time.Minute
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

// Owner tells whose a dataset (backend "zfs") or an image ("rbd") is; empty: nobody's
// in particular.
type Owner func(s *cluster.Snapshot, backend, pool, name string) string

// Controller begins the operations of retention and replication policies when
// they are due, while its replica leads. That a policy was due is written in one
// transaction with the operations, fenced by the term: each time comes at most
// once, whatever becomes of leaders. What is in use then is left out and told of
// in the policy's record; nothing queues.
type Controller struct {
	view  View
	store Committer
	owner Owner
	now   func() time.Time
	log   hclog.Logger
	// tracing is nil where nothing is traced.
	tracing *obs.Tracing
}

// New makes a controller. now is the clock; nil is the machine's.
func New(view View, committer Committer, owner Owner, now func() time.Time, log hclog.Logger) *Controller {
	if now == nil {
		now = time.Now
	}
	return &Controller{view: view, store: committer, owner: owner, now: now, log: log}
}

// Traced has the operations traced, and gives the controller.
func (c *Controller) Traced(t *obs.Tracing) *Controller {
	c.tracing = t
	return c
}

// Lead begins what is due until ctx ends, which is no error, or another leads
// (store.ErrFenced).
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	s := &stint{Controller: c, leadership: l, looked: map[string]look{}}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := c.view.Changed()
		again, err := s.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case errors.Is(err, store.ErrFenced):
			return fmt.Errorf("beginning what is due: %w", err)
		case err != nil:
			c.log.Warn("what is due is tried again", "error", err)
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

// stint is the work of one term. What it remembers saves work and decides nothing.
type stint struct {
	*Controller
	leadership election.Leadership
	looked     map[string]look
}

// look is when a policy, as it was then, has to be looked at again.
type look struct {
	modRevision int64
	next        time.Time
}

// round takes one step of each policy that has one to take, and tells whether
// any was taken. An error of one policy holds up no other.
func (s *stint) round(ctx context.Context) (again bool, err error) {
	snapshot, now := s.view.Current(), s.now()
	if snapshot.Recovering() {
		return false, nil // what is due was perhaps done, or is not wanted any more
	}
	v := &view{
		snapshot: snapshot, now: now, inventories: newInventories(snapshot), tracing: s.tracing,
		owner: func(backend, pool, name string) string { return s.owner(snapshot, backend, pool, name) },
	}
	var errs []error
	var last int64
	for _, p := range policies(snapshot) {
		was, ok := s.looked[p.key]
		if ok && was.modRevision == p.modRevision && now.Before(was.next) && !p.stirs(snapshot) {
			continue
		}
		st, next := decide(v, p)
		if st == nil {
			s.looked[p.key] = look{p.modRevision, next}
			continue
		}
		revision, err := s.take(ctx, p, st)
		if ctx.Err() != nil || errors.Is(err, store.ErrFenced) || errdefs.Is(err, errdefs.Unavailable) {
			return false, err
		}
		if err != nil {
			s.looked[p.key] = look{p.modRevision, now.Add(refusedFor)}
		}
		errs, last = append(errs, err), max(last, revision)
	}
	if last == 0 {
		return false, errors.Join(errs...)
	}
	if err := s.view.Await(ctx, last); err != nil {
		return false, fmt.Errorf("waiting for the snapshot: %w", err)
	}
	return true, errors.Join(errs...)
}

// policies are all, by name.
func policies(s *cluster.Snapshot) []*policy {
	var all []*policy
	for _, name := range slices.Sorted(maps.Keys(s.RetentionPolicies)) {
		all = append(all, retentionPolicy(s.RetentionPolicies[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(s.ReplicationPolicies)) {
		all = append(all, replicationPolicy(s.ReplicationPolicies[name]))
	}
	return all
}

// stirs tells whether there is something to do before the next time comes: the
// rest of a run, or pruning after snapshots.
func (p *policy) stirs(s *cluster.Snapshot) bool {
	return p.begun() || slices.ContainsFunc(p.run.GetAwaited(), func(id string) bool {
		op, ok := s.Operations[id]
		return !ok || task.OpEnded(op.Value.GetState())
	})
}

// take commits a step and gives the revision at which it is in etcd. A step
// whose ground has shifted is no error: it is decided anew.
func (s *stint) take(ctx context.Context, p *policy, st *step) (revision int64, err error) {
	st.change.Fence = s.leadership.Fence
	revision, err = s.store.Commit(ctx, st.change)
	var conflict *store.ConflictError
	switch {
	case errors.As(err, &conflict):
		s.log.Debug("the records have changed, deciding anew", "policy", p.title, "key", conflict.Key)
		waiting, cancel := context.WithTimeout(ctx, lookEvery)
		defer cancel()
		_ = s.view.Await(waiting, s.view.Current().Revision+1) // later is looked at again anyway
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("%s: %w", p.title, err)
	}
	s.log.Info(st.log, "term", s.leadership.Term)
	return revision, nil
}
