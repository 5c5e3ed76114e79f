package authz

import (
	"maps"
	"slices"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// Where a record comes from.
const (
	SourceFile    = accessfile.Source
	SourceEtcd    = "etcd"
	SourceBuiltIn = "built-in"
	// SourceFounder is a founder that has no record.
	SourceFounder = "founder"
)

// Record is one that is in force, with where it comes from. Its value is never
// changed.
type Record[T any] struct {
	Name   string
	Value  T
	Source string
}

// Change is what a call would do to principals and roles in etcd. A name with
// nil takes the record away.
type Change struct {
	Principals map[string]*storev1.Principal
	Roles      map[string]*storev1.Role
}

// records are all that are in force: the file's, over a change that is only
// thought of, over etcd's, over what is there without a record.
type records struct {
	file       *accessfile.Policy
	change     Change
	principals map[string]cluster.Entry[*storev1.Principal]
	roles      map[string]cluster.Entry[*storev1.Role]
	founders   []string
}

func (a *Authorizer) records(s *cluster.Snapshot) records {
	return records{file: a.file.Current(), principals: s.Principals, roles: s.Roles, founders: a.founders}
}

// find looks a name up, in the order in which records count.
func find[T any](name string, file, change map[string]*T, etcd map[string]cluster.Entry[*T]) (Record[*T], bool) {
	if value, ok := file[name]; ok {
		return Record[*T]{Name: name, Value: value, Source: SourceFile}, true
	}
	if value, ok := change[name]; ok {
		return Record[*T]{Name: name, Value: value, Source: SourceEtcd}, value != nil
	}
	entry, ok := etcd[name]
	return Record[*T]{Name: name, Value: entry.Value, Source: SourceEtcd}, ok
}

// principal gives a principal's record.
func (r records) principal(name string) (Record[*storev1.Principal], bool) {
	return find(name, r.file.Principals, r.change.Principals, r.principals)
}

// founder gives what a founder is without a record.
func (r records) founder(name string) (Record[*storev1.Principal], bool) {
	if !slices.Contains(r.founders, name) {
		return Record[*storev1.Principal]{}, false
	}
	return Record[*storev1.Principal]{Name: name, Value: &storev1.Principal{Roles: []string{"operator"}}, Source: SourceFounder}, true
}

// role gives a role: its record, which takes the place of a built-in one of
// that name.
func (r records) role(name string) (Record[*storev1.Role], bool) {
	if found, ok := find(name, r.file.Roles, r.change.Roles, r.roles); ok {
		return found, true
	}
	permissions := builtin(name)
	return Record[*storev1.Role]{Name: name, Value: &storev1.Role{Permissions: permissions}, Source: SourceBuiltIn}, permissions != nil
}

// names gives every name that any of the maps has, once, in order.
func names[T any](file, change map[string]*T, etcd map[string]cluster.Entry[*T], more []string) []string {
	all := slices.Concat(slices.Collect(maps.Keys(file)), slices.Collect(maps.Keys(change)), slices.Collect(maps.Keys(etcd)), more)
	slices.Sort(all)
	return slices.Compact(all)
}

// Principal gives what is in force of a principal: its record, or what a
// founder is without one.
func (a *Authorizer) Principal(s *cluster.Snapshot, name string) (Record[*storev1.Principal], bool) {
	r := a.records(s)
	if found, ok := r.principal(name); ok {
		return found, true
	}
	return r.founder(name)
}

// Principals gives what is in force of every principal, by name.
func (a *Authorizer) Principals(s *cluster.Snapshot) []Record[*storev1.Principal] {
	var all []Record[*storev1.Principal]
	for _, name := range names(a.file.Current().Principals, nil, s.Principals, a.founders) {
		if found, ok := a.Principal(s, name); ok {
			all = append(all, found)
		}
	}
	return all
}

// Role gives the role that is in force by that name.
func (a *Authorizer) Role(s *cluster.Snapshot, name string) (Record[*storev1.Role], bool) {
	return a.records(s).role(name)
}

// Roles gives every role that is in force, by name.
func (a *Authorizer) Roles(s *cluster.Snapshot) []Record[*storev1.Role] {
	r := a.records(s)
	var all []Record[*storev1.Role]
	for _, name := range names(r.file.Roles, nil, r.roles, builtins()) {
		if found, ok := r.role(name); ok {
			all = append(all, found)
		}
	}
	return all
}

// BuiltIn tells whether a role of that name is there without a record.
func BuiltIn(role string) bool { return builtin(role) != nil }

// Tenant gives a tenant.
func (a *Authorizer) Tenant(s *cluster.Snapshot, name string) (Record[*storev1.Tenant], bool) {
	return find(name, a.file.Current().Tenants, nil, s.Tenants)
}

// Tenants gives every tenant, by name.
func (a *Authorizer) Tenants(s *cluster.Snapshot) []Record[*storev1.Tenant] {
	file := a.file.Current()
	var all []Record[*storev1.Tenant]
	for _, name := range names(file.Tenants, nil, s.Tenants, nil) {
		if found, ok := find(name, file.Tenants, nil, s.Tenants); ok {
			all = append(all, found)
		}
	}
	return all
}

// Keys gives every API key, by id.
func (a *Authorizer) Keys(s *cluster.Snapshot) []Record[*storev1.APIKey] {
	file := a.file.Current()
	var all []Record[*storev1.APIKey]
	for _, id := range names(file.Keys, nil, s.APIKeys, nil) {
		if found, ok := find(id, file.Keys, nil, s.APIKeys); ok {
			all = append(all, found)
		}
	}
	return all
}
