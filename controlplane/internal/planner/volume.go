package planner

import (
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// pools is what a node last reported of its ZFS.
type pools struct {
	datasets map[string]*agentv1.ZfsDataset
	rooms    map[string]*volume
	// partial: there are more datasets than were reported.
	partial bool
	// why is why its ZFS does not answer, or is not there; empty: it is well.
	why string
}

// zfs reads a node's, once.
func (w *World) zfs(h *host) *pools {
	if h.pools != nil {
		return h.pools
	}
	h.pools = &pools{datasets: map[string]*agentv1.ZfsDataset{}, rooms: map[string]*volume{}}
	entry, ok := w.snapshot.ZFS[h.id]
	var reported agentv1.ZfsInventory
	if !ok || proto.Unmarshal(entry.Value.GetInventory(), &reported) != nil {
		h.pools.why = "the node reports no ZFS"
		return h.pools
	}
	h.pools.why, h.pools.partial = reported.GetError(), reported.GetTruncated()
	for _, d := range reported.GetDatasets() {
		h.pools.datasets[d.GetName()] = d
	}
	for _, p := range reported.GetPools() {
		free := p.GetFreeBytes()
		if root := h.pools.datasets[p.GetName()]; root != nil {
			free = root.GetAvailableBytes() // less what ZFS keeps for itself
		}
		if p.GetReadOnly() || p.GetHealth() == "SUSPENDED" {
			free = 0
		}
		h.pools.rooms[p.GetName()] = &volume{
			&debvisorv1.FileSystem{MountPoint: "ZFS pool " + p.GetName(), TotalBytes: p.GetSizeBytes(), AvailableBytes: free},
			h.id + ":zfs:" + p.GetName(),
		}
	}
	return h.pools
}

// room gives the pool that a dataset is in, as what holds disks; nil: there is
// none.
func (p *pools) room(dataset string) *volume {
	pool, _, _ := strings.Cut(dataset, "/")
	return p.rooms[pool]
}

// parentOf is the dataset above; a pool has none.
func parentOf(dataset string) string {
	i := strings.LastIndexByte(dataset, '/')
	return dataset[:max(i, 0)]
}

// volumeDir is where ZFS's volumes have the names that all hosts give them.
const volumeDir = "/dev/zvol/"

// isVolume tells whether a disk is a ZFS volume of its node's own.
func isVolume(d *debvisorv1.VMDisk) bool {
	return d.GetType() == "block" && d.GetZfsDataset() != "" && !d.GetShared()
}

// whyNotVolume tells what keeps a ZFS volume from being made elsewhere; empty:
// nothing.
func (d disk) whyNotVolume() string {
	switch {
	case d.origin.GetVolumeBytes() == 0:
		return "is a ZFS volume that its node does not report (yet)"
	case d.GetSource() != volumeDir+d.GetZfsDataset():
		return "is a ZFS volume by a name that need not mean the same elsewhere (" + volumeDir + d.GetZfsDataset() + " would)"
	case d.GetFormat() != "raw":
		return "is a ZFS volume with an image in it, and only raw ones are copied"
	case d.origin.GetPartial():
		return "is a ZFS volume that is being received"
	}
	return ""
}

// volumeRoom is what a volume takes on the target, bytes: all of it where its
// size is reserved on the source, else what it holds. That it may come to take
// more than there is was decided when it was made sparse.
func (d disk) volumeRoom() uint64 {
	if d.reserved() {
		return max(d.origin.GetVolumeBytes(), d.origin.GetReservedBytes())
	}
	return d.origin.GetReferencedBytes()
}

func (d disk) reserved() bool { return d.origin.GetReservedBytes() > 0 }

// volumePlace refuses a node on which a volume cannot be made.
func volumePlace(w *World, h *host, m *mover, d disk, o *objections) {
	name, parent, there := d.GetZfsDataset(), parentOf(d.GetZfsDataset()), w.zfs(h)
	above := there.datasets[parent]
	switch {
	case there.why != "":
		o.no(DiskSpace, "disk %s of VM %s is the ZFS volume %s, and ZFS there does not answer: %s", d.GetTarget(), m.guest.name(), name, there.why)
		return
	case there.datasets[name] != nil:
		o.no(DiskExists, "disk %s of VM %s is the ZFS volume %s, and the node has a dataset of that name already", d.GetTarget(), m.guest.name(), name)
		return
	case above == nil && !there.partial || there.room(name) == nil:
		o.no(DiskSpace, "the node has no ZFS dataset %s in which %s could be made (disk %s of VM %s)", parent, name, d.GetTarget(), m.guest.name())
		return
	}
	if d.origin.GetEncrypted() && (!above.GetEncrypted() || !above.GetKeyLoaded()) {
		o.no(DiskNotCopyable, "disk %s of VM %s is the encrypted ZFS volume %s, and what is made in %s there would not be encrypted, or cannot be as its key is not loaded",
			d.GetTarget(), m.guest.name(), name, parent)
	}
	if need := withSlack(d.volumeRoom()); above != nil && above.GetAvailableBytes() < need {
		o.no(DiskSpace, "disk %s of VM %s needs %s in %s (5 %% slack included) and %s is available there",
			d.GetTarget(), m.guest.name(), size(need), parent, size(above.GetAvailableBytes()))
	}
}

// referenced is what a volume of a guest's node holds, bytes.
func (w *World) referenced(g *guest, dataset string) uint64 {
	if g.at == nil {
		return 0
	}
	return w.zfs(g.at).datasets[dataset].GetReferencedBytes()
}
