package plans

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

const (
	// keepMost and keepBytes bound the plans that are kept at a time; of more,
	// the oldest go before their time.
	keepMost  = 1000
	keepBytes = 64 << 20
	// sweepBatch is how many are deleted in one transaction.
	sweepBatch = 500
)

// sweep deletes the plans that have ended. Its only error is store.ErrFenced;
// what was not deleted will be tried again.
func (c *Controller) sweep(ctx context.Context, l election.Leadership, now time.Time) error {
	for batch := range slices.Chunk(outdated(c.view.Current(), now), sweepBatch) {
		_, err := c.store.Commit(ctx, store.Change{Fence: l.Fence, Deletes: batch})
		switch {
		case errors.Is(err, store.ErrFenced):
			return fmt.Errorf("sweeping plans: %w", err)
		case err != nil:
			if ctx.Err() == nil {
				c.log.Warn("old plans are swept later", "error", err)
			}
			return nil
		}
	}
	return nil
}

// outdated gives the keys of the plans that have expired or are too many.
func outdated(s *cluster.Snapshot, now time.Time) []string {
	var keys []string
	size, kept := 0, 0
	for _, p := range Newest(s.Within("")) {
		if !Expired(p, now) && kept < keepMost && size+proto.Size(p) <= keepBytes {
			kept, size = kept+1, size+proto.Size(p)
			continue
		}
		keys = append(keys, store.PlanKey(p.GetId()))
	}
	return keys
}

// Newest are the plans in a scope, newest first.
func Newest(scope cluster.Scope) []*storev1.Plan {
	var list []*storev1.Plan
	for p := range scope.Plans() {
		list = append(list, p.Value)
	}
	slices.SortFunc(list, func(a, b *storev1.Plan) int {
		return cmp.Or(b.GetCreatedAt().AsTime().Compare(a.GetCreatedAt().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return list
}

// Expired tells whether a plan has ended, though its record may be there still.
func Expired(p *storev1.Plan, now time.Time) bool { return !now.Before(p.GetExpiresAt().AsTime()) }
