package storage

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff/look"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

const (
	// askTimeout is how long the answer to a question may take; listings of very
	// many snapshots take their time.
	askTimeout = 2 * time.Minute
	// maxAsking bounds the questions that are asked at once, about Ceph and about
	// ZFS: the former may hang for a while, and the latter do not wait for them.
	maxAsking = 4
	// answerLife is how long an answer may be decided on.
	answerLife = 30 * time.Second
	// maxRefused is how often in a row agents may refuse to answer, until the
	// operation fails of it: one that is just being stopped does as well.
	maxRefused = 3
)

// question is what an operation's next step needs to know. Key tells its answer
// from those of earlier steps.
type question struct {
	key string
	// job asks what a run of it would do now.
	job  *storev1.ReplicationJob
	more look.More
	// list asks node what it has, and what the snapshots that remove lets go would
	// free.
	node   string
	list   *agentv1.ListZfs
	remove *storev1.RemoveSnapshots
	kept   map[uint64]bool
	// images asks node for what is in its Ceph cluster.
	images *agentv1.ListRbd
}

// answer is one question's.
type answer struct {
	key     string
	plan    *repldiff.Plan
	listing *agentv1.ZfsListing
	images  []*agentv1.RbdSnapshot
	frees   uint64
	err     error
	// refused is how often in a row the agents have refused to answer it.
	refused int
	at      time.Time
}

// desk asks questions aside, so that no operation waits for another's answers.
type desk struct {
	ask     look.Ask
	view    View
	log     hclog.Logger
	learned chan struct{}
	group   sync.WaitGroup

	mu      sync.Mutex
	answers map[string]*answer // by operation
	asking  map[string]bool    // by operation: whether it is about Ceph
}

func newDesk(ask look.Ask, view View, log hclog.Logger) *desk {
	return &desk{ask: ask, view: view, log: log, learned: make(chan struct{}, 1), answers: map[string]*answer{}, asking: map[string]bool{}}
}

// answer is the last one that an operation got; nil: none.
func (d *desk) answer(operation string) *answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answers[operation]
}

// put has a question asked, unless one of the operation's is, or as many as may
// be: then it comes up again.
func (d *desk) put(ctx context.Context, operation string, q *question) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ceph, alike := q.images != nil, 0
	for _, other := range d.asking {
		if other == ceph {
			alike++
		}
	}
	if _, is := d.asking[operation]; is || alike >= maxAsking {
		return
	}
	d.asking[operation] = ceph
	d.group.Go(func() {
		a := d.find(ctx, q)
		if a.err != nil && ctx.Err() == nil {
			d.log.Info("a question on storage was not answered", store.OperationIDs(d.view.Current().Operations[operation].Value).Args("error", a.err)...)
		}
		d.mu.Lock()
		delete(d.asking, operation)
		if a.err != nil && !look.Passing(a.err) {
			a.refused = 1
			if before := d.answers[operation]; before != nil && before.key == a.key {
				a.refused += before.refused
			}
		}
		d.answers[operation] = a
		d.mu.Unlock()
		select {
		case d.learned <- struct{}{}:
		default:
		}
	})
}

// find asks and waits.
func (d *desk) find(ctx context.Context, q *question) *answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a := &answer{key: q.key}
	switch {
	case q.job != nil:
		a.plan, a.err = look.Plan(ctx, d.ask, d.view.Current(), q.job, q.more, time.Now())
	case q.images != nil:
		a.images, a.err = look.Images(ctx, d.ask, q.node, q.images)
	default:
		a.listing, a.err = look.List(ctx, d.ask, q.node, q.list)
		if a.err == nil {
			a.frees, a.err = d.frees(ctx, q, a.listing)
		}
	}
	a.at = time.Now()
	return a
}

// frees asks what the end of the next batch would free.
func (d *desk) frees(ctx context.Context, q *question, listing *agentv1.ZfsListing) (sum uint64, err error) {
	names := map[string][]string{}
	going, _, err := batch(d.view.Current(), q.node, q.remove, listing, q.kept, time.Now())
	if err != nil {
		return 0, nil //nolint:nilerr // the decision says so
	}
	for _, s := range going {
		names[s.GetDataset()] = append(names[s.GetDataset()], s.GetName())
	}
	for dataset, snapshots := range names {
		ask := &agentv1.Ask{Question: &agentv1.Ask_EstimateZfsDestroy{EstimateZfsDestroy: &agentv1.EstimateZfsDestroy{Dataset: dataset, Snapshots: snapshots}}}
		err := d.ask(ctx, q.node, ask, func(a *agentv1.Answer) error {
			sum += a.GetZfsDestroyEstimate().GetBytes()
			return nil
		})
		if err != nil && look.Passing(err) {
			return 0, err
		}
	}
	return sum, nil
}

// forget forgets what an operation got.
func (d *desk) forget(operation string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.answers, operation)
}

// keep forgets the answers of operations that are at an end.
func (d *desk) keep(active map[string]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id := range d.answers {
		if !active[id] {
			delete(d.answers, id)
		}
	}
}

// wait waits until nothing is asked any more.
func (d *desk) wait() { d.group.Wait() }
