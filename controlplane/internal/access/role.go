package access

import (
	"slices"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// ListRoles gives every role, by name.
func (w World) ListRoles() *debvisorv1.RoleList {
	list := &debvisorv1.RoleList{}
	for _, r := range w.Policy.Roles(w.Snapshot) {
		list.Roles = append(list.Roles, roleMessage(r))
	}
	return list
}

// GetRole gives one role; NotFound where there is none of that name.
func (w World) GetRole(name string) (*debvisorv1.Role, error) {
	r, err := w.findRole(name)
	if err != nil {
		return nil, err
	}
	return roleMessage(r), nil
}

func (w World) findRole(name string) (authz.Record[*storev1.Role], error) {
	r, ok := w.Policy.Role(w.Snapshot, name)
	if !ok {
		return r, errdefs.New(errdefs.NotFound, "ROLE_NOT_FOUND", "no role %q; there are %s", name, w.someRoles()).With("role", name)
	}
	return r, nil
}

func (w World) someRoles() string { return some(names(w.Policy.Roles(w.Snapshot))) }

func roleMessage(r authz.Record[*storev1.Role]) *debvisorv1.Role {
	return &debvisorv1.Role{
		Name: r.Name, Permissions: sorted(r.Value.GetPermissions()), Limit: limitMessage(r.Value.GetLimit()),
		BuiltIn: authz.BuiltIn(r.Name), Source: r.Source,
	}
}

// SetRole makes or replaces a role. A record takes the place of a built-in role
// of its name. FailedPrecondition for a role of the access file, and where no
// operator would be left.
func (w World) SetRole(m *debvisorv1.Role) (store.Change, error) {
	name := m.GetName()
	if r, ok := w.Policy.Role(w.Snapshot, name); ok && r.Source == authz.SourceFile {
		return store.Change{}, w.inFile("role", name)
	}
	limit, err := limitRecord(m.GetLimit())
	if err != nil {
		return store.Change{}, err
	}
	record := &storev1.Role{Permissions: sorted(m.GetPermissions()), Limit: limit}
	c := w.begin()
	put(c, store.RoleKey(name), w.Roles, name, record)
	return *c, w.leavesOperator(authz.Change{Roles: map[string]*storev1.Role{name: record}})
}

// DeleteRole takes a role's record away: a built-in role becomes what it was,
// any other must be nobody's any more. FailedPrecondition as for SetRole.
func (w World) DeleteRole(name string) (store.Change, error) {
	r, err := w.findRole(name)
	switch {
	case err != nil:
		return store.Change{}, err
	case r.Source == authz.SourceFile:
		return store.Change{}, w.inFile("role", name)
	case r.Source == authz.SourceBuiltIn:
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "ROLE_BUILT_IN",
			"role %q is built in and as it was made: there is no record of it to delete", name).With("role", name)
	}
	if holders := w.holders(name); len(holders) > 0 && !authz.BuiltIn(name) {
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "ROLE_IN_USE",
			"role %q is still that of %s", name, some(holders)).With("role", name)
	}
	c := w.begin()
	drop(c, store.RoleKey(name), w.Roles, name)
	return *c, w.leavesOperator(authz.Change{Roles: map[string]*storev1.Role{name: nil}})
}

// holders are the principals that have a role, by name.
func (w World) holders(role string) []string {
	var holders []string
	for _, p := range w.Policy.Principals(w.Snapshot) {
		if slices.Contains(p.Value.GetRoles(), role) {
			holders = append(holders, p.Name)
		}
	}
	return holders
}

// leavesOperator refuses a change after which nobody could mend anything.
func (w World) leavesOperator(c authz.Change) error {
	return w.Policy.LeavesOperator(w.Snapshot, c)
}
