package api

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// EvacuateNode cordons a node, moves its VMs away and waits until no VM is left
// to move. FailedPrecondition with the VMs that could not be moved, and why; and
// for a node that is not heard, from which nothing can be moved.
func (s *nodeService) EvacuateNode(ctx context.Context, req *debvisorv1.EvacuateRequest) (*debvisorv1.EvacuationResult, error) {
	return s.drain(ctx, "evacuate", req, req.GetNode(), &storev1.Evacuate{
		Parallel: req.GetParallel(), AllowDowntime: req.GetAllowDowntime(), CordonReason: req.GetReason(),
		WaitBlockedSeconds: req.GetWaitBlockedSeconds(),
	})
}

// RestoreNode uncordons a node, brings back the VMs that its last evacuations
// moved away, and waits until they are there.
func (s *nodeService) RestoreNode(ctx context.Context, req *debvisorv1.RestoreRequest) (*debvisorv1.EvacuationResult, error) {
	return s.drain(ctx, "restore", req, req.GetNode(), &storev1.Evacuate{
		Parallel: req.GetParallel(), AllowDowntime: req.GetAllowDowntime(),
	})
}

// drain submits an operation of many moves of one node and waits for its end.
func (s *nodeService) drain(
	ctx context.Context, kind string, req proto.Message, node *debvisorv1.NodeRef, detail *storev1.Evacuate,
) (*debvisorv1.EvacuationResult, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	id, err := s.beginDrain(ctx, kind, req, node, detail)
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, id)
	if !wait {
		return &debvisorv1.EvacuationResult{
			Status: debvisorv1.StatusCode_STATUS_OK, OperationId: id,
			Message: fmt.Sprintf("operation %s moves the VMs; watch it for its end", id),
		}, nil
	}
	op, err := awaitEnd(ctx, s.view, s.operations, id)
	if err != nil {
		return nil, err
	}
	return evacuationResult(op)
}

// beginDrain submits the operation, unless an earlier request with the same id
// has.
func (s *nodeService) beginDrain(
	ctx context.Context, kind string, req proto.Message, ref *debvisorv1.NodeRef, detail *storev1.Evacuate,
) (string, error) {
	scope := scopeOf(ctx, s.view.Current())
	spec, err := specOf(ctx, scope, kind, req)
	if err != nil {
		return "", err
	}
	spec.Evacuate = detail
	if op, err := s.operations.Repeated(spec); op != nil || err != nil {
		return op.GetId(), err
	}
	node, err := needNode(scope.Snapshot(), "node.node_id.id", ref)
	if err != nil {
		return "", err
	}
	detail.Node = node.Value.GetId()
	resource := "evacuation/" + detail.GetNode()
	spec.Resources = []string{resource}
	if err = operations.InUse(scope, resource); err == nil {
		err = heardOf(scope.Snapshot(), detail.GetNode())
	}
	if err != nil {
		// It may be held by what another replica has just begun for this very request.
		if op, repeated := s.operations.Repeated(spec); op != nil || repeated != nil {
			return op.GetId(), repeated
		}
		return "", err
	}
	return s.operations.Submit(ctx, spec)
}

// heardOf refuses a node whose agent is not heard: nothing can be moved from it
// or to it.
func heardOf(s *cluster.Snapshot, node string) error {
	switch s.Statuses[node].Value.GetLiveness() {
	case storev1.NodeLiveness_NODE_LIVENESS_ONLINE, storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return nil
	}
	return errdefs.New(errdefs.FailedPrecondition, "NODE_NOT_REACHABLE",
		"the agent of %s is not heard: nothing can be moved from it or to it until it is", node).With("node", node)
}

// evacuationResult is the end of an operation of many moves: its result, or its
// error.
func evacuationResult(op *storev1.Operation) (*debvisorv1.EvacuationResult, error) {
	if op.GetState() == task.OpCancelled {
		return nil, errdefs.New(errdefs.Aborted, "OPERATION_CANCELLED", "operation %s was %s", op.GetId(), op.GetErrorMessage()).
			With("operation", op.GetId())
	}
	if op.GetState() != task.OpSucceeded {
		return nil, failure(op)
	}
	e := op.GetEvacuate()
	result := &debvisorv1.EvacuationResult{
		Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(), SafeToReboot: e.GetSafeToReboot(),
	}
	for _, m := range e.GetMoves() {
		if m.GetState() == storev1.MoveState_MOVE_STATE_MOVED {
			result.Moved++
		} else {
			result.Blocked++
		}
	}
	result.Message = fmt.Sprintf("%d VMs moved", result.GetMoved())
	if result.GetBlocked() > 0 {
		result.Message += fmt.Sprintf(", %d that are shut off stay", result.GetBlocked())
	}
	if result.GetSafeToReboot() {
		result.Message += fmt.Sprintf("; no VM runs on %s, which is safe to reboot", e.GetNode())
	}
	return result, nil
}

// evacuationDetails gives an operation's moves; nil where it has none. How far
// those are that are at work their own operations know.
func evacuationDetails(scope cluster.Scope, op *storev1.Operation) *debvisorv1.EvacuationDetails {
	e := op.GetEvacuate()
	if e == nil {
		return nil
	}
	d := &debvisorv1.EvacuationDetails{Node: nodeRef(e.GetNode()), SafeToReboot: e.GetSafeToReboot(), PlanId: e.GetPlanId()}
	for _, m := range e.GetMoves() {
		if _, ok := scope.VM(m.GetVmUuid()); scope.Confined() && !ok {
			continue
		}
		move := &debvisorv1.VMMove{
			VmId: m.GetVmUuid(), VmName: m.GetVmName(), Source: nodeRef(m.GetSource()), Target: nodeRef(m.GetTarget()),
			State: debvisorv1.VMMoveState(m.GetState()), OperationId: m.GetOperation(), Message: m.GetMessage(),
		}
		child, ok := scope.Operation(m.GetOperation())
		switch {
		case m.GetState() == storev1.MoveState_MOVE_STATE_MOVED:
			move.Percent = 100
		case ok && m.GetState() == storev1.MoveState_MOVE_STATE_MOVING:
			move.Message = child.Value.GetStep()
			move.Percent = decode(child.Value.GetProgress(), &debvisorv1.OperationProgress{}).GetPercent()
		}
		d.Moves = append(d.Moves, move)
	}
	return d
}
