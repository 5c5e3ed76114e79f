package planner

import (
	"fmt"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// against gives the reasons that keep a VM where it is, whatever the target.
func against(s *cluster.Snapshot, r Request, vm guest) []Reason {
	var reasons []Reason
	no := func(code, format string, args ...any) {
		reasons = append(reasons, Reason{code, fmt.Sprintf(format, args...)})
	}
	if len(vm.conflict) > 0 || vm.domain.GetState() == debvisorv1.VMState_VM_STATE_CONFLICT {
		no(VMConflict, "VM %s is in conflict: more than one node reports it running (%s); destroy the copy that should not be",
			vm.name, strings.Join(vm.conflict, ", "))
	}
	if holder, ok := s.InUse["vm/"+vm.uuid]; ok && (r.Operation == "" || holder.Value != r.Operation) {
		no(VMInUse, "VM %s is in use by operation %s", vm.name, holder.Value)
	}
	if r.Source != "" && r.Source != vm.node {
		no(WrongSource, "VM %s is on %s and not on %s", vm.name, vm.node, r.Source)
	}
	switch state := vm.domain.GetState(); state {
	case debvisorv1.VMState_VM_STATE_RUNNING, debvisorv1.VMState_VM_STATE_PAUSED, debvisorv1.VMState_VM_STATE_CONFLICT:
	default:
		no(VMNotRunning, "VM %s is %s; for now only VMs that run, on disks that both nodes see, can be moved (live)", vm.name, stateWord(state))
	}
	for _, disk := range vm.domain.GetDisks() {
		if cache, unsafe := unsafeCache(disk); unsafe {
			no(DiskCache, "disk %s of VM %s has cache mode %s: on %s %s this may lose writes; with cache none or directsync the VM can move",
				disk.GetTarget(), vm.name, cache, disk.GetType(), disk.GetSource())
		}
	}
	source := s.Statuses[vm.node].Value
	if live := source.GetLiveness(); live != storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		no(SourceNotHeard, "the agent of %s, where VM %s is, is not heard (%s)", vm.node, vm.name, livenessWord(live))
	}
	if source.GetLibvirtDown() {
		no(SourceLibvirt, "libvirt on %s, where VM %s is, does not answer", vm.node, vm.name)
	}
	return reasons
}

// unsafeCache tells whether moving a VM with that disk live could lose what the
// source's host still caches. The rule is libvirt's own (Migration is unsafe
// with a cache other than none and directsync), which it applies to all but
// read-only disks and network storage whose clients keep their caches coherent.
func unsafeCache(disk *debvisorv1.VMDisk) (mode string, unsafe bool) {
	if disk.GetReadOnly() || disk.GetSource() == "" || disk.GetType() == "network" {
		return "", false
	}
	switch mode := disk.GetCache(); mode {
	case "none", "directsync":
		return mode, false
	case "", "default":
		return "default (writeback)", true
	default:
		return mode, true
	}
}

func stateWord(state debvisorv1.VMState) string {
	switch state {
	case debvisorv1.VMState_VM_STATE_SHUTOFF:
		return "shut off"
	case debvisorv1.VMState_VM_STATE_CRASHED:
		return "crashed"
	case debvisorv1.VMState_VM_STATE_INCOMING:
		return "being received from another node"
	default:
		return "in an unknown state"
	}
}

func livenessWord(live storev1.NodeLiveness) string {
	switch live {
	case storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return "suspect: 3 heartbeats missed"
	case storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE:
		return "unreachable"
	default:
		return "it never had a session"
	}
}
