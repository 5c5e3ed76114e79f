package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// History reads what etcd keeps of the past: every change of every record since
// the last compaction, in order, with what was there before. It is safe for use
// by many goroutines.
type History struct {
	client *clientv3.Client
	// readers numbers the watches, each of which has a stream of its own.
	readers atomic.Uint64
}

// NewHistory makes one.
func NewHistory(client *clientv3.Client) *History { return &History{client: client} }

// Revision is all that one transaction changed under the prefix, in the order in
// which it did; every member of etcd gives the same.
type Revision struct {
	Number  int64
	Changes []Changed
}

// Changed is the change of one record.
type Changed struct {
	// Collection is what stands between the prefix and the next slash, such as
	// "nodes"; ID is what follows. A record that is alone has no ID.
	Collection, ID string
	// Was and Is are the encoded record before and after; Had and Has tell whether
	// there was one and is.
	Was, Is  []byte
	Had, Has bool
}

// CompactedError says that the history no longer reaches back so far.
type CompactedError struct {
	// Oldest is the first revision that can still be told whole.
	Oldest int64
}

// Error names the oldest revision.
func (e *CompactedError) Error() string {
	return fmt.Sprintf("etcd has compacted its history; the oldest revision is %d", e.Oldest)
}

// Latest is the revision of the last change that was committed, by a quorum.
func (h *History) Latest(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	answer, err := h.client.Get(ctx, EpochKey(), clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("asking for etcd's revision: %w", err)
	}
	return answer.Header.Revision, nil
}

// Oldest is the first revision that can be told whole.
func (h *History) Oldest(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	_, err := h.client.Get(ctx, EpochKey(), clientv3.WithRev(1), clientv3.WithCountOnly())
	switch {
	case err == nil:
		return 1, nil
	case !errors.Is(err, rpctypes.ErrCompacted):
		return 0, fmt.Errorf("asking how far etcd's history reaches back: %w", err)
	}
	// Only a watch is told where the history begins.
	ctx = h.stream(ctx)
	for r := range h.client.Watch(clientv3.WithRequireLeader(ctx), EpochKey(), clientv3.WithRev(1)) {
		if r.CompactRevision > 0 {
			return r.CompactRevision + 1, nil
		}
		if err := r.Err(); err != nil {
			return 0, fmt.Errorf("asking how far etcd's history reaches back: %w", err)
		}
	}
	return 0, fmt.Errorf("asking how far etcd's history reaches back: %w", errors.Join(errWatchEnded, ctx.Err()))
}

var errWatchEnded = errors.New("the watch has ended")

// progressEvery is how often a reader asks how far it has come, where it is told
// nothing.
const progressEvery = 500 * time.Millisecond

// stream gives a context whose watch has a stream to etcd of its own: etcd tells
// no watch of a stream how far it has come while another of it reads history.
func (h *History) stream(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "debvisor-watch", "history-"+strconv.FormatUint(h.readers.Add(1), 10))
}

// Follow calls see with every revision from one on that changed anything under
// the prefix, as they come, and reached when it is known that all up to a
// revision has been seen. It ends with the error of either, with ctx, with
// *CompactedError where the history does not reach back so far, and with any
// other trouble of etcd's, after which it may be called again.
func (h *History) Follow(ctx context.Context, from int64, see func(Revision) error, reached func(revision int64) error) error {
	ctx, cancel := context.WithCancel(h.stream(ctx))
	defer cancel()
	ctx = clientv3.WithRequireLeader(ctx)
	responses := h.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV(), clientv3.WithProgressNotify())
	ask := time.NewTicker(progressEvery)
	defer ask.Stop()
	for {
		select {
		case r, more := <-responses:
			if !more {
				return errors.Join(errWatchEnded, ctx.Err())
			}
			if err := absorbHistory(r, see, reached); err != nil {
				return err
			}
		case <-ask.C:
			// Its answer comes as a response; that there is none is no error.
			_ = h.client.RequestProgress(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// absorbHistory passes one response on, revision by revision.
func absorbHistory(r clientv3.WatchResponse, see func(Revision) error, reached func(int64) error) error {
	switch {
	case r.CompactRevision > 0:
		return &CompactedError{Oldest: r.CompactRevision + 1}
	case r.Err() != nil:
		return r.Err()
	case r.IsProgressNotify():
		return reached(r.Header.Revision)
	}
	for at := 0; at < len(r.Events); {
		revision := Revision{Number: r.Events[at].Kv.ModRevision}
		for ; at < len(r.Events) && r.Events[at].Kv.ModRevision == revision.Number; at++ {
			change, whole := changeOf(r.Events[at])
			if !whole {
				// What was there before has been compacted meanwhile.
				return &CompactedError{Oldest: revision.Number + 1}
			}
			revision.Changes = append(revision.Changes, change)
		}
		if err := see(revision); err != nil {
			return err
		}
		if err := reached(revision.Number); err != nil {
			return err
		}
	}
	return nil
}

// changeOf is one event of etcd; whole is false where what was there before is
// not told although something was.
func changeOf(e *clientv3.Event) (_ Changed, whole bool) {
	change := Changed{Has: e.Type == clientv3.EventTypePut, Had: e.PrevKv != nil}
	if change.Collection, change.ID, whole = strings.Cut(strings.TrimPrefix(string(e.Kv.Key), prefix), "/"); !whole {
		change.ID = ""
	}
	if change.Has {
		change.Is = e.Kv.Value
	}
	if change.Had {
		change.Was = e.PrevKv.Value
	}
	return change, change.Had || e.IsCreate()
}

// LeaderAt tells who led at a revision, and since which; nil: nobody did.
// *CompactedError where that is not known any more.
func (h *History) LeaderAt(ctx context.Context, revision int64) (*storev1.Leader, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	answer, err := h.client.Get(ctx, prefix+election, clientv3.WithPrefix(), clientv3.WithRev(revision),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend), clientv3.WithLimit(1))
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return nil, 0, &CompactedError{Oldest: revision + 2}
	case err != nil:
		return nil, 0, fmt.Errorf("asking who led at revision %d: %w", revision, err)
	case len(answer.Kvs) == 0:
		return nil, 0, nil
	}
	leader, err := message[storev1.Leader](answer.Kvs[0].Value)
	if err != nil {
		leader = &storev1.Leader{}
	}
	return leader, answer.Kvs[0].CreateRevision, nil
}
