package pki

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// The records of certificates that have ended are kept for a month, the last few
// of each holder: with lives of a minute there would be no end of them. Neither
// would there be of those that were renewed, of a replica that is started again and
// again or an agent that does nothing but renew. A node's certificates are revoked
// all at once, noted or not; a replica's by their serials, as many as one change
// revokes.
const (
	keptFor    = 30 * 24 * time.Hour
	keptEnded  = 10
	keptAgents = 10
	sweepEvery = time.Minute
	sweepBatch = 500
)

// View is where records are read: store.View.
type View interface {
	Current() *cluster.Snapshot
	Changed() <-chan struct{}
}

// Committer applies changes: store.Store.
type Committer interface {
	Commit(ctx context.Context, c store.Change) (int64, error)
}

// Stale are the keys of records that are no longer kept, at most so many.
func Stale(s *cluster.Snapshot, now time.Time, most int) []string {
	a := newAccount(s, now)
	ended, renewed := map[Holder][]*storev1.Certificate{}, map[Holder][]*storev1.Certificate{}
	for _, e := range s.Certificates {
		switch h := holderOf(e.Value); {
		case a.ended(e.Value):
			ended[h] = append(ended[h], e.Value)
		case a.superseded(e):
			renewed[h] = append(renewed[h], e.Value)
		}
	}
	var keys []string
	drop := func(list []*storev1.Certificate, kept int) {
		slices.SortFunc(list, func(x, y *storev1.Certificate) int {
			return y.GetExpiresAt().AsTime().Compare(x.GetExpiresAt().AsTime())
		})
		for i, r := range list {
			if i >= kept || now.Sub(r.GetExpiresAt().AsTime()) > keptFor {
				keys = append(keys, store.CertificateKey(r.GetSerial()))
			}
		}
	}
	for _, list := range ended {
		drop(list, keptEnded)
	}
	for h, list := range renewed {
		if h.Kind == Agent {
			drop(list, keptAgents)
		} else {
			drop(list, revokedAtOnce)
		}
	}
	slices.SortFunc(keys, strings.Compare)
	return keys[:min(len(keys), most)]
}

// Sweeper deletes the records that are no longer kept. It is for the leader.
type Sweeper struct {
	View  View
	Store Committer
	// Fence ties it to the leader's term.
	Fence *store.Fence
	Log   hclog.Logger
}

// Run sweeps now and then until the context ends; it then returns nil. Failures
// are logged and tried again.
func (s Sweeper) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		changed := s.View.Changed()
		keys := Stale(s.View.Current(), time.Now(), sweepBatch)
		if len(keys) > 0 {
			if _, err := s.Store.Commit(ctx, store.Change{Fence: s.Fence, Deletes: keys}); err != nil && ctx.Err() == nil {
				s.Log.Warn("old records of certificates not deleted", "error", err)
			}
		}
		if len(keys) < sweepBatch {
			changed = nil // there is no more for now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}
