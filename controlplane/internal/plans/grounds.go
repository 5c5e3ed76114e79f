package plans

import (
	"crypto/sha256"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// grounds are what a plan assumed of each VM that it moves.
func grounds(s *cluster.Snapshot, plan *debvisorv1.Plan) []*storev1.PlanGround {
	var list []*storev1.PlanGround
	for _, m := range planned(plan) {
		vm := s.VMs[m.GetVm().GetVmId()].Value
		list = append(list, &storev1.PlanGround{
			VmUuid: vm.GetUuid(), Source: nodeID(m.GetSource()), Target: nodeID(m.GetTarget()),
			Generation: vm.GetGeneration(), Definition: definition(vm),
		})
	}
	return list
}

// planned are the moves of a plan of any kind; none where it is not allowed.
func planned(plan *debvisorv1.Plan) []*debvisorv1.PlannedMove {
	m := plan.GetMigration()
	switch {
	case m == nil:
		return plan.GetMoves().GetMoves()
	case !m.GetAllowed():
		return nil
	}
	return []*debvisorv1.PlannedMove{{
		Vm: m.GetVm(), VmName: m.GetVmName(), Source: m.GetSource(), Target: m.GetTarget(), Method: m.GetMethod(),
	}}
}

// definition is SHA-256 of what of a VM's definition a plan rests on: all but
// what changes while a guest merely runs.
func definition(vm *storev1.VM) []byte {
	d := &agentv1.Domain{}
	if err := proto.Unmarshal(vm.GetDomain(), d); err != nil {
		d = &agentv1.Domain{}
	}
	d.State, d.DirtyBytesPerSecond, d.WrittenBytesPerSecond, d.Autostart = 0, 0, 0, false
	for _, disk := range d.GetDisks() {
		disk.AllocatedBytes = 0
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		return nil // only invalid UTF-8, which the wire did not let through
	}
	sum := sha256.Sum256(b)
	return sum[:]
}
