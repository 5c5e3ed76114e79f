package inventory

import (
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// updateCapacity reads the capacity and makes it news where it differs by what
// a plan would notice: free memory by a fiftieth of the whole, else anything.
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
	now := &debvisorv1.NodeCapacity{Cpus: cpus, MemoryBytes: total, MemoryAvailableBytes: available}
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
	moved := max(a.GetMemoryAvailableBytes(), b.GetMemoryAvailableBytes()) - min(a.GetMemoryAvailableBytes(), b.GetMemoryAvailableBytes())
	return a.GetCpus() != b.GetCpus() || a.GetMemoryBytes() != b.GetMemoryBytes() ||
		a.GetMemoryVmsBytes() != b.GetMemoryVmsBytes() || moved > b.GetMemoryBytes()/50
}
