package api

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// timestamp gives the contract's form of a moment; nil for none.
func timestamp(t *timestamppb.Timestamp) *debvisorv1.Timestamp {
	if t == nil {
		return nil
	}
	return &debvisorv1.Timestamp{Seconds: t.GetSeconds(), Nanos: t.GetNanos()}
}

// moment gives the contract's form of a time.
func moment(t time.Time) *debvisorv1.Timestamp {
	return &debvisorv1.Timestamp{Seconds: t.Unix(), Nanos: int32(t.Nanosecond())}
}

// nodeRef refers to a node; nil for none.
func nodeRef(id string) *debvisorv1.NodeRef {
	if id == "" {
		return nil
	}
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: id}}
}

// decode reads an embedded message of a record. One that cannot be read is as
// one that was never written.
func decode[M proto.Message](b []byte, into M) M {
	if err := proto.Unmarshal(b, into); err != nil {
		proto.Reset(into)
	}
	return into
}

// vmMessage gives a VM as the scope's callers see it.
func vmMessage(scope cluster.Scope, vm *storev1.VM) *debvisorv1.VM {
	domain := decode(vm.GetDomain(), &agentv1.Domain{})
	m := &debvisorv1.VM{
		Id: vm.GetUuid(), Name: vm.GetName(), Node: nodeRef(vm.GetNode()), Generation: vm.GetGeneration(),
		State: vmState(scope.Snapshot(), vm, domain), MemoryBytes: domain.GetMemoryBytes(), Vcpus: domain.GetVcpus(),
		Persistent: domain.GetPersistent(), Autostart: vm.GetAutostart(), Disks: domain.GetDisks(),
		ConflictNodes: vm.GetConflictNodes(), MachineType: domain.GetMachineType(), VirtType: domain.GetVirtType(),
		Interfaces: domain.GetInterfaces(), HostDevices: domain.GetHostDevices(), SharedDirectories: domain.GetSharedDirectories(),
		Snapshots: domain.GetSnapshots(), DirtyBytesPerSecond: domain.GetDirtyBytesPerSecond(),
	}
	if len(vm.GetPolicy()) > 0 {
		m.Policy = decode(vm.GetPolicy(), &debvisorv1.VMPolicy{})
	}
	m.OperationId, _ = scope.Holder(vmResource(vm.GetUuid()))
	return m
}

// vmState is a VM's state: its domain's, unless two nodes run it or its node is
// not heard.
func vmState(s *cluster.Snapshot, vm *storev1.VM, domain *agentv1.Domain) debvisorv1.VMState {
	switch {
	case len(vm.GetConflictNodes()) > 0:
		return debvisorv1.VMState_VM_STATE_CONFLICT
	case s.Statuses[vm.GetNode()].Value.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE,
		domain.GetState() == debvisorv1.VMState_VM_STATE_UNSPECIFIED: // brought back to a node that has not told of it yet
		return debvisorv1.VMState_VM_STATE_UNKNOWN
	}
	return domain.GetState()
}

func vmResource(uuid string) string { return "vm/" + uuid }

// operationMessage gives an operation as the scope's callers see it, with the
// moves that are at work as far as they are now.
func operationMessage(scope cluster.Scope, op *storev1.Operation) *debvisorv1.Operation {
	op = readable(scope, op)
	m := &debvisorv1.Operation{
		Id: op.GetId(), Kind: op.GetKind(), State: debvisorv1.OperationState(op.GetState()),
		Resources: op.GetResources(), Principal: op.GetPrincipal(),
		CreatedAt: timestamp(op.GetCreatedAt()), StartedAt: timestamp(op.GetStartedAt()), EndedAt: timestamp(op.GetEndedAt()),
		Step: op.GetStep(), CancelRequested: op.GetCancelRequested(), TraceId: op.GetTraceId(), ParentId: op.GetParent(),
		Evacuation: evacuationDetails(scope, op), Snapshot: snapshotDetails(scope, op), Replication: replicationDetails(op),
		Image: imageDetails(scope, op),
	}
	if len(op.GetProgress()) > 0 {
		m.Progress = decode(op.GetProgress(), &debvisorv1.OperationProgress{})
	}
	if op.GetErrorCode() != "" {
		m.Error = &debvisorv1.ErrorDetails{
			Code: op.GetErrorCode(), Message: op.GetErrorMessage(), Context: op.GetErrorContext(), TraceId: op.GetTraceId(),
		}
	}
	if order := op.GetPower(); order != nil {
		m.Power = &debvisorv1.PowerDetails{
			VmId: order.GetVmUuid(), VmName: order.GetVmName(), Node: nodeRef(order.GetNode()), Generation: order.GetGeneration(),
		}
	}
	if move := op.GetMigrate(); move != nil {
		m.Migration = &debvisorv1.MigrationDetails{
			VmId: move.GetVmUuid(), VmName: move.GetVmName(), Source: nodeRef(move.GetSource()), Target: nodeRef(move.GetTarget()),
			DowntimeMs: move.GetDowntimeMs(), Attempt: move.GetAttempt(), SwitchedOver: move.GetSwitchedOver(),
			Method: debvisorv1.MoveMethod(move.GetMethod()), DurationMs: move.GetDurationMs(), PlanId: move.GetPlanId(),
			Disks: diskActions(move.GetDisks()),
		}
		if len(move.GetEstimate()) > 0 {
			m.Migration.Estimate = decode(move.GetEstimate(), &debvisorv1.MoveEstimate{})
		}
	}
	return m
}

// diskActions tells what becomes of a migration's disks.
func diskActions(encoded [][]byte) []*debvisorv1.DiskAction {
	var out []*debvisorv1.DiskAction
	for _, b := range encoded {
		out = append(out, diskAction(decode(b, &agentv1.DiskTransfer{})))
	}
	return out
}

func diskAction(d *agentv1.DiskTransfer) *debvisorv1.DiskAction {
	action := &debvisorv1.DiskAction{Target: d.GetTarget(), Action: "shared", Reason: d.GetReason()}
	switch d.GetAction() {
	case agentv1.DiskAction_DISK_ACTION_COPY_LIVE:
		action.Action, action.Bytes = "copy-live", d.GetCapacityBytes()
	case agentv1.DiskAction_DISK_ACTION_COPY_OFFLINE:
		action.Action, action.Bytes = "copy-offline", d.GetCapacityBytes()
	case agentv1.DiskAction_DISK_ACTION_ZFS:
		action.Action, action.Bytes = "zfs-increments", d.GetCapacityBytes()
	}
	return action
}
