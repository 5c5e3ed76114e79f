package drain

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of the operations that this controller advances.
const (
	Evacuate  = "evacuate"
	Restore   = "restore"
	Rebalance = "rebalance"
)

const (
	// lookEvery is how often operations are looked at though no record changed.
	lookEvery = time.Second
	// planEvery is the least time between two plans of one operation that found
	// nothing to begin, as long as none of its moves ends: records of a large
	// cluster change all the time.
	planEvery = 2 * time.Second
	// retryAfter is the pause after a transaction that failed.
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

// Facts are what the planner wants to know of CPUs. Learn asks the agents what
// it did not know and tells whether anything was learned.
type Facts interface {
	planner.Facts
	Learn(ctx context.Context, questions []planner.Question) (learned bool)
}

// Controller advances plans of many moves while its replica leads.
type Controller struct {
	view  View
	store Committer
	facts Facts
	log   hclog.Logger
}

// New makes a controller.
func New(view View, committer Committer, facts Facts, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, facts: facts, log: log}
}

// Lead advances operations until ctx ends, which is no error, or another leads
// (store.ErrFenced).
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	s := &stint{
		Controller: c, leadership: l, inVain: map[string]time.Time{},
		questions: make(chan []planner.Question, 1), learned: make(chan struct{}, 1),
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() { s.ask(ctx) })
	defer asking.Wait()
	defer cancel()
	return s.run(ctx)
}

// stint is the work of one term. What it remembers saves work and decides nothing.
type stint struct {
	*Controller
	leadership election.Leadership
	// inVain is when an operation was last planned and nothing could begin.
	inVain map[string]time.Time
	// worldOf is the snapshot that world was made of.
	worldOf *cluster.Snapshot
	world   *planner.World

	questions chan []planner.Question
	learned   chan struct{}
}

// ask asks agents beside the loop, which an agent that is slow must not hold up.
func (s *stint) ask(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case questions := <-s.questions:
			if s.facts.Learn(ctx, questions) {
				select {
				case s.learned <- struct{}{}:
				default:
				}
			}
		}
	}
}

func (s *stint) run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed := s.view.Changed()
		again, err := s.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // an ordinary stop
		case errors.Is(err, store.ErrFenced):
			return fmt.Errorf("advancing evacuations: %w", err)
		case err != nil:
			s.log.Warn("what could not be written is tried again", "error", err)
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
		case <-s.learned:
			clear(s.inVain)
		case <-changed:
		case <-tick.C:
		}
	}
}

// round takes one step of every operation that has one to take, each decided on
// the snapshot that holds the steps before it: what they begin reserves room. It
// tells whether any was taken. An error of one operation holds up no other.
func (s *stint) round(ctx context.Context) (again bool, err error) {
	var errs []error
	for _, was := range s.view.Current().ActiveOperations() {
		if !ours(was.Value.GetKind()) || was.Value.GetRestored() {
			continue
		}
		id := was.Value.GetId()
		snapshot := s.view.Current()
		entry, ok := snapshot.Operations[id]
		if !ok || task.OpEnded(entry.Value.GetState()) {
			continue
		}
		now := time.Now()
		v := decide(snapshot, entry, moment{
			now: now, mayPlan: now.Sub(s.inVain[id]) >= planEvery,
			world: func() *planner.World { return s.worldOn(snapshot) },
		})
		s.remember(id, v, now)
		if v.step == nil {
			continue
		}
		err := s.take(ctx, v.step)
		if ctx.Err() != nil || errors.Is(err, store.ErrFenced) {
			return false, err
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		again = true
	}
	return again, errors.Join(errs...)
}

func ours(kind string) bool { return kind == Evacuate || kind == Restore || kind == Rebalance }

// remember notes what a look at an operation says of the next looks.
func (s *stint) remember(id string, v verdict, now time.Time) {
	switch {
	case v.planned && !v.began:
		s.inVain[id] = now
	case v.began:
		delete(s.inVain, id)
	}
	if v.step != nil && task.OpEnded(v.step.op.GetState()) {
		delete(s.inVain, id)
	}
	if len(v.questions) > 0 && s.facts != nil {
		select {
		case s.questions <- v.questions:
		default: // what was asked before is being answered; this is asked at the next plan
		}
	}
}

// worldOn decodes a snapshot once for all operations that plan on it.
func (s *stint) worldOn(snapshot *cluster.Snapshot) *planner.World {
	if s.worldOf != snapshot {
		var facts planner.Facts
		if s.facts != nil {
			facts = s.facts
		}
		s.worldOf, s.world = snapshot, planner.NewWorld(snapshot, facts)
	}
	return s.world
}

// take commits a step and waits until the snapshot has it. A step whose ground
// has shifted is no error: it is decided anew.
func (s *stint) take(ctx context.Context, st *step) error {
	holdAt(st.name)
	st.change.Fence = s.leadership.Fence
	revision, err := s.store.Commit(ctx, st.change)
	var conflict *store.ConflictError
	switch {
	case errors.As(err, &conflict):
		s.log.Debug("the records have changed, deciding anew", store.OperationIDs(st.op).Args("step", st.name, "key", conflict.Key)...)
		waiting, cancel := context.WithTimeout(ctx, lookEvery)
		defer cancel()
		_ = s.view.Await(waiting, s.view.Current().Revision+1) // later is looked at again anyway
		return nil
	case err != nil:
		return fmt.Errorf("%s of %s: %w", st.name, st.op.GetId(), err)
	}
	if st.name != stepNote {
		s.log.Info(st.log, store.OperationIDs(st.op).Args("step", st.name, "term", s.leadership.Term)...)
	}
	if err := s.view.Await(ctx, revision); err != nil {
		return fmt.Errorf("waiting for the snapshot of %s: %w", st.op.GetId(), err)
	}
	return nil
}

// holdAt is where fault tests kill the leader: before it commits a step.
func holdAt(name stepName) {
	switch name {
	case stepBegin:
		// gofail: var drainBeforeBegin struct{}
	case stepMove:
		// gofail: var drainBeforeMove struct{}
	case stepEnd:
		// gofail: var drainBeforeEnd struct{}
	}
}
