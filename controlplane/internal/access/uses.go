package access

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

const (
	// usesEvery is how often uses are written, and useKept how long a key's use
	// that is written stands before a later one takes its place.
	usesEvery = 10 * time.Second
	useKept   = time.Minute
	// usesAtOnce is how many keys' uses go with one transaction.
	usesAtOnce = 200
	// lastUses is how long writing the last uses may take when a replica stops.
	lastUses = 2 * time.Second
)

// UsesConfig says where uses go.
type UsesConfig struct {
	View interface{ Current() *cluster.Snapshot }
	// File has keys beside those in etcd; nil: there are none.
	File  *accessfile.File
	Store interface {
		Commit(ctx context.Context, c store.Change) (revision int64, err error)
	}
	// Replica is who writes.
	Replica string
	Log     hclog.Logger
}

// Uses notes when and from where keys are used, in memory; Run writes it to
// etcd, for each key once a minute at most, whatever replicas use it. It is safe
// for use by many goroutines.
type Uses struct {
	cfg  UsesConfig
	mu   sync.RWMutex
	keys map[string]*use
}

// use is a key's last one on this replica.
type use struct {
	at   atomic.Int64 // nanoseconds since 1970
	from atomic.Pointer[string]
	// written is the last one that was written, or need not be.
	written int64
}

// NewUses makes one that knows of no use.
func NewUses(cfg UsesConfig) *Uses {
	if cfg.File == nil {
		cfg.File = accessfile.None()
	}
	return &Uses{cfg: cfg, keys: map[string]*use{}}
}

// Note notes a use of a key. It does not wait.
func (u *Uses) Note(id, address string, now time.Time) {
	u.mu.RLock()
	of := u.keys[id]
	u.mu.RUnlock()
	if of == nil {
		u.mu.Lock()
		if of = u.keys[id]; of == nil {
			of = &use{}
			u.keys[id] = of
		}
		u.mu.Unlock()
	}
	if from := of.from.Load(); from == nil || *from != address {
		of.from.Store(&address)
	}
	of.at.Store(now.UnixNano())
}

// Run writes uses now and then until ctx ends, then what is left. What cannot
// be written is written later.
func (u *Uses) Run(ctx context.Context) error {
	tick := time.NewTicker(usesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastUses)
			defer cancel()
			u.flush(ctx)
			return nil
		case <-tick.C:
			u.flush(ctx)
		}
	}
}

// flush writes the uses that are due. It is called by one goroutine at a time.
func (u *Uses) flush(ctx context.Context) {
	s, policy := u.cfg.View.Current(), u.cfg.File.Current()
	for ids := u.due(s, policy); len(ids) > 0; {
		some := ids[:min(len(ids), usesAtOnce)]
		ids = ids[len(some):]
		var conflict *store.ConflictError
		switch err := u.write(ctx, s, policy, some); {
		case err == nil:
		case errors.As(err, &conflict):
			u.cfg.Log.Debug("a key has changed meanwhile; uses of keys are written later", "key", conflict.Key)
		default:
			u.cfg.Log.Warn("the last uses of keys could not be written; that is tried again", "error", err)
			return
		}
	}
}

// due gives the keys whose last use is to be written, and forgets those that
// are no more. Another replica may have written a use that is recent enough.
func (u *Uses) due(s *cluster.Snapshot, policy *accessfile.Policy) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var ids []string
	for id, of := range u.keys {
		_, inFile := policy.Keys[id]
		_, inEtcd := s.APIKeys[id]
		if !inFile && !inEtcd {
			delete(u.keys, id)
			continue
		}
		at := of.at.Load()
		if stored := s.KeyUses[id].Value.GetAt(); stored != nil && at-stored.AsTime().UnixNano() < int64(useKept) {
			continue
		}
		if at-of.written >= int64(useKept) {
			ids = append(ids, id)
		}
	}
	return ids
}

// write writes uses, if the keys are still as the snapshot has them: no use may
// outlive its key's record.
func (u *Uses) write(ctx context.Context, s *cluster.Snapshot, policy *accessfile.Policy, ids []string) error {
	var change store.Change
	times := make([]int64, len(ids))
	u.mu.RLock()
	for i, id := range ids {
		of := u.keys[id]
		times[i] = of.at.Load()
		if _, inFile := policy.Keys[id]; !inFile {
			change.Require = append(change.Require, store.Unchanged(store.APIKeyKey(id), s.APIKeys[id].ModRevision))
		}
		change.Puts = append(change.Puts, store.PutProto(store.KeyUseKey(id), &storev1.KeyUse{
			At: timestamppb.New(time.Unix(0, times[i])), From: *of.from.Load(), Replica: u.cfg.Replica,
		}))
	}
	u.mu.RUnlock()
	if _, err := u.cfg.Store.Commit(ctx, change); err != nil {
		return err
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	for i, id := range ids {
		u.keys[id].written = times[i]
	}
	return nil
}
