package plans

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

const (
	// atOnce is how many plans are computed at a time: one may wait for agents
	// while another is thought about.
	atOnce = 4
	// sweepEvery is how often plans are looked at that may have ended.
	sweepEvery = 10 * time.Second
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

// Facts are what is known beyond the snapshot, and what can be learned
// (advisor.Advisor).
type Facts interface {
	planner.Facts
	// Learn asks what the planner did not know, within some seconds, and tells
	// whether it is worth planning again.
	Learn(ctx context.Context, questions []planner.Question) (learned bool)
}

// Controller computes plans while its replica leads.
type Controller struct {
	view  View
	store Committer
	facts Facts
	log   hclog.Logger
	world world
}

// New makes a controller.
func New(view View, committer Committer, facts Facts, log hclog.Logger) *Controller {
	return &Controller{view: view, store: committer, facts: facts, log: log, world: world{facts: facts}}
}

// computed is the end of one computation.
type computed struct {
	id  string
	err error
}

// Lead computes plans until ctx ends, which is no error, or another leads
// (store.ErrFenced).
func (c *Controller) Lead(ctx context.Context, l election.Leadership) error {
	ctx, cancel := context.WithCancel(ctx)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	ended := make(chan computed)
	busy := map[string]bool{}
	defer func() {
		cancel()
		for range busy {
			<-ended
		}
		c.world.drop()
	}()
	if err := c.sweep(ctx, l, time.Now()); err != nil {
		return err
	}
	for {
		changed := c.view.Changed()
		for _, p := range c.requested(atOnce, busy) {
			id := p.Value.GetId()
			busy[id] = true
			go func() { ended <- computed{id, c.settle(ctx, l, id)} }() // Lead waits for it
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case one := <-ended:
			delete(busy, one.id)
			if errors.Is(one.err, store.ErrFenced) {
				return fmt.Errorf("computing plans: %w", one.err)
			}
			if len(busy) == 0 {
				c.world.drop() // it would keep an old snapshot alive
			}
		case now := <-tick.C:
			if err := c.sweep(ctx, l, now); err != nil {
				return err
			}
		}
	}
}

// requested are the oldest plans that nobody has computed or is at work on, so
// many that not more than most are at work.
func (c *Controller) requested(most int, busy map[string]bool) []cluster.Entry[*storev1.Plan] {
	var list []cluster.Entry[*storev1.Plan]
	for _, p := range c.view.Current().Plans {
		if p.Value.GetState() == storev1.PlanState_PLAN_STATE_REQUESTED && !busy[p.Value.GetId()] {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b cluster.Entry[*storev1.Plan]) int {
		return cmp.Or(a.Value.GetCreatedAt().AsTime().Compare(b.Value.GetCreatedAt().AsTime()), cmp.Compare(a.Value.GetId(), b.Value.GetId()))
	})
	return list[:min(len(list), max(most-len(busy), 0))]
}

// settle computes a plan and writes it. When it returns, this replica sees
// what is written, so that nothing is computed twice. What was not written is
// tried again after a pause.
func (c *Controller) settle(ctx context.Context, l election.Leadership, id string) error {
	err := c.compute(ctx, l, id)
	var conflict *store.ConflictError
	switch {
	case err == nil || ctx.Err() != nil || errors.Is(err, store.ErrFenced):
		return err
	case errors.As(err, &conflict):
		c.log.Debug("the plan has changed meanwhile", "plan", id)
	default:
		c.log.Warn("a plan is not written, will be tried again", "plan", id, "error", err)
	}
	pause := time.NewTimer(retryAfter)
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return nil
}
