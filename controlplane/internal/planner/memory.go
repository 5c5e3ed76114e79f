package planner

import (
	"fmt"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// leastOverhead is what QEMU takes at least besides the guest's memory: its own
// code and heap, device models, the video memory, buffers of a migration.
const leastOverhead = 256 << 20

// Need is how much memory a node must have free to take a guest, bytes: the
// guest's own and max(256 MiB, 1/32 of it) for QEMU, since page tables and
// dirty bitmaps grow with the guest.
func Need(memory uint64) uint64 {
	return memory + max(leastOverhead, memory/32)
}

// placed gives the memory of the active VMs whose placement is the node, bytes.
func placed(s *cluster.Snapshot, node string) uint64 {
	var sum uint64
	for _, vm := range s.VMsOn(node) {
		switch domain := newGuest(vm.Value).domain; domain.GetState() {
		case debvisorv1.VMState_VM_STATE_SHUTOFF, debvisorv1.VMState_VM_STATE_CRASHED:
		default:
			sum += domain.GetMemoryBytes()
		}
	}
	return sum
}

// reservations gives the memory that each node will still need, bytes, for
// unfinished migrations to it, but for the given operation's.
func reservations(s *cluster.Snapshot, except string) map[string]uint64 {
	reserved := map[string]uint64{}
	for _, entry := range s.ActiveOperations() {
		op := entry.Value
		target := op.GetMigrate().GetTarget()
		if op.GetId() == except || target == "" {
			continue
		}
		if vm, ok := s.VMs[op.GetMigrate().GetVmUuid()]; ok && !arrived(vm.Value, target) {
			reserved[target] += Need(newGuest(vm.Value).domain.GetMemoryBytes())
		}
	}
	return reserved
}

// arrived tells whether a VM is on a node, so that the node's own figures hold
// what it takes.
func arrived(vm *storev1.VM, node string) bool { return vm.GetNode() == node }

// size writes bytes for people.
func size(bytes uint64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	default:
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
}
