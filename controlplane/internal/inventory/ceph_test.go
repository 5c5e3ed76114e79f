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

// TestCephAcrossLeaders: the next leader knows what the former wrote, and what
// etcd does not take is written once it does.
func TestCephAcrossLeaders(t *testing.T) {
	l := newLeader(t)
	l.lead()
	of := func(health string) *agentv1.CephInventory {
		return &agentv1.CephInventory{Fsid: "f", Health: health, Pools: []*agentv1.CephPool{{Name: "rbd", Id: 1, Rbd: true}}}
	}
	is := func(want *agentv1.CephInventory) func(*cluster.Snapshot) bool {
		return func(s *cluster.Snapshot) bool {
			record, ok := s.Ceph["a"]
			var kept agentv1.CephInventory
			return ok == (want != nil) && proto.Unmarshal(record.Value.GetInventory(), &kept) == nil &&
				(want == nil || proto.Equal(&kept, want) && record.Value.GetReportedAt().IsValid() && record.Value.GetNode() == "a")
		}
	}
	l.session("a", "boot")
	l.Report("a", &agentv1.Inventory{Ceph: of("HEALTH_OK")})
	l.eventually("the cluster", is(of("HEALTH_OK")))

	l.lead()
	l.Report("a", &agentv1.Inventory{Complete: true, CephFollows: true})
	l.Report("a", &agentv1.Inventory{Ceph: &agentv1.CephInventory{Error: "silent"}})
	silent := of("HEALTH_OK")
	silent.Error = "silent"
	l.eventually("what the former leader knew, and that it is silent", is(silent))

	var refused atomic.Int32
	refuse := func(c store.Change) error {
		if len(c.Puts) > 0 && refused.Add(1) <= 3 {
			return errors.New("etcd does not answer")
		}
		return nil
	}
	l.commit.Store(&refuse)
	l.Report("a", &agentv1.Inventory{Ceph: of("HEALTH_ERR")})
	l.eventually("its new health", is(of("HEALTH_ERR")))
	if refused.Load() <= 3 {
		t.Errorf("written at the attempt %d: nothing was refused", refused.Load())
	}

	l.lead()
	l.Report("a", &agentv1.Inventory{Complete: true})
	l.eventually("no Ceph any more", is(nil))
}
