package inventory

import (
	"context"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// grownBy is how much more or less a disk has to take of its storage to be
// news, bytes.
const grownBy = 256 << 20

// samplePlaces measures the file systems.
func (c *Collector) samplePlaces(context.Context) error {
	err := c.places.Measure()
	if err != nil {
		c.cfg.Log.Debug("file systems not listed", "error", err)
	}
	c.updateCapacity()
	return err
}

// sampleFiles looks at the disks' files again: they grow without an event.
func (c *Collector) sampleFiles(context.Context) struct{} {
	var copies []*agentv1.Domain
	c.mu.Lock()
	for _, d := range c.seen {
		copies = append(copies, proto.CloneOf(d))
	}
	c.mu.Unlock()
	c.place(copies...)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range copies {
		c.replace(d)
	}
	return struct{}{}
}

// replace takes a domain's disks as they were just found, unless libvirt has
// told something else of them meanwhile; callers hold mu.
func (c *Collector) replace(found *agentv1.Domain) {
	was, had := c.seen[found.GetUuid()]
	if !had || len(was.GetDisks()) != len(found.GetDisks()) {
		return
	}
	for i, d := range was.GetDisks() {
		if d.GetSource() != found.GetDisks()[i].GetSource() {
			return
		}
	}
	now := proto.CloneOf(was)
	now.Disks = found.GetDisks()
	steady(was, now)
	if proto.Equal(was, now) {
		return
	}
	c.seen[found.GetUuid()] = now
	c.news.changedNow(found.GetUuid())
	c.ring()
}

// place fills in what the host knows of the domains' disks.
func (c *Collector) place(domains ...*agentv1.Domain) {
	var disks []*debvisorv1.VMDisk
	for _, d := range domains {
		disks = append(disks, d.GetDisks()...)
	}
	if len(disks) == 0 {
		return
	}
	if err := c.places.Describe(disks); err != nil {
		c.cfg.Log.Debug("disks not placed", "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nameClusters(disks)
}

// steady leaves in now what has hardly moved since was, which would be news all
// the time, and what is measured at another time.
func steady(was, now *agentv1.Domain) {
	if now.GetState() == was.GetState() && now.GetState() == debvisorv1.VMState_VM_STATE_RUNNING {
		now.DirtyBytesPerSecond, now.WrittenBytesPerSecond = was.GetDirtyBytesPerSecond(), was.GetWrittenBytesPerSecond()
	}
	before := map[string]*debvisorv1.VMDisk{}
	for _, d := range was.GetDisks() {
		before[d.GetSource()] = d
	}
	for _, d := range now.GetDisks() {
		if b := before[d.GetSource()]; b != nil && b.GetAllocatedBytes() > 0 && !moved(b.GetAllocatedBytes(), d.GetAllocatedBytes(), grownBy) {
			d.AllocatedBytes = b.GetAllocatedBytes()
		}
	}
}
