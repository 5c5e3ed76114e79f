package planner

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// disk is one disk of a VM that moves.
type disk struct {
	*debvisorv1.VMDisk
	// copied tells whether its bytes have to move; otherwise both nodes have to
	// see them.
	copied bool
	// users are the other VMs whose local disk has the same path.
	users []*guest
	// volume tells whether it is a ZFS volume of its node's own, which the target
	// makes; origin is that as its node reported it, empty where it did not.
	volume bool
	origin *agentv1.ZfsDataset
}

// disks gives the disks of a VM that hold anything. Network storage is in
// reach of every node.
func (w *World) disks(g *guest) []disk {
	var disks []disk
	for _, d := range g.domain().GetDisks() {
		if d.GetSource() == "" {
			continue
		}
		one := disk{VMDisk: d, copied: !d.GetShared() && d.GetType() != "network"}
		if one.copied {
			one.users = w.users(d.GetSource(), g)
		}
		if one.volume = isVolume(d); one.volume && g.at != nil {
			one.origin = w.zfs(g.at).datasets[d.GetZfsDataset()]
		}
		disks = append(disks, one)
	}
	return disks
}

// users gives the other VMs that have a path on a disk of their node's own.
func (w *World) users(path string, but *guest) []*guest {
	if w.byPath == nil {
		w.byPath = make(map[string][]*guest, len(w.list))
		for _, g := range w.list {
			for _, local := range localPaths(g.record.GetDomain()) {
				if users := w.byPath[local]; len(users) == 0 || users[len(users)-1] != g { // each once
					w.byPath[local] = append(users, g)
				}
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(w.byPath[path]), func(g *guest) bool { return g == but })
}

// localPaths finds in an encoded Domain where its disks are that are its node's
// own; decoding all of 50,000 would take most of a plan's time.
func localPaths(b []byte) (paths []string) {
	const disksField = 8
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return nil
		}
		if number == disksField && kind == protowire.BytesType {
			disk, _ := protowire.ConsumeBytes(b)
			if path := localPath(disk); path != "" {
				paths = append(paths, path)
			}
		}
		b = b[n:]
	}
	return paths
}

// localPath finds in an encoded VMDisk where it is; empty: on storage that is
// not its node's own, or nowhere.
func localPath(b []byte) string {
	const typeField, sourceField, sharedField = 2, 3, 11
	var of, path []byte
	shared := false
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ""
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return ""
		}
		switch {
		case number == typeField && kind == protowire.BytesType:
			of, _ = protowire.ConsumeBytes(b)
		case number == sourceField && kind == protowire.BytesType:
			path, _ = protowire.ConsumeBytes(b)
		case number == sharedField && kind == protowire.VarintType:
			value, _ := protowire.ConsumeVarint(b)
			shared = value != 0
		}
		b = b[n:]
	}
	if shared || string(of) == "network" {
		return ""
	}
	return string(path)
}

// whyNotCopyable tells what keeps a local disk from being copied; empty:
// nothing.
func (d disk) whyNotCopyable() string {
	switch {
	case d.GetType() != "file" && d.GetType() != "block":
		return "is of type " + d.GetType() + ", and only files and block devices are copied"
	case d.GetBackingFile() != "":
		return "is an overlay of " + d.GetBackingFile() + ", and images with a backing file are not copied"
	case d.GetFormat() != "raw" && d.GetFormat() != "qcow2":
		return "has the format " + cmp.Or(d.GetFormat(), "unknown") + ", and only raw and qcow2 are copied"
	case d.GetShareable() && !d.GetReadOnly():
		return "may be written by several VMs at once, so that no copy of it holds"
	case d.GetType() == "file" && d.room() == 0:
		return "is of a size that is not known"
	case d.volume:
		return d.whyNotVolume()
	}
	return ""
}

// room is what a copy may come to take, bytes: a disk that is written to grows
// to its full size.
func (d disk) room() uint64 {
	if d.GetReadOnly() && d.GetAllocatedBytes() > 0 {
		return d.GetAllocatedBytes()
	}
	return max(d.GetCapacityBytes(), d.GetAllocatedBytes())
}

// bytes is what has to be copied at most; holes are not.
func (d disk) bytes() uint64 {
	if d.volume {
		return d.origin.GetVolumeBytes() // a block device does not tell its holes
	}
	if n := d.GetAllocatedBytes(); n > 0 {
		return n
	}
	return d.GetCapacityBytes()
}

// withSlack adds 5 %: file systems and image formats take some for themselves.
func withSlack(bytes uint64) uint64 { return bytes + bytes/20 }

// unsafeCache tells whether moving a VM with that disk live could lose what the
// source's host still caches. The rule is libvirt's own (Migration is unsafe
// with a cache other than none and directsync), which it applies to all but
// read-only disks, disks that it copies, those shared by several guests and
// network storage whose clients keep their caches coherent.
func (d disk) unsafeCache() (mode string, unsafe bool) {
	if d.copied || d.GetReadOnly() || d.GetShareable() || d.GetType() == "network" {
		return "", false
	}
	switch mode := d.GetCache(); mode {
	case "none", "directsync":
		return mode, false
	case "", "default":
		return "default (writeback)", true
	default:
		return mode, true
	}
}

