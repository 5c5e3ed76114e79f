package api

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// defaultShutdown is how long a guest may take to shut down where the caller
// does not say, seconds.
const defaultShutdown = 120

// The kinds of the operations that start and stop VMs.
const (
	kindStart    = "vm.start"
	kindShutdown = "vm.shutdown"
	kindDestroy  = "vm.destroy"
)

// StartVM starts a VM on the node it belongs to and waits until it runs. A VM
// that runs is a success. FailedPrecondition for a VM of a node that is not
// heard, which may run there.
func (s *vmService) StartVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VMActionResult, error) {
	return s.power(ctx, kindStart, ref, ref, &storev1.Power{Action: int32(agentv1.PowerAction_POWER_ACTION_START)})
}

// ShutdownVM asks the guest to shut down and waits until it has. A VM that is
// off is a success. A node that is not heard is waited for.
func (s *vmService) ShutdownVM(ctx context.Context, req *debvisorv1.VMShutdownRequest) (*debvisorv1.VMActionResult, error) {
	timeout := uint64(req.GetTimeoutSeconds())
	if timeout == 0 {
		timeout = defaultShutdown
	}
	return s.power(ctx, kindShutdown, req, req.GetVm(), &storev1.Power{
		Action: int32(agentv1.PowerAction_POWER_ACTION_SHUTDOWN), TimeoutMs: timeout * 1000, Force: req.GetForce(),
	})
}

// DestroyVM ends the VM's QEMU and waits until it is gone. A VM that is off is
// a success. A node that is not heard is waited for.
func (s *vmService) DestroyVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VMActionResult, error) {
	return s.power(ctx, kindDestroy, ref, ref, &storev1.Power{Action: int32(agentv1.PowerAction_POWER_ACTION_DESTROY)})
}

// power submits an operation that starts or stops a VM and waits for its end.
func (s *vmService) power(
	ctx context.Context, kind string, req proto.Message, ref *debvisorv1.VMRef, order *storev1.Power,
) (*debvisorv1.VMActionResult, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	id, err := s.beginPower(ctx, kind, req, ref, order)
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, id)
	if !wait {
		return &debvisorv1.VMActionResult{
			Status: debvisorv1.StatusCode_STATUS_OK, OperationId: id,
			Message: fmt.Sprintf("operation %s does it; watch it for its end", id),
		}, nil
	}
	op, err := awaitEnd(ctx, s.view, s.operations, id)
	if err != nil {
		return nil, err
	}
	return powerResult(op)
}

// beginPower submits the operation, unless an earlier request with the same id
// has.
func (s *vmService) beginPower(
	ctx context.Context, kind string, req proto.Message, ref *debvisorv1.VMRef, order *storev1.Power,
) (string, error) {
	scope := scopeOf(ctx, s.view.Current())
	spec, err := specOf(ctx, scope, kind, req)
	if err != nil {
		return "", err
	}
	if op, err := s.operations.Repeated(spec); op != nil || err != nil {
		return op.GetId(), err
	}
	vm, err := findVM(scope, ref)
	if err == nil {
		err = powerable(scope, kind, vm)
	}
	if err != nil {
		// The VM may be held by what another replica has just begun for this
		// very request.
		if op, repeated := s.operations.Repeated(spec); op != nil || repeated != nil {
			return op.GetId(), repeated
		}
		return "", err
	}
	order.VmUuid, order.VmName, order.Node, order.Generation = vm.GetUuid(), vm.GetName(), vm.GetNode(), vm.GetGeneration()
	spec.Resources, spec.Power = []string{vmResource(vm.GetUuid())}, order
	return s.operations.Submit(ctx, spec)
}

// powerable refuses what cannot be started or stopped: Aborted where another
// operation holds it, else FailedPrecondition.
func powerable(scope cluster.Scope, kind string, vm *storev1.VM) error {
	if err := operations.InUse(scope, vmResource(vm.GetUuid())); err != nil {
		return err
	}
	if err := noConflict(vm); err != nil {
		return err
	}
	if domain := decode(vm.GetDomain(), &agentv1.Domain{}); !domain.GetPersistent() {
		return errdefs.New(errdefs.FailedPrecondition, "VM_NOT_PERSISTENT",
			"VM %s has no persistent definition: define it first (virsh define)", vm.GetName()).With("vm", vm.GetUuid())
	}
	liveness := scope.Snapshot().Statuses[vm.GetNode()].Value.GetLiveness()
	heard := liveness == storev1.NodeLiveness_NODE_LIVENESS_ONLINE || liveness == storev1.NodeLiveness_NODE_LIVENESS_SUSPECT
	if kind == kindStart && !heard {
		return errdefs.New(errdefs.FailedPrecondition, "NODE_NOT_REACHABLE",
			"VM %s belongs to node %s, which is not heard: nobody can tell whether it runs there", vm.GetName(), vm.GetNode()).
			With("vm", vm.GetUuid()).With("node", vm.GetNode())
	}
	return nil
}

// noConflict refuses a VM that more than one node reports running.
func noConflict(vm *storev1.VM) error {
	if len(vm.GetConflictNodes()) == 0 {
		return nil
	}
	return errdefs.New(errdefs.FailedPrecondition, "VM_CONFLICT",
		"VM %s is reported running by %s: look at all with virsh, and destroy the ones that should not be",
		vm.GetName(), strings.Join(vm.GetConflictNodes(), " and ")).
		With("vm", vm.GetUuid()).With("nodes", strings.Join(vm.GetConflictNodes(), ","))
}

// powerResult is the end of a start or stop: its result, or its error.
func powerResult(op *storev1.Operation) (*debvisorv1.VMActionResult, error) {
	if op.GetState() != task.OpSucceeded {
		return nil, powerFailure(op)
	}
	order := op.GetPower()
	result := &debvisorv1.VMActionResult{
		Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(), State: debvisorv1.VMState_VM_STATE_SHUTOFF,
		Message: fmt.Sprintf("VM %s is off; it belongs to %s", order.GetVmName(), order.GetNode()),
	}
	if op.GetKind() == kindStart {
		result.State = debvisorv1.VMState_VM_STATE_RUNNING
		result.Message = fmt.Sprintf("VM %s runs on %s", order.GetVmName(), order.GetNode())
	}
	return result, nil
}

// powerFailure is a start or stop that has ended otherwise than well, as an
// error. Of one that was cancelled the operation says what had been done by then.
func powerFailure(op *storev1.Operation) error {
	if op.GetState() != task.OpCancelled {
		return failure(op)
	}
	return errdefs.New(errdefs.Aborted, "OPERATION_CANCELLED", "operation %s was cancelled: %s", op.GetId(), op.GetErrorMessage()).
		With("operation", op.GetId())
}
