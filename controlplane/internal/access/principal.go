package access

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// ListPrincipals gives those that pass the filter, by name.
func (w World) ListPrincipals(filter *debvisorv1.PrincipalFilter) *debvisorv1.PrincipalList {
	list := &debvisorv1.PrincipalList{}
	for _, name := range w.principalNames() {
		record, source, _ := w.findPrincipal(name)
		if (filter.GetTenant() == "" || record.GetTenant() == filter.GetTenant()) &&
			(filter.GetRole() == "" || slices.Contains(record.GetRoles(), filter.GetRole())) {
			list.Principals = append(list.Principals, principalMessage(name, record, source))
		}
	}
	return list
}

// GetPrincipal gives one; NotFound where there is none of that name.
func (w World) GetPrincipal(name string) (*debvisorv1.Principal, error) {
	record, source, ok := w.findPrincipal(name)
	if !ok {
		return nil, noPrincipal(name)
	}
	return principalMessage(name, record, source), nil
}

// principalMessage tells all of a principal but which key it has.
func principalMessage(name string, record *storev1.Principal, source string) *debvisorv1.Principal {
	return &debvisorv1.Principal{
		Name: name, Type: record.GetType(), Roles: sorted(record.GetRoles()), Permissions: sorted(record.GetPermissions()),
		Tenant: record.GetTenant(), Limit: limitMessage(record.GetLimit()), Source: source,
	}
}

// SetPrincipal makes or replaces a principal's record. Which key the record
// names stays. InvalidArgument for a role or a tenant that does not exist,
// FailedPrecondition for a principal of the access file.
func (w World) SetPrincipal(m *debvisorv1.Principal) (Change, error) {
	name := m.GetName()
	if identity.CheckPrincipal(name) != nil {
		return Change{}, errdefs.Field("name", name, "1 to 128 printable ASCII characters without space, ':' and '/'")
	}
	if _, ok := w.file().Principals[name]; ok {
		return Change{}, w.inFile("principal", name)
	}
	for i, role := range m.GetRoles() {
		if _, _, ok := w.findRole(role); !ok {
			return Change{}, errdefs.Field(fmt.Sprintf("roles[%d]", i), role, "a role that exists: "+some(w.roleNames()))
		}
	}
	if tenant := m.GetTenant(); tenant != "" {
		if _, _, ok := w.findTenant(tenant); !ok {
			return Change{}, errdefs.Field("tenant", tenant, "a tenant that exists: "+some(w.tenantNames()))
		}
	}
	limit, err := limitRecord(m.GetLimit())
	if err != nil {
		return Change{}, err
	}
	return w.writePrincipal(name, func(record *storev1.Principal) {
		record.Type, record.Roles, record.Permissions = m.GetType(), sorted(m.GetRoles()), sorted(m.GetPermissions())
		record.Tenant, record.Limit = m.GetTenant(), limit
	}), nil
}

// SetPrincipalLimit sets how often a principal may call. A founder gets a record
// for it, which leaves it what it is.
func (w World) SetPrincipalLimit(m *debvisorv1.PrincipalLimit) (Change, error) {
	name := m.GetName()
	founder, source, ok := w.findPrincipal(name)
	switch {
	case !ok:
		return Change{}, noPrincipal(name)
	case source == sourceFile:
		return Change{}, w.inFile("principal", name)
	}
	limit, err := limitRecord(m.GetLimit())
	if err != nil {
		return Change{}, err
	}
	return w.writePrincipal(name, func(record *storev1.Principal) {
		if source == sourceFounder {
			record.Roles = founder.GetRoles()
		}
		record.Limit = limit
	}), nil
}

// writePrincipal changes a principal's record in etcd, or makes one.
func (w World) writePrincipal(name string, set func(*storev1.Principal)) Change {
	e := w.begin()
	record := &storev1.Principal{}
	if entry, ok := w.Principals[name]; ok {
		record = proto.CloneOf(entry.Value)
	}
	set(record)
	put(e, store.PrincipalKey(name), w.Principals, e.draft.Principals, name, record)
	return e.done()
}

// DeletePrincipal takes a principal's record and its keys away. A founder's
// record gone, it is an operator again; one that has none cannot be deleted.
func (w World) DeletePrincipal(name string) (Change, error) {
	_, source, ok := w.findPrincipal(name)
	switch {
	case !ok:
		return Change{}, noPrincipal(name)
	case source == sourceFile:
		return Change{}, w.inFile("principal", name)
	case source == sourceFounder:
		return Change{}, errdefs.New(errdefs.FailedPrecondition, "PRINCIPAL_FOUNDER",
			"principal %q is the founder of the cluster and has no record to delete; a record without roles would take its power away", name).
			With("principal", name)
	}
	e := w.begin()
	drop(e, store.PrincipalKey(name), w.Principals, e.draft.Principals, name)
	for _, k := range w.keys() {
		if k.principal == name && k.source != sourceFile {
			w.dropKey(e, k.id)
		}
	}
	return e.done(), nil
}

func noPrincipal(name string) error {
	return errdefs.New(errdefs.NotFound, "PRINCIPAL_NOT_FOUND", "no principal %q has a record", name).With("principal", name)
}