// transfer is what the agents are told of a disk; nil: nothing, since it is on
// network storage that no agent can look at.
func (d disk) transfer(m *mover, method debvisorv1.MoveMethod, by way) *agentv1.DiskTransfer {
	if d.GetType() == "network" {
		return d.imageTransfer()
	}
	if d.GetType() != "file" && d.GetType() != "block" {
		return nil
	}
	t := &agentv1.DiskTransfer{
		Target: d.GetTarget(), Type: d.GetType(), Path: d.GetSource(), Format: d.GetFormat(),
		CapacityBytes: d.GetCapacityBytes(), ReadOnly: d.GetReadOnly(), Action: agentv1.DiskAction_DISK_ACTION_SHARED,
	}
	if !d.copied || d.GetType() == "block" {
		t.Inode = d.GetInode()
	}
	switch {
	case !d.copied:
	case d.volume && !d.GetReadOnly() && by.increments:
		t.Action = agentv1.DiskAction_DISK_ACTION_ZFS
	case method == debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY && !d.GetReadOnly():
		t.Action = agentv1.DiskAction_DISK_ACTION_COPY_LIVE
	default:
		t.Action = agentv1.DiskAction_DISK_ACTION_COPY_OFFLINE
	}
	t.RemoveSource = d.copied && (d.GetType() == "file" || d.volume) && d.userOn(m.guest.at) == nil
	if d.volume {
		t.ZfsDataset, t.VolumeBlockBytes, t.VolumeReserved = d.GetZfsDataset(), d.origin.GetBlockBytes(), d.reserved()
		t.CapacityBytes, t.Inode = d.origin.GetVolumeBytes(), 0
		if !d.GetReadOnly() {
			t.Reason = by.reason
		}
	}
	return t
}

// userOn gives another VM on a node that has the disk's path; nil: none.
func (d disk) userOn(h *host) *guest {
	for _, g := range d.users {
		if g.on(h) {
			return g
		}
	}
	return nil
}

// reach refuses a node that does not see the shared disks.
func reach(_ *World, h *host, m *mover, o *objections) {
	for _, d := range m.disks {
		if d.copied || d.GetType() == "network" || !h.known {
			continue
		}
		if d.GetStorageId() == "" {
			o.no(DiskUnreachable, "which storage holds disk %s of VM %s (%s) is not known", d.GetTarget(), m.guest.name(), d.GetSource())
			continue
		}
		if !sees(h, m.guest.at, d.GetSource(), d.GetStorageId()) {
			o.no(DiskUnreachable, "disk %s of VM %s is %s on shared storage %s, which the node does not have mounted there (%s)",
				d.GetTarget(), m.guest.name(), d.GetSource(), d.GetStorageId(), mounted(h, d.GetSource()))
		}
	}
}

// sees tells whether a path means the same bytes on two nodes: the same storage
// mounted at the same place, and nothing over it.
func sees(h, source *host, path, storage string) bool {
	is := func(v *volume) bool { return v != nil && v.GetStorageId() == storage }
	there := h.volume(path)
	switch {
	case source == nil || !slices.ContainsFunc(source.volumes, is):
		return is(there) // what the source has there is not reported now
	case is(source.volume(path)):
		return is(there) && there.GetMountPoint() == source.volume(path).GetMountPoint()
	}
	// The path leads to the storage by a symbolic link; whether it does there
	// too the target's agent sees.
	return slices.ContainsFunc(source.volumes, func(here *volume) bool {
		return is(here) && slices.ContainsFunc(h.volumes, func(there *volume) bool {
			return is(there) && there.GetMountPoint() == here.GetMountPoint()
		})
	})
}

// mounted says what a node has at a path.
func mounted(h *host, path string) string {
	if v := h.volume(path); v != nil {
		return v.GetStorageId() + " at " + v.GetMountPoint()
	}
	return "nothing that was reported"
}

// space refuses a node without room for the disks that have to be copied, or
// with a file of another VM in their place.
func space(w *World, h *host, m *mover, o *objections) {
	if !m.copies || !h.known {
		return
	}
	for _, d := range m.disks {
		if !d.copied {
			continue
		}
		if other := d.userOn(h); other != nil {
			o.no(DiskNotCopyable, "disk %s of VM %s cannot be copied to %s: %s uses that path on the node",
				d.GetTarget(), m.guest.name(), d.GetSource(), m.sees(other))
		}
		if d.volume {
			volumePlace(w, h, m, d, o)
		}
		if d.GetType() == "file" && h.volume(d.GetSource()) == nil {
			o.no(DiskSpace, "the node reports no file system that could hold %s (disk %s of VM %s)", d.GetSource(), d.GetTarget(), m.guest.name())
		}
	}
	for _, n := range w.room(m, h) {
		claimed := w.claimed[n.volume.key]
		if n.volume.GetAvailableBytes() < n.bytes+claimed {
			o.no(DiskSpace, "the disks of VM %s need %s at %s (5 %% slack included) and %s is available there, of which %s is promised to other migrations",
				m.guest.name(), size(n.bytes), n.volume.GetMountPoint(), size(n.volume.GetAvailableBytes()), size(claimed))
		}
	}
}

// demand is what copies need of one file system, bytes.
type demand struct {
	volume *volume
	bytes  uint64
}

// room gives what the VM's copies need of a node's file systems and pools.
func (w *World) room(m *mover, h *host) []demand {
	var demands []demand
	for _, d := range m.disks {
		switch {
		case d.volume:
			demands = need(demands, w.zfs(h).room(d.GetZfsDataset()), withSlack(d.volumeRoom()))
		case d.copied && d.GetType() == "file":
			demands = need(demands, h.volume(d.GetSource()), withSlack(d.room()))
		}
	}
	return demands
}

// need adds to the demands what one disk needs of a volume; nil: of none.
func need(demands []demand, v *volume, bytes uint64) []demand {
	if v == nil {
		return demands
	}
	for i := range demands {
		if demands[i].volume.key == v.key {
			demands[i].bytes += bytes
			return demands
		}
	}
	return append(demands, demand{v, bytes})
}
