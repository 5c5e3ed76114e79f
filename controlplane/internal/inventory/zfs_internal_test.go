package inventory

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// tank is a pool with these datasets, each using that much.
func tank(used uint64, names ...string) *agentv1.ZfsInventory {
	inv := &agentv1.ZfsInventory{Pools: []*agentv1.ZfsPool{{Name: "tank", Guid: 1, Health: "ONLINE", AllocatedBytes: used}}, Version: "2.4.4"}
	for i, name := range names {
		inv.Datasets = append(inv.Datasets, &agentv1.ZfsDataset{Name: name, Guid: uint64(i + 1), UsedBytes: used})
	}
	return inv
}

func TestZFSIsWrittenWhenMoreThanSizesDiffer(t *testing.T) {
	i, _ := leading(t, cluster.Empty())
	var kept *agentv1.ZfsInventory // what would be in etcd
	write := func(all bool) (writes int) {
		records, gone := i.takeZFS(all)
		for _, r := range records {
			kept = decode(r.GetInventory(), &agentv1.ZfsInventory{})
			if r.GetNode() != "a" || !r.GetReportedAt().IsValid() {
				t.Errorf("record %v", r)
			}
		}
		for range gone {
			kept = nil
		}
		return len(records) + len(gone)
	}
	step := func(what string, inv *agentv1.Inventory, writes int, want *agentv1.ZfsInventory) {
		t.Helper()
		i.Report("a", inv)
		if n := write(false); n != writes || !proto.Equal(kept, want) {
			t.Errorf("%s: %d writes, want %d; kept %v, want %v", what, n, writes, kept, want)
		}
	}
	told := func(z *agentv1.ZfsInventory) *agentv1.Inventory { return &agentv1.Inventory{Zfs: z} }
	first := tank(1, "tank", "tank/a")
	step("what it begins with says nothing yet", &agentv1.Inventory{Complete: true, ZfsFollows: true}, 0, nil)
	step("the first", told(first), 1, first)
	step("the same", told(tank(1, "tank", "tank/a")), 0, first)
	if n := write(true); n != 0 {
		t.Errorf("the same is written with all others: %d", n)
	}
	step("sizes", told(tank(2, "tank", "tank/a")), 0, first)
	if n := write(true); n != 1 || !proto.Equal(kept, tank(2, "tank", "tank/a")) {
		t.Errorf("sizes are not written with all others: %d, %v", n, kept)
	}
	step("a dataset appears", told(tank(3, "tank", "tank/a", "tank/b")), 1, tank(3, "tank", "tank/a", "tank/b"))
	sick := tank(3, "tank", "tank/a")
	sick.Pools[0].Health = "DEGRADED"
	step("one is gone, and the pool degraded", told(sick), 1, sick)
	silent := proto.CloneOf(sick)
	silent.Error = "silent"
	step("an agent that has begun while ZFS hangs", told(&agentv1.ZfsInventory{Error: "silent"}), 1, silent)
	step("it goes on", told(&agentv1.ZfsInventory{Error: "silent"}), 0, silent)
	step("another session", &agentv1.Inventory{Complete: true, ZfsFollows: true}, 0, silent)
	step("it answers", told(sick), 1, sick)
	step("changes of other things", &agentv1.Inventory{}, 0, sick)
	step("no ZFS any more", &agentv1.Inventory{Complete: true}, 1, nil)
	step("nor then", &agentv1.Inventory{Complete: true}, 0, nil)
}

// TestSizesOfZFSAreWrittenEveryHalfMinute counts transactions: one dataset grows
// all the time.
func TestSizesOfZFSAreWrittenEveryHalfMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, c := leading(t, cluster.Empty())
		defer i.keep(t)()
		const minutes = 10
		for second := range uint64(minutes * 60) {
			i.Report("a", &agentv1.Inventory{Zfs: tank(second, "tank")})
			time.Sleep(time.Second)
		}
		// Two each half minute: its state and its ZFS.
		if n := c.txns.Load(); n < 2*2*minutes-4 || n > 2*2*minutes+4 {
			t.Errorf("%d transactions in %d minutes", n, minutes)
		}
	})
}
