package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// EvacuateNode begins the made-up evacuation of a node; its request becomes the
// node's cordon reason, for scripts to see.
func (f *fakeNodes) EvacuateNode(ctx context.Context, req *debvisorv1.EvacuateRequest) (*debvisorv1.EvacuationResult, error) {
	said := fmt.Sprintf("%s parallel=%d downtime=%v wait=%d", req.GetReason(), req.GetParallel(), req.GetAllowDowntime(), req.GetWaitBlockedSeconds())
	if _, err := f.cordon(req.GetNode(), true, said); err != nil {
		return nil, err
	}
	return begun(ctx, "op-evacuate-"+nodeName(req.GetNode()))
}

func (f *fakeNodes) RestoreNode(ctx context.Context, req *debvisorv1.RestoreRequest) (*debvisorv1.EvacuationResult, error) {
	if nodeName(req.GetNode()) == "n2" {
		return nil, errdefs.New(errdefs.Aborted, "IN_USE", "evacuation/n2 is in use by operation op-evacuate-n2").With("operation", "op-evacuate-n2")
	}
	if _, err := f.cordon(req.GetNode(), false, ""); err != nil {
		return nil, err
	}
	return begun(ctx, "op-restore-"+nodeName(req.GetNode()))
}

func begun(ctx context.Context, id string) (*debvisorv1.EvacuationResult, error) {
	if v := metadata.ValueFromIncomingContext(ctx, "debvisor-wait"); len(v) != 1 || v[0] != "none" {
		return nil, errdefs.New(errdefs.Internal, "TEST", "hvctl must not wait here")
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("debvisor-operation", id)); err != nil {
		return nil, err
	}
	return &debvisorv1.EvacuationResult{Status: debvisorv1.StatusCode_STATUS_OK}, nil
}

// ConfirmNodeOff is refused for a node that is heard.
func (f *fakeNodes) ConfirmNodeOff(_ context.Context, req *debvisorv1.NodeOffRequest) (*debvisorv1.NodeAck, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	n, err := f.made.node(req.GetNode())
	if err != nil {
		return nil, err
	}
	if n.GetSummary().GetState() == debvisorv1.NodeState_NODE_STATE_ONLINE {
		return nil, errdefs.New(errdefs.FailedPrecondition, "NODE_HEARD", "%s is heard: it is not off", nodeName(req.GetNode()))
	}
	n.OffConfirmedBy, n.OffConfirmedAt = "operator: "+req.GetReason(), madeTime(0)
	return &debvisorv1.NodeAck{Status: debvisorv1.StatusCode_STATUS_OK, OperationId: "op-off"}, nil
}

// SetNodeLimits replaces a node's limits.
func (f *fakeNodes) SetNodeLimits(_ context.Context, req *debvisorv1.NodeLimitsRequest) (*debvisorv1.NodeAck, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	n, err := f.made.node(req.GetNode())
	if err != nil {
		return nil, err
	}
	n.Limits = req.GetLimits()
	return &debvisorv1.NodeAck{Status: debvisorv1.StatusCode_STATUS_OK, OperationId: "op-limit"}, nil
}

// The states of moves, in short.
const (
	stateWaiting = debvisorv1.VMMoveState_VM_MOVE_STATE_WAITING
	stateMoving  = debvisorv1.VMMoveState_VM_MOVE_STATE_MOVING
	stateMoved   = debvisorv1.VMMoveState_VM_MOVE_STATE_MOVED
	stateBlocked = debvisorv1.VMMoveState_VM_MOVE_STATE_BLOCKED
	stateFailed  = debvisorv1.VMMoveState_VM_MOVE_STATE_FAILED
)

