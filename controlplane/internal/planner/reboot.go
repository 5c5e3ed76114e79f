package planner

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// The codes of what speaks against rebooting a node, besides NodeNotHeard,
// NodeLibvirt and VMConflict.
const (
	NodeNotCordoned = "NODE_NOT_CORDONED"
	VMRuns          = "VM_RUNS"
	VMArriving      = "VM_ARRIVING"
)

// AgainstReboot gives everything that speaks against rebooting a node: that VMs
// could come to it, that one runs there or is about to, and that nobody knows.
// VMs that are shut off do not speak against it.
func AgainstReboot(s *cluster.Snapshot, node string) []Reason {
	var reasons []Reason
	no := func(code, format string, args ...any) {
		reasons = append(reasons, Reason{code, fmt.Sprintf(format, args...)})
	}
	if !s.Nodes[node].Value.GetCordoned() {
		no(NodeNotCordoned, "%s is not cordoned: VMs may come to it at any time", node)
	}
	status := s.Statuses[node].Value
	if status.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		no(NodeNotHeard, "the agent of %s is not heard: nobody knows what runs there", node)
	} else if status.GetLibvirtDown() {
		no(NodeLibvirt, "libvirt on %s does not answer: nobody knows what runs there", node)
	}
	for _, entry := range s.VMsOn(node) {
		domain := &agentv1.Domain{}
		if err := proto.Unmarshal(entry.Value.GetDomain(), domain); err != nil {
			domain.Reset()
		}
		switch domain.GetState() {
		case debvisorv1.VMState_VM_STATE_SHUTOFF, debvisorv1.VMState_VM_STATE_CRASHED:
		default:
			no(VMRuns, "VM %s is there and not shut off", entry.Value.GetName())
		}
	}
	for _, entry := range s.VMs {
		if vm := entry.Value; vm.GetNode() != node && slices.Contains(vm.GetConflictNodes(), node) {
			no(VMConflict, "VM %s is in conflict: it is reported running there too", vm.GetName())
		}
	}
	for _, entry := range s.ActiveOperations() {
		op := entry.Value
		move, power := op.GetMigrate(), op.GetPower()
		starts := power.GetNode() == node && power.GetAction() == int32(agentv1.PowerAction_POWER_ACTION_START)
		switch {
		case move != nil && move.GetTarget() == node:
			no(VMArriving, "VM %s is on its way to it (operation %s)", move.GetVmName(), op.GetId())
		case move != nil && move.GetSource() == node:
			no(VMArriving, "VM %s is on its way from it (operation %s)", move.GetVmName(), op.GetId())
		case starts:
			no(VMArriving, "VM %s is being started there (operation %s)", power.GetVmName(), op.GetId())
		}
	}
	return reasons
}
