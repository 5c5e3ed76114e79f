package enroll

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// Sweeper deletes the records of tokens that ended long ago. It is for the
// leader.
type Sweeper struct {
	View  View
	Store Committer
	// Fence ties it to the leader's term.
	Fence *store.Fence
	Log   hclog.Logger
}

const (
	sweepEvery = 10 * time.Minute
	sweepBatch = 500
)

// Run sweeps now and then until the context ends; it then returns nil.
// Failures are logged and tried again.
func (s Sweeper) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if keys := Stale(s.View.Current(), time.Now(), sweepBatch); len(keys) > 0 {
			if _, err := s.Store.Commit(ctx, store.Change{Fence: s.Fence, Deletes: keys}); err != nil && ctx.Err() == nil {
				s.Log.Warn("old join tokens not deleted", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
