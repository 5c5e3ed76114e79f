package api

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
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
func (s *operationService) GetOperation(ctx context.Context, ref *debvisorv1.OperationRef) (*debvisorv1.Operation, error) {
	scope := scopeOf(ctx, s.view.Current())
	op, err := operations.Find(scope, ref.GetId())
	if err != nil {
		return nil, err
	}
	return operationMessage(scope, op), nil
}

// ListOperations answers operations, newest first.
func (s *operationService) ListOperations(ctx context.Context, filter *debvisorv1.OperationFilter) (*debvisorv1.OperationList, error) {
	scope := scopeOf(ctx, s.view.Current())
	var found []*storev1.Operation
	for entry := range scope.Operations() {
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
		list.Operations = append(list.Operations, operationMessage(scope, op))
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
	ctx := stream.Context()
	if _, err := operations.Find(scopeOf(ctx, s.view.Current()), ref.GetId()); err != nil {
		return err
	}
	return s.operations.Watch(ctx, ref.GetId(), func(op *storev1.Operation) error {
		return stream.Send(operationMessage(scopeOf(ctx, s.view.Current()), op))
	})
}

// CancelOperation asks for an end and waits for it. PermissionDenied for a
// tenant's VM on the move as part of what the tenant cannot see: that is ended
// as a whole, by whoever may.
func (s *operationService) CancelOperation(ctx context.Context, ref *debvisorv1.OperationRef) (*debvisorv1.Operation, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	id := ref.GetId()
	if err := cancellable(scopeOf(ctx, s.view.Current()), id); err != nil {
		return nil, err
	}
	if err := s.operations.Cancel(ctx, id); err != nil {
		return nil, err
	}
	tellOperation(ctx, id)
	if wait {
		op, err := awaitEnd(ctx, s.view, s.operations, id)
		if err == nil {
			err = operations.Cancelled(op)
		}
		if err != nil {
			return nil, err
		}
	}
	return s.GetOperation(ctx, ref)
}

// cancellable refuses an operation that is not in the scope, and one that is
// part of another that is not.
func cancellable(scope cluster.Scope, id string) error {
	op, err := operations.Find(scope, id)
	if err != nil || op.GetParent() == "" || !scope.Confined() {
		return err
	}
	if _, ok := scope.Operation(op.GetParent()); ok {
		return nil
	}
	return errdefs.New(errdefs.PermissionDenied, "PART_OF_MORE",
		"operation %s is part of an operation on more than your tenant's VMs, and is cancelled only by who may cancel that", id).With("operation", id)
}