// madeEvacuation gives the states that an evacuation of three VMs goes through:
// two move, the third is blocked.
func madeEvacuation(id, kind, node string, end func(*debvisorv1.Operation)) []*debvisorv1.Operation {
	op := &debvisorv1.Operation{
		Id: id, Kind: kind, State: debvisorv1.OperationState_OPERATION_STATE_PENDING, Resources: []string{"evacuation/" + node},
		Principal: "operator", CreatedAt: madeTime(0), TraceId: "0123456789abcdef",
		Evacuation: &debvisorv1.EvacuationDetails{Node: nodeRef(node)},
	}
	states := []*debvisorv1.Operation{op}
	next := func(change func(op *debvisorv1.Operation, moves []*debvisorv1.VMMove)) {
		op := proto.CloneOf(states[len(states)-1])
		change(op, op.GetEvacuation().GetMoves())
		states = append(states, op)
	}
	next(func(op *debvisorv1.Operation, _ []*debvisorv1.VMMove) {
		op.State, op.StartedAt, op.Step = debvisorv1.OperationState_OPERATION_STATE_RUNNING, madeTime(0), "0 of 3 moved"
		for _, name := range []string{"web1", "db1", "gpu"} {
			op.Evacuation.Moves = append(op.Evacuation.Moves, &debvisorv1.VMMove{
				VmId: name, VmName: name, Source: nodeRef(node), State: stateWaiting,
			})
		}
	})
	next(func(op *debvisorv1.Operation, moves []*debvisorv1.VMMove) {
		op.Step = "0 of 3 moved, 1 on their way, 1 to come, 1 blocked"
		moves[0].State, moves[0].Target, moves[0].OperationId = stateMoving, nodeRef("n4"), "op-m1"
		moves[2].State, moves[2].Message = stateBlocked, "it uses the host's device 0000:03:00.0 and 2.5 GiB"
	})
	next(func(op *debvisorv1.Operation, moves []*debvisorv1.VMMove) {
		op.Progress = &debvisorv1.OperationProgress{Percent: 20, BytesPerSecond: 110 << 20}
		moves[0].Percent = 60
		moves[2].Message = "it uses the host's device 0000:03:00.0 and 2.6 GiB"
	})
	next(func(op *debvisorv1.Operation, moves []*debvisorv1.VMMove) {
		op.Step, op.Progress = "1 of 3 moved, 1 on their way, 1 blocked", &debvisorv1.OperationProgress{Percent: 33}
		moves[0].State, moves[0].Percent = stateMoved, 100
		moves[1].State, moves[1].Message = stateWaiting, "try 1 of 3 failed: libvirt says no"
	})
	next(func(_ *debvisorv1.Operation, moves []*debvisorv1.VMMove) {
		moves[1].State, moves[1].Target, moves[1].OperationId, moves[1].Message = stateMoving, nodeRef("n4"), "op-m3", ""
	})
	next(func(op *debvisorv1.Operation, _ []*debvisorv1.VMMove) {
		op.EndedAt, op.Step = madeTime(40), ""
		end(op)
	})
	return states
}

func emptied(op *debvisorv1.Operation) {
	op.State, op.Evacuation.SafeToReboot = debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED, true
	moves := op.GetEvacuation().GetMoves()
	moves[1].State, moves[1].Percent = stateMoved, 100
	moves[2].Message = "no node has room for its disks"
}

func notEmptied(op *debvisorv1.Operation) {
	op.State = debvisorv1.OperationState_OPERATION_STATE_FAILED
	op.GetEvacuation().GetMoves()[1].State = stateFailed
	op.GetEvacuation().GetMoves()[1].Message = "libvirt says no (tried 3 times)"
	op.Error = &debvisorv1.ErrorDetails{
		Code: "EVACUATION_BLOCKED", Message: "2 of 3 VMs could not be moved off n2, which stays cordoned: db1: libvirt says no; gpu: it uses a device",
		Context: map[string]string{"node": "n2"},
	}
}

func givenUp(op *debvisorv1.Operation) {
	op.State = debvisorv1.OperationState_OPERATION_STATE_CANCELLED
	op.Error = &debvisorv1.ErrorDetails{Code: "CANCELLED", Message: "cancelled as asked; 1 of 3 moved; n3 stays cordoned"}
}

func broughtBack(op *debvisorv1.Operation) {
	op.State = debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED
	for _, m := range op.GetEvacuation().GetMoves() {
		m.State, m.Target, m.Message = stateMoved, nodeRef("n1"), ""
	}
}
