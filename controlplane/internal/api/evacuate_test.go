package api_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

func TestEvacuateNode(t *testing.T) {
	r := startCluster(t)
	r.node("deaf", func(_ *storev1.Node, s *storev1.NodeStatus) {
		s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
	})
	nodes := debvisorv1.NewNodeServiceClient(r.principal("operator"))
	operations := debvisorv1.NewOperationServiceClient(r.principal("operator"))
	at := func(request string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none", "debvisor-request-id", request)
	}
	begin := func(request, node string, parallel uint32) (*debvisorv1.EvacuationResult, error) {
		return nodes.EvacuateNode(at(request), &debvisorv1.EvacuateRequest{Node: nodeRef(node), Parallel: parallel})
	}
	first, err := begin("one", "a", 3)
	if err != nil || first.GetOperationId() == "" {
		t.Fatalf("%v, %v", first, err)
	}
	if again, err := begin("one", "a", 3); err != nil || again.GetOperationId() != first.GetOperationId() {
		t.Errorf("the same request again: %v, %v", again, err)
	}
	refused := func(what string, err error, kind errdefs.Kind, text string) {
		t.Helper()
		if e := errdefs.FromStatus(err); e == nil || e.Kind != kind || !strings.Contains(e.Message, text) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = begin("one", "a", 4)
	refused("another request with its id", err, errdefs.InvalidArgument, "was used for another request")
	_, err = begin("two", "a", 3)
	refused("a second one", err, errdefs.Aborted, first.GetOperationId())
	_, err = nodes.RestoreNode(at("three"), &debvisorv1.RestoreRequest{Node: nodeRef("a")})
	refused("a restore meanwhile", err, errdefs.Aborted, first.GetOperationId())
	_, err = begin("four", "x", 0)
	refused("an unknown node", err, errdefs.NotFound, "x")
	_, err = begin("five", "deaf", 0)
	refused("a node that is not heard", err, errdefs.FailedPrecondition, "not heard")
	_, err = begin("six", "", 0)
	refused("no node", err, errdefs.InvalidArgument, "node")

	// How far a move is, is read from its own operation.
	entry := r.view.Current().Operations[first.GetOperationId()].Value
	op := proto.CloneOf(entry)
	op.State = task.OpRunning
	op.GetEvacuate().Moves = []*storev1.Move{
		{VmUuid: web, VmName: "web", Source: "a", Target: "b", State: storev1.MoveState_MOVE_STATE_MOVING, Operation: "op-child"},
		{VmUuid: twin, VmName: "twin", Source: "a", State: storev1.MoveState_MOVE_STATE_BLOCKED, Message: "b has no room"},
	}
	r.put(store.PutProto(store.OperationKey(op.GetId()), op), store.PutProto(store.OperationKey("op-child"), &storev1.Operation{
		Id: "op-child", Kind: "migrate", State: task.OpRunning, Parent: op.GetId(), Step: "copying memory",
		Progress: encode(t, &debvisorv1.OperationProgress{Percent: 40}), Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmUuid: web}},
	}))
	seen, err := operations.GetOperation(t.Context(), &debvisorv1.OperationRef{Id: op.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	moves := seen.GetEvacuation().GetMoves()
	if len(moves) != 2 || moves[0].GetPercent() != 40 || moves[0].GetMessage() != "copying memory" || moves[1].GetMessage() != "b has no room" {
		t.Errorf("the moves are %v", moves)
	}

	// The ends, for a caller that waits.
	r.end(op.GetId(), func(op *storev1.Operation) {
		op.State, op.ErrorCode, op.ErrorMessage = task.OpFailed, "EVACUATION_BLOCKED", "twin: b has no room"
	})
	_, err = nodes.EvacuateNode(metadata.AppendToOutgoingContext(t.Context(), "debvisor-request-id", "one"),
		&debvisorv1.EvacuateRequest{Node: nodeRef("a"), Parallel: 3})
	refused("a blocked one", err, errdefs.FailedPrecondition, "b has no room")
}
