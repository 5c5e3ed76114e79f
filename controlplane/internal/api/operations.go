package api

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

type operationService struct {
	debvisorv1.UnimplementedOperationServiceServer
	view       *store.View
	operations *operations.Operations
}

// listed is how many operations a list holds where the caller says nothing.
const listed = 100

// GetOperation answers one operation.
func (s *operationService) GetOperation(_ context.Context, ref *debvisorv1.OperationRef) (*debvisorv1.Operation, error) {
	op, err := s.operations.Get(ref.GetId())
	if err != nil {
		return nil, err
	}
	return withMoves(s.view.Current(), operationMessage(op)), nil
}

// ListOperations answers operations, newest first.
func (s *operationService) ListOperations(_ context.Context, filter *debvisorv1.OperationFilter) (*debvisorv1.OperationList, error) {
	var found []*storev1.Operation
	for _, entry := range s.view.Current().Operations {
		if passes(entry.Value, filter) {
			found = append(found, entry.Value)
		}
	}
	slices.SortFunc(found, func(a, b *storev1.Operation) int {
		return cmp.Or(b.GetCreatedAt().AsTime().Compare(a.GetCreatedAt().AsTime()), cmp.Compare(b.GetId(), a.GetId()))
	})
	found = found[:min(len(found), int(cmp.Or(filter.GetLimit(), listed)))]
	list := &debvisorv1.OperationList{}
	for _, op := range found {
		list.Operations = append(list.Operations, withMoves(s.view.Current(), operationMessage(op)))
	}
	return list, nil
}

func passes(op *storev1.Operation, filter *debvisorv1.OperationFilter) bool {
	return (!filter.GetActiveOnly() || !task.OpEnded(op.GetState())) &&
		(filter.GetKind() == "" || op.GetKind() == filter.GetKind()) &&
		(filter.GetResource() == "" || slices.Contains(op.GetResources(), filter.GetResource()))
}

// WatchOperation sends the operation as it is and at each change until its end.
func (s *operationService) WatchOperation(ref *debvisorv1.OperationRef, stream grpc.ServerStreamingServer[debvisorv1.Operation]) error {
	if _, err := s.operations.Get(ref.GetId()); err != nil {
		return err
	}
	return s.operations.Watch(stream.Context(), ref.GetId(), func(op *storev1.Operation) error {
		return stream.Send(withMoves(s.view.Current(), operationMessage(op)))
	})
}

// CancelOperation asks for an end and waits for it.
func (s *operationService) CancelOperation(ctx context.Context, ref *debvisorv1.OperationRef) (*debvisorv1.Operation, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.operations.Cancel(ctx, ref.GetId()); err != nil {
		return nil, err
	}
	tellOperation(ctx, ref.GetId())
	if !wait {
		op, err := s.operations.Get(ref.GetId())
		if err != nil {
			return nil, err
		}
		return withMoves(s.view.Current(), operationMessage(op)), nil
	}
	op, err := s.operations.Wait(ctx, ref.GetId())
	if err != nil {
		return nil, err
	}
	if err := operations.Cancelled(op); err != nil {
		return nil, err
	}
	return withMoves(s.view.Current(), operationMessage(op)), nil
}
