package api

import (
	"fmt"
	"slices"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// quietness is how quiet a guest is to be while its disks are snapshotted.
type quietness struct {
	consistency debvisorv1.Consistency
	budget      uint32 // milliseconds; 0: the default
}

// asked tells whether a guest is to be frozen, if it can be.
func (q quietness) asked() bool {
	return q.consistency == debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION || q.consistency == debvisorv1.Consistency_CONSISTENCY_APPLICATION
}

// quiet notes in a detail how quiet its guest is to be, and which VM that is: the
// only one of the scope that has all that is snapshotted as its disks. Such a VM
// stays where it is meanwhile. FailedPrecondition NO_GUEST_AGENT where a freeze is
// demanded and there is no such VM, or it does not run.
func (q quietness) quiet(scope cluster.Scope, take *storev1.TakeSnapshots) (resources []string, err error) {
	take.Consistency, take.FreezeBudgetMs = int32(q.consistency), q.budget
	if len(take.GetImages()) > 1 && take.GetVmUuid() == "" {
		// Their group is the VM's, whoever asks.
		if vm := guestOf(scope, take); vm != nil {
			take.VmUuid, take.VmName = vm.GetUuid(), vm.GetName()
		}
	}
	if !q.asked() {
		return nil, nil
	}
	why := "they are not the disks of one VM"
	if take.GetVmUuid() == "" {
		if vm := guestOf(scope, take); vm != nil {
			take.VmUuid, take.VmName = vm.GetUuid(), vm.GetName()
		}
	}
	if vm, ok := scope.VM(take.GetVmUuid()); ok {
		if decode(vm.Value.GetDomain(), &agentv1.Domain{}).GetState() == debvisorv1.VMState_VM_STATE_RUNNING {
			return []string{vmResource(take.GetVmUuid())}, nil
		}
		why = fmt.Sprintf("VM %s does not run", vm.Value.GetName())
	}
	if q.consistency == debvisorv1.Consistency_CONSISTENCY_APPLICATION {
		return nil, errdefs.New(errdefs.FailedPrecondition, "NO_GUEST_AGENT", "no guest can be frozen for these snapshots, and consistency demands it: %s", why)
	}
	return nil, nil // whoever takes them says why there was no freeze
}

// guestOf is the only VM of the scope that has all that is snapshotted as its
// disks; nil: there is none, or several have any of it.
func guestOf(scope cluster.Scope, take *storev1.TakeSnapshots) *storev1.VM {
	wanted := take.GetDatasets()
	uses := (*debvisorv1.VMDisk).GetZfsDataset
	nodes := []string{take.GetNode()}
	if len(take.GetImages()) > 0 {
		wanted, nodes = imageNames(take.GetImages()), nil
		uses = func(disk *debvisorv1.VMDisk) string { return cluster.RBDOfDiskIn(take.GetFsid(), disk) }
		for node := range scope.Snapshot().Ceph {
			if inventory, ok := scope.Snapshot().CephOf(node); ok && inventory.GetFsid() == take.GetFsid() {
				nodes = append(nodes, node)
			}
		}
	}
	var guest *storev1.VM
	found := map[string]bool{}
	for _, node := range nodes {
		for _, entry := range scope.VMsOn(node) {
			for _, disk := range vmDisks(entry.Value.GetDomain()) {
				path := uses(disk)
				if path == "" || !slices.Contains(wanted, path) {
					continue
				}
				if guest != nil && guest.GetUuid() != entry.Value.GetUuid() {
					return nil
				}
				guest, found[path] = entry.Value, true
			}
		}
	}
	if len(found) != len(wanted) {
		return nil
	}
	return guest
}
