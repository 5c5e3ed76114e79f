package inventory

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// ceph is what a node told of its Ceph cluster.
type ceph struct {
	told *agentv1.CephInventory // nil: it has none, or nothing is known; never changed
	at   time.Time
	// moved: sizes differ from what is written; urgent: something else does.
	moved, urgent bool
}

// take takes an inventory.
func (c *ceph) take(inv *agentv1.Inventory, now time.Time) {
	told := inv.GetCeph()
	switch {
	case told == nil && (!inv.GetComplete() || inv.GetCephFollows()):
		return
	case told == nil:
		c.urgent = c.urgent || c.told != nil
	case told.GetError() != "" && told.GetFsid() == "" && c.told != nil:
		// An agent that has just begun knows less than was told before.
		silent := proto.CloneOf(c.told)
		silent.Error = told.GetError()
		told = silent
		fallthrough
	default:
		c.urgent = c.urgent || !sameCeph(c.told, told)
		c.moved = c.moved || !proto.Equal(c.told, told)
	}
	c.told, c.at = told, now
}

// sameCeph tells whether two inventories differ by sizes only.
func sameCeph(a, b *agentv1.CephInventory) bool {
	return (a == nil) == (b == nil) && a.GetFsid() == b.GetFsid() && a.GetHealth() == b.GetHealth() && a.GetVersion() == b.GetVersion() &&
		a.GetEntity() == b.GetEntity() && a.GetError() == b.GetError() && slices.Equal(a.GetMonitors(), b.GetMonitors()) &&
		slices.EqualFunc(a.GetPools(), b.GetPools(), func(a, b *agentv1.CephPool) bool {
			return a.GetName() == b.GetName() && a.GetId() == b.GetId() && a.GetRbd() == b.GetRbd()
		})
}

// writeCeph writes the Ceph of nodes where more than sizes differ, with all: of
// every node of which there is anything new. What cannot be written stays to be
// written.
func (i *Inventory) writeCeph(ctx context.Context, l election.Leadership, all bool) error {
	records, gone := i.takeCeph(all)
	return writeEach(ctx, i.cfg.Store, l, store.NodeCephKey, records, gone, i.giveBackCeph)
}

// takeCeph takes what is to be written, and the nodes that have no Ceph any more.
func (i *Inventory) takeCeph(all bool) (records []*storev1.NodeCeph, gone []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(i.nodes)) {
		c := &i.nodes[id].ceph
		if !c.urgent && (!all || !c.moved) {
			continue
		}
		c.urgent, c.moved = false, false
		if c.told == nil {
			gone = append(gone, id)
			continue
		}
		records = append(records, &storev1.NodeCeph{Node: id, Inventory: encode(c.told), ReportedAt: timestamppb.New(c.at)})
	}
	return records, gone
}

func (i *Inventory) giveBackCeph(nodes []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range nodes {
		if n, ok := i.nodes[id]; ok {
			n.ceph.urgent = true
		}
	}
}
