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

// zfs is what a node told of its ZFS.
type zfs struct {
	told *agentv1.ZfsInventory // nil: it has none, or nothing is known; never changed
	at   time.Time
	// moved: sizes differ from what is written; urgent: something else does.
	moved, urgent bool
}

// take takes an inventory.
func (z *zfs) take(inv *agentv1.Inventory, now time.Time) {
	told := inv.GetZfs()
	switch {
	case told == nil && (!inv.GetComplete() || inv.GetZfsFollows()):
		return
	case told == nil:
		z.urgent = z.urgent || z.told != nil
	case told.GetError() != "" && len(told.GetPools()) == 0 && len(told.GetDatasets()) == 0 && z.told != nil:
		// An agent that has just begun knows less than was told before.
		silent := proto.CloneOf(z.told)
		silent.Error = told.GetError()
		told = silent
		fallthrough
	default:
		z.urgent = z.urgent || !sameShape(z.told, told)
		z.moved = z.moved || !proto.Equal(z.told, told)
	}
	z.told, z.at = told, now
}

// sameShape tells whether two inventories differ by sizes only.
func sameShape(a, b *agentv1.ZfsInventory) bool {
	return (a == nil) == (b == nil) && a.GetVersion() == b.GetVersion() && a.GetModuleVersion() == b.GetModuleVersion() &&
		a.GetEncryptedSendUnsafe() == b.GetEncryptedSendUnsafe() && a.GetTruncated() == b.GetTruncated() && a.GetError() == b.GetError() &&
		slices.EqualFunc(a.GetPools(), b.GetPools(), func(a, b *agentv1.ZfsPool) bool {
			return a.GetName() == b.GetName() && a.GetGuid() == b.GetGuid() && a.GetHealth() == b.GetHealth() && a.GetReadOnly() == b.GetReadOnly()
		}) && slices.EqualFunc(a.GetDatasets(), b.GetDatasets(), sameDataset)
}

func sameDataset(a, b *agentv1.ZfsDataset) bool {
	return a.GetName() == b.GetName() && a.GetGuid() == b.GetGuid() && a.GetType() == b.GetType() && a.GetVolumeBytes() == b.GetVolumeBytes() &&
		a.GetEncrypted() == b.GetEncrypted() && a.GetKeyLoaded() == b.GetKeyLoaded() && a.GetOrigin() == b.GetOrigin() &&
		a.GetReadOnly() == b.GetReadOnly() && a.GetMounted() == b.GetMounted() && a.GetPartial() == b.GetPartial() &&
		a.GetReplicationJob() == b.GetReplicationJob()
}

// writeZFS writes the ZFS of nodes where more than sizes differ, with all: of
// every node of which there is anything new. What cannot be written stays to be
// written.
func (i *Inventory) writeZFS(ctx context.Context, l election.Leadership, all bool) error {
	records, gone := i.takeZFS(all)
	return writeEach(ctx, i.cfg.Store, l, store.NodeZFSKey, records, gone, i.giveBackZFS)
}

// takeZFS takes what is to be written, and the nodes that have no ZFS any more.
func (i *Inventory) takeZFS(all bool) (records []*storev1.NodeZFS, gone []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(i.nodes)) {
		z := &i.nodes[id].zfs
		if !z.urgent && (!all || !z.moved) {
			continue
		}
		z.urgent, z.moved = false, false
		if z.told == nil {
			gone = append(gone, id)
			continue
		}
		records = append(records, &storev1.NodeZFS{Node: id, Inventory: encode(z.told), ReportedAt: timestamppb.New(z.at)})
	}
	return records, gone
}

func (i *Inventory) giveBackZFS(nodes []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, id := range nodes {
		if n, ok := i.nodes[id]; ok {
			n.zfs.urgent = true
		}
	}
}
