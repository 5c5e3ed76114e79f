package inventory

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// healthy is a cluster with those pools, each using that much.
func healthy(used uint64, pools ...string) *agentv1.CephInventory {
	inv := &agentv1.CephInventory{Fsid: "f", Health: "HEALTH_OK", Version: "16.2.15", Entity: "client.debvisor"}
	for i, name := range pools {
		inv.Pools = append(inv.Pools, &agentv1.CephPool{Name: name, Id: int64(i + 1), UsedBytes: used, Rbd: true})
	}
	return inv
}

func TestCephIsWrittenWhenMoreThanSizesDiffer(t *testing.T) {
	i, _ := leading(t, cluster.Empty())
	var kept *agentv1.CephInventory // what would be in etcd
	write := func(all bool) (writes int) {
		records, gone := i.takeCeph(all)
		for _, r := range records {
			kept = decode(r.GetInventory(), &agentv1.CephInventory{})
			if r.GetNode() != "a" || !r.GetReportedAt().IsValid() {
				t.Errorf("record %v", r)
			}
		}
		for range gone {
			kept = nil
		}
		return len(records) + len(gone)
	}
	step := func(what string, inv *agentv1.Inventory, writes int, want *agentv1.CephInventory) {
		t.Helper()
		i.Report("a", inv)
		if n := write(false); n != writes || !proto.Equal(kept, want) {
			t.Errorf("%s: %d writes, want %d; kept %v, want %v", what, n, writes, kept, want)
		}
	}
	told := func(c *agentv1.CephInventory) *agentv1.Inventory { return &agentv1.Inventory{Ceph: c} }
	first := healthy(1, "rbd")
	step("what it begins with says nothing yet", &agentv1.Inventory{Complete: true, CephFollows: true}, 0, nil)
	step("the first", told(first), 1, first)
	step("the same", told(healthy(1, "rbd")), 0, first)
	step("sizes", told(healthy(2, "rbd")), 0, first)
	if n := write(true); n != 1 || !proto.Equal(kept, healthy(2, "rbd")) {
		t.Errorf("sizes are not written with all others: %d, %v", n, kept)
	}
	if n := write(true); n != 0 {
		t.Errorf("the same is written with all others: %d", n)
	}
	step("a pool appears", told(healthy(2, "rbd", "vms")), 1, healthy(2, "rbd", "vms"))
	sick := healthy(2, "rbd", "vms")
	sick.Health = "HEALTH_WARN"
	step("its health", told(sick), 1, sick)
	silent := proto.CloneOf(sick)
	silent.Error = "silent"
	step("an agent that has begun while Ceph hangs", told(&agentv1.CephInventory{Error: "silent"}), 1, silent)
	step("it goes on", told(&agentv1.CephInventory{Error: "silent"}), 0, silent)
	step("another session", &agentv1.Inventory{Complete: true, CephFollows: true}, 0, silent)
	step("it answers", told(sick), 1, sick)
	step("changes of other things", &agentv1.Inventory{}, 0, sick)
	step("ZFS is told", told(nil), 0, sick)
	another := healthy(2, "rbd", "vms")
	another.Fsid = "g"
	step("another cluster", told(another), 1, another)
	step("no Ceph any more", &agentv1.Inventory{Complete: true}, 1, nil)
	step("nor then", &agentv1.Inventory{Complete: true}, 0, nil)
}
