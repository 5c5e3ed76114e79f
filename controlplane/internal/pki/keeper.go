package pki

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// Keeper sees to it that every replica can take over the CAs' record. It is for
// the leader.
type Keeper struct {
	View  View
	Store Committer
	Fence *store.Fence
	Ring  func() *certs.Ring
	Log   hclog.Logger
}

// keepEvery is how often it looks besides: what failed is tried again, and this
// replica may have been behind the record.
const keepEvery = 2 * time.Second

// Run looks at each change of the records until the context ends; it then
// returns nil.
func (k Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	var seen [2]any
	for {
		changed, s := k.View.Changed(), k.View.Current()
		// Replicas and CAs change seldom; most changes are of other things.
		if now := [2]any{s.CA.ModRevision, len(s.Replicas)}; now != seen {
			if k.reseal(ctx) {
				seen = now
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
			seen = [2]any{}
		}
	}
}

// reseal tells whether nothing is left to do.
func (k Keeper) reseal(ctx context.Context) bool {
	change, needed, err := Reseal(k.View.Current(), k.Ring(), time.Now())
	if err == nil && needed {
		change.Fence = k.Fence
		if _, err = k.Store.Commit(ctx, change); err == nil {
			k.Log.Info("the CAs' keys are sealed anew: the replicas are others")
		}
	}
	if err != nil && ctx.Err() == nil {
		k.Log.Warn("the CAs' keys are sealed anew later", "error", err)
	}
	return err == nil
}
