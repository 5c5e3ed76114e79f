package events

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// ringSize is how many facts a replica keeps at hand; what is older is read
	// from etcd's history.
	ringSize = 8192
	// againAfter is the pause before a feed that broke off goes on.
	againAfter = 200 * time.Millisecond
)

// Feed derives facts as they come true, and keeps the last of them. It is safe for
// use by many goroutines.
type Feed struct {
	history *store.History
	log     hclog.Logger
	size    int

	mu sync.Mutex
	// facts are all those of revisions from first to upTo, in order.
	facts       []*Fact
	first, upTo int64
	changed     chan struct{}
	leaving     chan struct{}
	leave       sync.Once
	// readers bounds how many watches read etcd's history at once.
	readers chan struct{}
	// bookmarkEvery is after how long of nothing else a bookmark is sent.
	bookmarkEvery time.Duration
}

// maxReaders is how many watches read etcd's history at once; others wait.
const maxReaders = 4

// New makes a Feed, which Run fills.
func New(history *store.History, log hclog.Logger) *Feed { return newFeed(history, log, ringSize) }

func newFeed(history *store.History, log hclog.Logger, size int) *Feed {
	return &Feed{
		history: history, log: log, size: size,
		changed: make(chan struct{}), leaving: make(chan struct{}), readers: make(chan struct{}, maxReaders),
		bookmarkEvery: bookmarkEvery,
	}
}

// Run follows etcd until ctx ends. Whatever etcd does it goes on, without loss
// unless etcd's history itself has been compacted meanwhile.
func (f *Feed) Run(ctx context.Context) error {
	for {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was told to end
		}
		f.log.Warn("events are followed anew", "reason", err)
		select {
		case <-time.After(againAfter):
		case <-ctx.Done():
			return nil
		}
	}
}

// follow goes on where the feed stands, or begins at the latest revision.
func (f *Feed) follow(ctx context.Context) error {
	_, upTo := f.span()
	if upTo == 0 {
		latest, err := f.history.Latest(ctx)
		if err != nil {
			return err
		}
		f.begin(latest)
		upTo = latest
	}
	err := f.history.Follow(ctx, upTo+1, func(r store.Revision) error {
		facts, err := f.derive(ctx, r)
		if err != nil {
			return err
		}
		now := time.Now()
		for _, fact := range facts {
			if fact.Event.GetTime() == nil {
				fact.Event.Time = &debvisorv1.Timestamp{Seconds: now.Unix(), Nanos: int32(now.Nanosecond())} //nolint:gosec // below 1e9
			}
		}
		f.add(facts)
		return nil
	}, func(revision int64) error {
		f.reached(revision)
		return nil
	})
	if lost, ok := errors.AsType[*store.CompactedError](err); ok {
		f.log.Error("events were lost: etcd has compacted its history faster than this replica could follow", "after", upTo, "oldest", lost.Oldest)
		f.forget()
	}
	return err
}

// derive gives all the facts of a revision.
func (f *Feed) derive(ctx context.Context, r store.Revision) ([]*Fact, error) {
	facts := derive(r)
	at := slices.IndexFunc(r.Changes, func(c store.Changed) bool { return c.Collection == "election" })
	if at < 0 {
		return facts, nil
	}
	was, wasSince, err := f.history.LeaderAt(ctx, r.Number-1)
	if err != nil {
		return nil, err
	}
	is, since, err := f.history.LeaderAt(ctx, r.Number)
	if err != nil {
		return nil, err
	}
	if since == wasSince {
		return facts, nil
	}
	facts = append(facts, leaderFact(r, at*perChange+1, was, is, since))
	slices.SortStableFunc(facts, func(a, b *Fact) int { return a.Cursor.Index - b.Cursor.Index })
	return facts, nil
}

// begin makes the feed one that knows all after a revision.
func (f *Feed) begin(revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.first, f.upTo = revision+1, revision
	f.wake()
}

// forget makes it one that knows nothing.
func (f *Feed) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.facts, f.first, f.upTo = nil, 0, 0
}

// add adds the facts of the next revision; reached makes them known.
func (f *Feed) add(facts []*Fact) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.facts = append(f.facts, facts...)
	if over := len(f.facts) - f.size; over > f.size/4 { // not with every fact
		// A revision is kept whole, or not at all.
		f.first = f.facts[over-1].Cursor.Revision + 1
		for over < len(f.facts) && f.facts[over].Cursor.Revision < f.first {
			over++
		}
		f.facts = slices.Clone(f.facts[over:])
	}
}

// reached notes that all up to a revision is known.
func (f *Feed) reached(revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision > f.upTo {
		f.upTo = revision
		f.wake()
	}
}

// wake wakes who waits; the lock is held.
func (f *Feed) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// span is the first revision whose facts are at hand, and the last that is known.
func (f *Feed) span() (first, upTo int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first, f.upTo
}

// next gives the facts after a cursor that are at hand, at most so many, and the
// place after them, with a channel that is closed when there may be more. Where
// what follows the cursor is not at hand any more, ok is false.
func (f *Feed) next(from Cursor, most int) (facts []*Fact, to Cursor, changed <-chan struct{}, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.upTo == 0 || from.Revision < f.first {
		return nil, from, f.changed, false
	}
	at, _ := slices.BinarySearchFunc(f.facts, from, func(fact *Fact, c Cursor) int {
		if c.Before(fact.Cursor) {
			return 1
		}
		return -1
	})
	end := at
	for end < len(f.facts) && end-at < most && f.facts[end].Cursor.Revision <= f.upTo {
		end++
	}
	facts = slices.Clone(f.facts[at:end])
	switch {
	case end < len(f.facts) && f.facts[end].Cursor.Revision <= f.upTo:
		to = facts[len(facts)-1].Cursor
	case from.Before(after(f.upTo)):
		to = after(f.upTo)
	default:
		to = from
	}
	return facts, to, f.changed, true
}

// Leave ends every watch: they go on at another replica.
func (f *Feed) Leave() { f.leave.Do(func() { close(f.leaving) }) }
