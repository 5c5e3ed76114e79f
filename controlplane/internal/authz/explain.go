package authz

import (
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
)

// Decision is whether a principal may use a permission, and why.
type Decision struct {
	Allowed bool
	// Role has the permission that covers it; empty where one of its own does.
	Role string
	// Granted is the permission that covers it, such as "storage:*". It is set,
	// too, where only the tenant stands in the way.
	Granted string
	// Tenant is the tenant that the principal is confined to.
	Tenant string
	// Reason is for people: by what it is allowed, or what is missing.
	Reason string
}

// Explain tells whether a principal may use a permission. A founder without a
// record is judged as if it came with its certificate.
func (a *Authorizer) Explain(s *cluster.Snapshot, principal, permission string) Decision {
	return a.ExplainCaller(s, &authn.Caller{Name: principal}, permission)
}

// ExplainCaller is Explain of one who calls, with what its token brings.
func (a *Authorizer) ExplainCaller(s *cluster.Snapshot, caller *authn.Caller, permission string) Decision {
	g := a.Grant(s, caller)
	d := Decision{Allowed: g.Has(permission), Tenant: g.tenant}
	var granted bool
	d.Role, d.Granted, granted = g.find(permission)
	switch {
	case !granted:
		d.Reason = a.missing(s, caller.Name, g, permission)
	case !d.Allowed:
		d.Reason = fmt.Sprintf("%s is granted, but tenant %s confines it, and %s is for callers that no tenant confines", d.Granted, g.tenant, permission)
	case d.Role != "":
		d.Reason = fmt.Sprintf("its role %s has %s", d.Role, d.Granted)
	case slices.Contains(caller.Permissions, d.Granted):
		d.Reason = fmt.Sprintf("its token has %s", d.Granted)
	default:
		d.Reason = fmt.Sprintf("it has %s itself", d.Granted)
	}
	return d
}

// missing says why nothing covers a permission.
func (a *Authorizer) missing(s *cluster.Snapshot, name string, g *Grant, permission string) string {
	var unknown []string
	for _, role := range g.roles {
		if _, ok := a.Role(s, role); !ok {
			unknown = append(unknown, role)
		}
	}
	var reason string
	switch {
	case len(g.parts) == 0:
		reason = "it has no record principals/" + name + ", and nothing grants it anything"
	case len(g.roles) == 0:
		reason = "it has no role, and none of its own permissions covers " + permission
	default:
		reason = fmt.Sprintf("none of its roles (%s) and of its own permissions covers %s", strings.Join(g.roles, ", "), permission)
	}
	if len(unknown) > 0 {
		reason += "; there is no role " + strings.Join(unknown, ", ")
	}
	return reason
}
