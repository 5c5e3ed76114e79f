package access

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// ListPrincipals gives those that pass the filter, by name.
func (w World) ListPrincipals(filter *debvisorv1.PrincipalFilter) *debvisorv1.PrincipalList {
	list := &debvisorv1.PrincipalList{}
	for _, p := range w.Policy.Principals(w.Snapshot) {
		if (filter.GetTenant() == "" || p.Value.GetTenant() == filter.GetTenant()) &&
			(filter.GetRole() == "" || slices.Contains(p.Value.GetRoles(), filter.GetRole())) {
			list.Principals = append(list.Principals, principalMessage(p))
		}
	}
	return list
}

// GetPrincipal gives one; NotFound where there is none of that name.
func (w World) GetPrincipal(name string) (*debvisorv1.Principal, error) {
	p, err := w.findPrincipal(name)
	if err != nil {
		return nil, err
	}
	return principalMessage(p), nil
}

func (w World) findPrincipal(name string) (authz.Record[*storev1.Principal], error) {
	p, ok := w.Policy.Principal(w.Snapshot, name)
	if !ok {
		return p, errdefs.New(errdefs.NotFound, "PRINCIPAL_NOT_FOUND", "no principal %q has a record", name).With("principal", name)
	}
	return p, nil
}

// principalMessage tells all of a principal but which key it has.
func principalMessage(p authz.Record[*storev1.Principal]) *debvisorv1.Principal {
	return &debvisorv1.Principal{
		Name: p.Name, Type: p.Value.GetType(), Roles: sorted(p.Value.GetRoles()), Permissions: sorted(p.Value.GetPermissions()),
		Tenant: p.Value.GetTenant(), Limit: limitMessage(p.Value.GetLimit()), Source: p.Source,
	}
}

// SetPrincipal makes or replaces a principal's record. Which key the record
// names stays. InvalidArgument for a role or a tenant that does not exist,
// FailedPrecondition for a principal of the access file, and where no operator
// would be left.
func (w World) SetPrincipal(m *debvisorv1.Principal) (store.Change, error) {
	name := m.GetName()
	if identity.CheckPrincipal(name) != nil {
		return store.Change{}, errdefs.Field("name", name, "1 to 128 printable ASCII characters without space, ':' and '/'")
	}
	if p, ok := w.Policy.Principal(w.Snapshot, name); ok && p.Source == authz.SourceFile {
		return store.Change{}, w.inFile("principal", name)
	}
	for i, role := range m.GetRoles() {
		if _, ok := w.Policy.Role(w.Snapshot, role); !ok {
			return store.Change{}, errdefs.Field(fmt.Sprintf("roles[%d]", i), role, "a role that exists: "+w.someRoles())
		}
	}
	if tenant := m.GetTenant(); tenant != "" {
		if err := w.hasTenant("tenant", tenant); err != nil {
			return store.Change{}, err
		}
	}
	limit, err := limitRecord(m.GetLimit())
	if err != nil {
		return store.Change{}, err
	}
	return w.writePrincipal(name, func(record *storev1.Principal) {
		record.Type, record.Roles, record.Permissions = m.GetType(), sorted(m.GetRoles()), sorted(m.GetPermissions())
		record.Tenant, record.Limit = m.GetTenant(), limit
	})
}

// SetPrincipalLimit sets how often a principal may call. A founder gets a record
// for it, which leaves it what it is. Errors as of SetPrincipal.
func (w World) SetPrincipalLimit(m *debvisorv1.PrincipalLimit) (store.Change, error) {
	p, err := w.findPrincipal(m.GetName())
	switch {
	case err != nil:
		return store.Change{}, err
	case p.Source == authz.SourceFile:
		return store.Change{}, w.inFile("principal", p.Name)
	}
	limit, err := limitRecord(m.GetLimit())
	if err != nil {
		return store.Change{}, err
	}
	return w.writePrincipal(p.Name, func(record *storev1.Principal) {
		record.Roles, record.Limit = p.Value.GetRoles(), limit
	})
}

// writePrincipal changes a principal's record in etcd, or makes one.
func (w World) writePrincipal(name string, set func(*storev1.Principal)) (store.Change, error) {
	record := &storev1.Principal{}
	if entry, ok := w.Principals[name]; ok {
		record = proto.CloneOf(entry.Value)
	}
	set(record)
	record.Plain = false // what is written is a hash
	c := w.begin()
	put(c, store.PrincipalKey(name), w.Principals, name, record)
	return *c, w.leavesOperator(authz.Change{Principals: map[string]*storev1.Principal{name: record}})
}

// DeletePrincipal takes a principal's record and its keys away. A founder's
// record gone, it is an operator again; one that has none cannot be deleted.
// FailedPrecondition as for SetPrincipal.
func (w World) DeletePrincipal(name string) (store.Change, error) {
	p, err := w.findPrincipal(name)
	switch {
	case err != nil:
		return store.Change{}, err
	case p.Source == authz.SourceFile:
		return store.Change{}, w.inFile("principal", name)
	case p.Source == authz.SourceFounder:
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "PRINCIPAL_FOUNDER",
			"principal %q is the founder of the cluster and has no record to delete; a record without roles would take its power away", name).
			With("principal", name)
	}
	c := w.begin()
	drop(c, store.PrincipalKey(name), w.Principals, name)
	for _, k := range w.keys() {
		if k.principal == name && k.source != authz.SourceFile {
			w.dropKey(c, k.id)
		}
	}
	return *c, w.leavesOperator(authz.Change{Principals: map[string]*storev1.Principal{name: nil}})
}
