package inventory

import (
	"net"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// onRBD begins the storage_id of disks that are images of RBD: rbd:CLUSTER/POOL.
const onRBD = "rbd:"

// nameClusters has the disks that are images of the host's own Ceph cluster say
// so by its fsid, whichever of its monitors their definitions name; callers hold
// mu.
func (c *Collector) nameClusters(disks []*debvisorv1.VMDisk) {
	own := c.ceph.told
	if own.GetFsid() == "" {
		return
	}
	for _, d := range disks {
		named, pool, ok := strings.Cut(strings.TrimPrefix(d.GetStorageId(), onRBD), "/")
		if ok && strings.HasPrefix(d.GetStorageId(), onRBD) && isCluster(named, own.GetMonitors()) {
			d.StorageId = onRBD + own.GetFsid() + "/" + pool
		}
	}
}

// isCluster tells whether monitors that a definition names, host or host:port,
// are some of a cluster's. None are those of the host's configuration.
func isCluster(named string, monitors []string) bool {
	if named == "" {
		return true
	}
	return slices.ContainsFunc(strings.Split(named, ","), func(one string) bool {
		return slices.ContainsFunc(monitors, func(monitor string) bool {
			host, _, err := net.SplitHostPort(monitor)
			return one == monitor || err == nil && one == host
		})
	})
}

// renameClusters does so for all disks that were told already, when the host's
// cluster has become known; callers hold mu.
func (c *Collector) renameClusters() {
	for uuid, d := range c.seen {
		if !slices.ContainsFunc(d.GetDisks(), func(d *debvisorv1.VMDisk) bool { return strings.HasPrefix(d.GetStorageId(), onRBD) }) {
			continue
		}
		now := proto.CloneOf(d)
		c.nameClusters(now.GetDisks())
		if !proto.Equal(d, now) {
			c.seen[uuid] = now
			c.news.changedNow(uuid)
			c.ring()
		}
	}
}

// sameCluster tells whether two inventories name images alike.
func sameCluster(a, b *agentv1.CephInventory) bool {
	return a.GetFsid() == b.GetFsid() && slices.Equal(a.GetMonitors(), b.GetMonitors())
}
