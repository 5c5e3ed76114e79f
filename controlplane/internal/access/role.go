package access

import (
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// ListRoles gives every role, by name.
func (w World) ListRoles() *debvisorv1.RoleList {
	list := &debvisorv1.RoleList{}
	for _, name := range w.roleNames() {
		record, source, _ := w.findRole(name)
		list.Roles = append(list.Roles, w.roleMessage(name, record, source))
	}
	return list
}

// GetRole gives one role; NotFound where there is none of that name.
func (w World) GetRole(name string) (*debvisorv1.Role, error) {
	record, source, ok := w.findRole(name)
	if !ok {
		return nil, w.noRole(name)
	}
	return w.roleMessage(name, record, source), nil
}

func (w World) roleMessage(name string, record *storev1.Role, source string) *debvisorv1.Role {
	_, builtIn := w.BuiltIn[name]
	return &debvisorv1.Role{
		Name: name, Permissions: sorted(record.GetPermissions()), Limit: limitMessage(record.GetLimit()),
		BuiltIn: builtIn, Source: source,
	}
}

// SetRole makes or replaces a role. A record takes the place of a built-in role
// of its name. FailedPrecondition for a role of the access file.
func (w World) SetRole(m *debvisorv1.Role) (Change, error) {
	name := m.GetName()
	if _, ok := w.file().Roles[name]; ok {
		return Change{}, w.inFile("role", name)
	}
	limit, err := limitRecord(m.GetLimit())
	if err != nil {
		return Change{}, err
	}
	e := w.begin()
	put(e, store.RoleKey(name), w.Roles, e.draft.Roles, name, &storev1.Role{Permissions: sorted(m.GetPermissions()), Limit: limit})
	return e.done(), nil
}

// DeleteRole takes a role's record away: a built-in role becomes what it was,
// any other must be nobody's any more.
func (w World) DeleteRole(name string) (Change, error) {
	_, source, ok := w.findRole(name)
	switch {
	case !ok:
		return Change{}, w.noRole(name)
	case source == sourceFile:
		return Change{}, w.inFile("role", name)
	case source == sourceBuiltIn:
		return Change{}, errdefs.New(errdefs.FailedPrecondition, "ROLE_BUILT_IN",
			"role %q is built in and as it was made: there is no record of it to delete", name).With("role", name)
	}
	if _, builtIn := w.BuiltIn[name]; !builtIn {
		if holders := w.holders(name); len(holders) > 0 {
			return Change{}, errdefs.New(errdefs.FailedPrecondition, "ROLE_IN_USE",
				"role %q is still that of %s", name, some(holders)).With("role", name).With("principal", holders[0])
		}
	}
	e := w.begin()
	drop(e, store.RoleKey(name), w.Roles, e.draft.Roles, name)
	return e.done(), nil
}

// holders are the principals that have a role, by name.
func (w World) holders(role string) []string {
	var names []string
	for _, m := range w.ListPrincipals(&debvisorv1.PrincipalFilter{Role: role}).GetPrincipals() {
		names = append(names, m.GetName())
	}
	return names
}

func (w World) noRole(name string) error {
	return errdefs.New(errdefs.NotFound, "ROLE_NOT_FOUND", "no role %q; there are %s", name, some(w.roleNames())).With("role", name)
}
