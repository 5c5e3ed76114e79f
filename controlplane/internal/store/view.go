package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
)

const (
	// relistAfter is the pause before a failed view begins anew.
	relistAfter = 200 * time.Millisecond
	// pageSize is how many records one request of the list fetches.
	pageSize = 1000
	// batchResponses is how many waiting watch responses go into one snapshot.
	batchResponses = 64
)

// View keeps a snapshot of the cluster up to date by watching etcd. It is safe
// for use by many goroutines.
type View struct {
	client *clientv3.Client
	log    hclog.Logger
	codec  codec

	current atomic.Pointer[cluster.Snapshot]
	ready   chan struct{}
	once    sync.Once
	// born is the zero of the view's clock, which is monotonic.
	born time.Time
	// trueAt is when, by that clock, the snapshot was last known to hold all
	// that had been committed; negative: never.
	trueAt atomic.Int64
	// wentRound is when, by that clock, the age was last measured, whatever came
	// of it.
	wentRound atomic.Int64
	// behind is since when, by that clock, the snapshot stands still although etcd
	// has told a later revision; negative: it does not, or etcd tells nothing.
	behind atomic.Int64
	// lostAfter is for how long that may be.
	lostAfter time.Duration

	mu      sync.Mutex
	changed chan struct{}

	// ended is told what comes to its end; nil: nobody is.
	ended func(cluster.Endings)
}

// OnEnd sets who is told, in order, of operations and tasks that come to their
// ends: each time once, but for tasks that end while the watch is broken. It
// must not wait, and is to be set before Run.
func (v *View) OnEnd(told func(cluster.Endings)) { v.ended = told }

func (v *View) tellEndings(e cluster.Endings) {
	if v.ended != nil && len(e.Operations)+len(e.Tasks) > 0 {
		v.ended(e)
	}
}

// NewView makes a View that is filled and kept by Run.
func NewView(client *clientv3.Client, log hclog.Logger) *View {
	v := &View{
		client: client, log: log, codec: newCodec(),
		ready: make(chan struct{}), changed: make(chan struct{}), born: time.Now(), lostAfter: lostAfter,
	}
	v.current.Store(cluster.Empty())
	v.trueAt.Store(-1)
	v.behind.Store(-1)
	return v
}

// Ready is closed when the first snapshot has been read.
func (v *View) Ready() <-chan struct{} { return v.ready }

// Current gives the latest snapshot; before Ready it is an empty one. It may
// be old: ask Fresh.
func (v *View) Current() *cluster.Snapshot { return v.current.Load() }

// Changed gives a channel that is closed at the next snapshot after this call.
// Ask for it before reading Current, or a change in between goes unseen.
func (v *View) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// Await waits until the snapshot is at that revision or a later one, so that
// one can read what one has written. Its only error is the context's end.
func (v *View) Await(ctx context.Context, revision int64) error {
	for {
		changed := v.Changed()
		if v.Current().Revision >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for revision %d: %w", revision, ctx.Err())
		}
	}
}

// Run keeps the snapshot until ctx ends. Whatever etcd does it goes on: after
// an error or a compaction it lists everything anew.
func (v *View) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	probing := make(chan struct{})
	go func() {
		defer close(probing)
		v.probe(ctx)
	}()
	defer func() {
		cancel()
		<-probing
	}()
	for {
		err := v.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.log.Warn("the snapshot begins anew", "reason", err)
		select {
		case <-time.After(relistAfter):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow lists everything and watches from there; it returns when the watch
// has ended.
func (v *View) follow(ctx context.Context) error {
	// The watch must end with this call, and its error too ends the call.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	revision, err := v.list(ctx)
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	responses := v.client.Watch(clientv3.WithRequireLeader(ctx), prefix,
		clientv3.WithPrefix(), clientv3.WithRev(revision+1), clientv3.WithProgressNotify())
	for r := range responses {
		if err := v.absorb(r, responses); err != nil {
			return fmt.Errorf("watching from revision %d: %w", v.Current().Revision+1, err)
		}
	}
	return errors.New("the watch has ended")
}

// absorb makes one snapshot of a response and of those that wait behind it.
func (v *View) absorb(r clientv3.WatchResponse, waiting <-chan clientv3.WatchResponse) error {
	was := v.Current()
	draft, at := was.Draft(), was.Revision
	for taken, more := 1, true; more; taken++ {
		if err := r.Err(); err != nil {
			return err
		}
		at = max(at, v.take(draft, r))
		if more = taken < batchResponses; more {
			select {
			case r, more = <-waiting:
			default:
				more = false
			}
		}
	}
	if at > was.Revision {
		v.publish(draft.Snapshot(at))
	}
	v.tellEndings(draft.Endings())
	return nil
}

// take brings a response's events into the draft and gives the revision up to
// which it tells everything.
func (v *View) take(draft *cluster.Draft, r clientv3.WatchResponse) int64 {
	if r.IsProgressNotify() {
		return r.Header.Revision
	}
	// The header's revision may be ahead of the events: others may follow.
	var at int64
	for _, event := range r.Events {
		v.apply(draft, event.Kv, event.Type == clientv3.EventTypeDelete)
		at = event.Kv.ModRevision
	}
	return at
}

// apply brings a record into the draft; one that cannot be decoded is logged
// and left out or grants nothing, and harms nothing else.
func (v *View) apply(draft *cluster.Draft, kv *mvccpb.KeyValue, deleted bool) {
	if err := v.codec.apply(draft, kv, deleted); err != nil {
		v.log.Error("a record is broken: it is left out, and a principal or a role may do nothing until it is set anew", "key", string(kv.Key), "revision", kv.ModRevision, "error", err)
	}
}

// publish makes a snapshot the current one and wakes who waits for it.
func (v *View) publish(s *cluster.Snapshot) {
	v.current.Store(s)
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.changed)
	v.changed = make(chan struct{})
}
