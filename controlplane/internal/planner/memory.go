package planner

import "fmt"

// leastOverhead is what QEMU takes at least besides the guest's memory: its own
// code and heap, device models, the video memory, buffers of a migration.
const leastOverhead = 256 << 20

// Need is how much memory a node must have free to take a guest, bytes: the
// guest's own and max(256 MiB, 1/32 of it) for QEMU, since page tables and
// dirty bitmaps grow with the guest.
func Need(memory uint64) uint64 {
	return memory + max(leastOverhead, memory/32)
}

// memory refuses a node that lacks it. A VM that stays shut off needs none yet,
// but must be able to run there.
func memory(_ *World, h *host, m *mover, o *objections) {
	need := Need(m.guest.memory)
	switch {
	case !h.known:
		o.no(CapacityUnknown, "its capacity is not known yet")
	case !m.takes && need > h.total:
		o.no(Memory, "VM %s needs %s of memory when it runs (%s and %s overhead) and the node has %s",
			m.guest.name(), size(need), size(m.guest.memory), size(need-m.guest.memory), size(h.total))
	case m.takes && h.free < need+h.reserved:
		o.no(Memory, "VM %s needs %s of memory (%s and %s overhead) and %s is free there, of which %s is promised to other migrations",
			m.guest.name(), size(need), size(m.guest.memory), size(need-m.guest.memory), size(h.free), size(h.reserved))
	}
}

// size writes bytes for people.
func size(bytes uint64) string {
	switch {
	case bytes >= 1<<40:
		return fmt.Sprintf("%.1f TiB", float64(bytes)/(1<<40))
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	default:
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
}
