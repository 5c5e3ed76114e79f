// Package authz decides who may call what: one table from full method name to
// permission, roles, and the principals' records. What no row or record allows
// is denied.
package authz

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Authorizer decides by the table and a snapshot.
type Authorizer struct {
	methods map[string]Rule
	// founders have the role operator for as long as they have no record.
	founders []string
}

// New makes an authorizer over Methods. The founders are the principals that
// have the role operator without a record in etcd: init makes a certificate for
// one before there is an etcd. A record, even an empty one, takes its place.
func New(founders ...string) *Authorizer {
	return &Authorizer{methods: Methods(), founders: founders}
}

// Rule gives a method's row. Without one ok is false and nobody may call it.
func (a *Authorizer) Rule(method string) (rule Rule, ok bool) {
	rule, ok = a.methods[method]
	return rule, ok
}

// Authorize refuses a call that its caller may not make. The error is
// PermissionDenied.
func (a *Authorizer) Authorize(s *cluster.Snapshot, caller *authn.Caller, method string, now time.Time) error {
	rule, ok := a.methods[method]
	switch {
	case !ok:
		return errdefs.New(errdefs.PermissionDenied, "METHOD_NOT_ALLOWED", "nobody may call %s", method)
	case rule.Open:
		return nil
	case caller == nil:
		return errdefs.New(errdefs.PermissionDenied, "METHOD_NOT_ALLOWED", "nobody may call %s without an identity", method)
	case caller.Agent != nil:
		return authorizeAgent(rule, caller, method, now)
	case rule.Permission == "":
		return errdefs.New(errdefs.PermissionDenied, "AGENTS_ONLY", "only a node's agent may call %s", method)
	}
	return a.Require(s, caller, rule.Permission)
}

func authorizeAgent(rule Rule, caller *authn.Caller, method string, now time.Time) error {
	if !rule.Agent {
		return errdefs.New(errdefs.PermissionDenied, "NOT_FOR_AGENTS",
			"%s is a node's agent, and an agent may not call %s; use a principal's certificate", caller.Name, method)
	}
	if !rule.Expired && caller.Expired(now) {
		return errdefs.New(errdefs.Unauthenticated, "CERTIFICATE_EXPIRED",
			"the certificate of %s ended at %s: renew it first", caller.Name, caller.Agent.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// Require refuses a principal that lacks a permission.
func (a *Authorizer) Require(s *cluster.Snapshot, caller *authn.Caller, permission string) error {
	if caller != nil && caller.Principal != nil && a.allowed(s, caller.Name, permission) {
		return nil
	}
	name := "nobody"
	if caller != nil {
		name = caller.Name
	}
	return errdefs.New(errdefs.PermissionDenied, "PERMISSION_DENIED",
		"%s lacks the permission %s; a record principals/%s with a role or a permission that covers it grants it", name, permission, name).
		With("principal", name).With("permission", permission)
}

func (a *Authorizer) allowed(s *cluster.Snapshot, principal, permission string) bool {
	record, ok := s.Principals[principal]
	if !ok {
		return slices.Contains(a.founders, principal) && covers(rolePermissions(s, "operator"), permission)
	}
	if covers(record.Value.GetPermissions(), permission) {
		return true
	}
	for _, role := range record.Value.GetRoles() {
		if covers(rolePermissions(s, role), permission) {
			return true
		}
	}
	return false
}

// rolePermissions gives a role's permissions: those of its record, which takes
// the place of a built-in role of that name.
func rolePermissions(s *cluster.Snapshot, role string) []string {
	if record, ok := s.Roles[role]; ok {
		return record.Value.GetPermissions()
	}
	return builtin(role)
}

func covers(granted []string, wanted string) bool {
	for _, g := range granted {
		if matches(g, wanted) {
			return true
		}
	}
	return false
}

// Covers tells of the first method of a server's services that has no row:
// nobody could ever call it.
func (a *Authorizer) Covers(services map[string]grpc.ServiceInfo) error {
	for service, info := range services {
		for _, m := range info.Methods {
			method := "/" + service + "/" + m.Name
			if _, ok := a.methods[method]; !ok {
				return fmt.Errorf("method %s has no row in the table of permissions", method)
			}
		}
	}
	return nil
}
