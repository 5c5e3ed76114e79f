package planner

import (
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// ceph gives what a node last reported of its Ceph cluster; one without an fsid:
// nothing.
func (w *World) ceph(h *host) *agentv1.CephInventory {
	if h.ceph == nil {
		if h.ceph, _ = w.snapshot.CephOf(h.id); h.ceph == nil {
			h.ceph = &agentv1.CephInventory{}
		}
	}
	return h.ceph
}

// images refuses a node that does not see the images of RBD that are the VM's
// disks. Which cluster they are in its own node may not know: then nobody does.
func images(w *World, h *host, m *mover, o *objections) {
	for _, d := range m.disks {
		fsid, pool := cluster.RBDClusterOfDisk(d.VMDisk)
		if fsid == "" {
			continue
		}
		sees := w.ceph(h)
		why := ""
		switch {
		case sees.GetFsid() == "":
			why = "the node has no Ceph, as far as it has reported"
		case sees.GetFsid() != fsid:
			why = "the node is a client of another one, " + sees.GetFsid()
		case sees.GetError() != "":
			why = "Ceph does not answer the node: " + sees.GetError()
		case !slices.ContainsFunc(sees.GetPools(), func(p *agentv1.CephPool) bool { return p.GetName() == pool }):
			why = "the node sees no pool " + pool + " there (it sees " + few(poolNames(sees), 5, ", ") + ")"
		default:
			continue
		}
		o.no(DiskUnreachable, "disk %s of VM %s is image %s of the Ceph cluster %s; %s", d.GetTarget(), m.guest.name(), d.GetSource(), fsid, why)
	}
}

func poolNames(inventory *agentv1.CephInventory) (names []string) {
	for _, p := range inventory.GetPools() {
		names = append(names, p.GetName())
	}
	if len(names) == 0 {
		return []string{"none"}
	}
	return names
}

// imageTransfer is what the target's agent is told of a disk that is an image of
// RBD; nil: it cannot look at it.
func (d disk) imageTransfer() *agentv1.DiskTransfer {
	fsid, _ := cluster.RBDClusterOfDisk(d.VMDisk)
	if fsid == "" {
		return nil
	}
	return &agentv1.DiskTransfer{
		Target: d.GetTarget(), Type: d.GetType(), Path: strings.TrimPrefix(d.GetSource(), "/"), Format: d.GetFormat(), ReadOnly: d.GetReadOnly() || d.GetShareable(),
		Action: agentv1.DiskAction_DISK_ACTION_SHARED, CephFsid: fsid,
	}
}
