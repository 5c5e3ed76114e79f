package api

import (
	"context"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// ListRoles answers every role.
func (s *accessService) ListRoles(context.Context, *debvisorv1.Empty) (*debvisorv1.RoleList, error) {
	return s.world(s.view.Current()).ListRoles(), nil
}

// GetRole answers one role.
func (s *accessService) GetRole(_ context.Context, ref *debvisorv1.RoleRef) (*debvisorv1.Role, error) {
	return s.world(s.view.Current()).GetRole(ref.GetName())
}

// SetRole makes or replaces a role.
func (s *accessService) SetRole(ctx context.Context, req *debvisorv1.Role) (*debvisorv1.Role, error) {
	op, err := s.change(ctx, "role.set", req, "role/"+req.GetName(), func(w access.World) (store.Change, error) { return w.SetRole(req) })
	if err != nil {
		return nil, err
	}
	m, err := s.world(s.view.Current()).GetRole(req.GetName())
	if err != nil {
		return nil, err
	}
	m.OperationId = op.GetId()
	return m, nil
}

// DeleteRole takes a role away.
func (s *accessService) DeleteRole(ctx context.Context, ref *debvisorv1.RoleRef) (*debvisorv1.Empty, error) {
	_, err := s.change(ctx, "role.delete", ref, "role/"+ref.GetName(), func(w access.World) (store.Change, error) {
		return w.DeleteRole(ref.GetName())
	})
	return &debvisorv1.Empty{}, err
}

// ListPrincipals answers those that pass the filter.
func (s *accessService) ListPrincipals(_ context.Context, filter *debvisorv1.PrincipalFilter) (*debvisorv1.PrincipalList, error) {
	return s.world(s.view.Current()).ListPrincipals(filter), nil
}

// GetPrincipal answers one principal.
func (s *accessService) GetPrincipal(_ context.Context, ref *debvisorv1.PrincipalRef) (*debvisorv1.Principal, error) {
	return s.world(s.view.Current()).GetPrincipal(ref.GetName())
}

// SetPrincipal makes or replaces a principal's record, but for its keys.
func (s *accessService) SetPrincipal(ctx context.Context, req *debvisorv1.Principal) (*debvisorv1.Principal, error) {
	op, err := s.change(ctx, "principal.set", req, "principal/"+req.GetName(), func(w access.World) (store.Change, error) {
		return w.SetPrincipal(req)
	})
	if err != nil {
		return nil, err
	}
	return s.principal(req.GetName(), op.GetId())
}

// SetPrincipalLimit sets how often a principal may call.
func (s *accessService) SetPrincipalLimit(ctx context.Context, req *debvisorv1.PrincipalLimit) (*debvisorv1.Principal, error) {
	op, err := s.change(ctx, "principal.limit", req, "principal/"+req.GetName(), func(w access.World) (store.Change, error) {
		return w.SetPrincipalLimit(req)
	})
	if err != nil {
		return nil, err
	}
	return s.principal(req.GetName(), op.GetId())
}

// principal answers a principal as an operation has left it.
func (s *accessService) principal(name, operation string) (*debvisorv1.Principal, error) {
	m, err := s.world(s.view.Current()).GetPrincipal(name)
	if err != nil {
		return nil, err
	}
	m.OperationId = operation
	return m, nil
}

// DeletePrincipal takes a principal's record and its keys away.
func (s *accessService) DeletePrincipal(ctx context.Context, ref *debvisorv1.PrincipalRef) (*debvisorv1.Empty, error) {
	_, err := s.change(ctx, "principal.delete", ref, "principal/"+ref.GetName(), func(w access.World) (store.Change, error) {
		return w.DeletePrincipal(ref.GetName())
	})
	return &debvisorv1.Empty{}, err
}
