package inventory_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// TestZFSAcrossLeaders: the next leader knows what the former wrote, and what
// etcd does not take is written once it does.
func TestZFSAcrossLeaders(t *testing.T) {
	l := newLeader(t)
	l.lead()
	pool := func(health string) *agentv1.ZfsInventory {
		return &agentv1.ZfsInventory{Pools: []*agentv1.ZfsPool{{Name: "tank", Guid: 1, Health: health}}}
	}
	is := func(want *agentv1.ZfsInventory) func(*cluster.Snapshot) bool {
		return func(s *cluster.Snapshot) bool {
			record, ok := s.ZFS["a"]
			var kept agentv1.ZfsInventory
			return ok == (want != nil) && proto.Unmarshal(record.Value.GetInventory(), &kept) == nil &&
				(want == nil || proto.Equal(&kept, want) && record.Value.GetReportedAt().IsValid() && record.Value.GetNode() == "a")
		}
	}
	l.session("a", "boot")
	l.Report("a", &agentv1.Inventory{Zfs: pool("ONLINE")})
	l.eventually("the pool", is(pool("ONLINE")))
	written := l.view.Current().ZFS["a"].ModRevision

	l.lead()
	l.Report("a", &agentv1.Inventory{Complete: true, ZfsFollows: true})
	l.Report("a", &agentv1.Inventory{Zfs: pool("ONLINE")})
	l.session("b", "boot") // its write comes after what there is to write of a
	l.eventually("the session", func(s *cluster.Snapshot) bool { _, ok := s.Statuses["b"]; return ok })
	if now := l.view.Current().ZFS["a"].ModRevision; now != written {
		t.Errorf("what has not changed was written again: at %d, before at %d", now, written)
	}

	var refused atomic.Int32
	refuse := func(c store.Change) error {
		if len(c.Puts) > 0 && refused.Add(1) <= 3 {
			return errors.New("etcd does not answer")
		}
		return nil
	}
	l.commit.Store(&refuse)
	l.Report("a", &agentv1.Inventory{Zfs: pool("SUSPENDED")})
	l.eventually("the pool's new health", is(pool("SUSPENDED")))
	if refused.Load() <= 3 {
		t.Errorf("written at the attempt %d: nothing was refused", refused.Load())
	}

	l.lead()
	l.Report("a", &agentv1.Inventory{Complete: true})
	l.eventually("no ZFS any more", is(nil))
}
