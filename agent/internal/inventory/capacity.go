package inventory

import (
	"slices"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// updateCapacity reads the capacity and makes it news where it differs by what
// a plan would notice: free memory or room by a fiftieth of the whole, else
// anything.
func (c *Collector) updateCapacity() {
	cpus, err := c.host.cpus()
	if err != nil {
		c.cfg.Log.Warn("capacity not read", "error", err)
		return
	}
	total, available, err := c.host.memory()
	if err != nil {
		c.cfg.Log.Warn("capacity not read", "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := &debvisorv1.NodeCapacity{Cpus: cpus, MemoryBytes: total, MemoryAvailableBytes: available, FileSystems: c.places.FileSystems()}
	for _, d := range c.seen {
		switch d.GetState() {
		case debvisorv1.VMState_VM_STATE_RUNNING, debvisorv1.VMState_VM_STATE_PAUSED, debvisorv1.VMState_VM_STATE_INCOMING:
			now.MemoryVmsBytes += d.GetMemoryBytes()
		}
	}
	if c.capacity != nil && !differs(c.capacity, now) {
		return
	}
	c.capacity, c.news.capacity = now, true
	c.ring()
}

func differs(a, b *debvisorv1.NodeCapacity) bool {
	return a.GetCpus() != b.GetCpus() || a.GetMemoryBytes() != b.GetMemoryBytes() || a.GetMemoryVmsBytes() != b.GetMemoryVmsBytes() ||
		moved(a.GetMemoryAvailableBytes(), b.GetMemoryAvailableBytes(), b.GetMemoryBytes()/50) ||
		!slices.EqualFunc(a.GetFileSystems(), b.GetFileSystems(), sameRoom)
}

func sameRoom(a, b *debvisorv1.FileSystem) bool {
	return a.GetMountPoint() == b.GetMountPoint() && a.GetType() == b.GetType() && a.GetStorageId() == b.GetStorageId() &&
		a.GetShared() == b.GetShared() && a.GetTotalBytes() == b.GetTotalBytes() &&
		!moved(a.GetAvailableBytes(), b.GetAvailableBytes(), b.GetTotalBytes()/50)
}

// moved tells whether two values are farther apart than that.
func moved(a, b, by uint64) bool { return max(a, b)-min(a, b) > by }
