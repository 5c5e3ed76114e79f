// Package authz decides who may call what: one table from full method name to
// permission, roles, and the principals' records, compiled to a bit for each
// permission. What no row or record allows is denied.
package authz

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// FileSource gives the access file's policy in force, never nil.
type FileSource interface {
	Current() *accessfile.Policy
}

// Config says what holds besides the records in etcd.
type Config struct {
	// Founders are the principals that have the role operator without a record,
	// where they come with a certificate: init makes one for each before there
	// is an etcd. A record, even an empty one, takes its place.
	Founders []string
	// File is the access file; nil: there is none.
	File FileSource
	// DefaultPerMinute is how often those may call a replica who have no limit
	// of their own or of a role; 0: as often as they like.
	DefaultPerMinute int
}

// Authorizer decides by the table and a snapshot. It is safe for concurrent use.
type Authorizer struct {
	methods  map[string]Rule
	universe *universe
	founders []string
	file     FileSource
	// perMinute is the limit of who has none; 0: none.
	perMinute atomic.Int64

	current atomic.Pointer[policy]
	turn    sync.Mutex // one policy is made at a time
}

// New makes an authorizer over Methods.
func New(cfg Config) *Authorizer {
	if cfg.File == nil {
		cfg.File = accessfile.None()
	}
	a := &Authorizer{methods: Methods(), founders: cfg.Founders, file: cfg.File}
	a.universe = newUniverse(a.methods)
	a.SetDefaultPerMinute(cfg.DefaultPerMinute)
	return a
}

// SetDefaultPerMinute changes how often those may call who have no limit of
// their own or of a role, from their next call on; 0: as often as they like.
func (a *Authorizer) SetDefaultPerMinute(n int) { a.perMinute.Store(int64(n)) }

// stamp is what the policy of a snapshot depends on, as it is now.
func (a *Authorizer) stamp(s *cluster.Snapshot) stamp {
	return stamp{access: s.Access, epoch: s.Epoch, file: a.file.Current(), perMinute: a.perMinute.Load()}
}

// Rule gives a method's row. Without one ok is false and nobody may call it.
func (a *Authorizer) Rule(method string) (rule Rule, ok bool) {
	rule, ok = a.methods[method]
	return rule, ok
}

// policy gives the policy of a snapshot and of the access file as it is now.
func (a *Authorizer) policy(s *cluster.Snapshot) *policy {
	at := a.stamp(s)
	if p := a.current.Load(); p != nil && p.stamp == at {
		return p
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	if p := a.current.Load(); p != nil && p.stamp == at {
		return p
	}
	r := a.records(s)
	r.file = at.file
	n := int(at.perMinute)
	p := newPolicy(a.universe, at, r, rate{perMinute: n, burst: n, unlimited: n == 0})
	a.current.Store(p)
	return p
}

// Grant gives what a caller may do, never nil: nothing for an agent and for
// nobody.
func (a *Authorizer) Grant(s *cluster.Snapshot, caller *authn.Caller) *Grant {
	p := a.policy(s)
	if !isPrincipal(caller) {
		return p.nobody
	}
	g := p.grant(caller.Name, caller.Kind == authn.Certificate)
	if len(caller.Permissions) > 0 {
		return g.with(caller.Name, caller.Permissions)
	}
	return g
}

func isPrincipal(caller *authn.Caller) bool {
	return caller != nil && caller.Agent == nil && caller.Replica == "" && caller.Name != ""
}

// Authorize refuses a call that its caller may not make. The error is
// PermissionDenied, or Unauthenticated for an agent whose certificate has ended.
func (a *Authorizer) Authorize(s *cluster.Snapshot, caller *authn.Caller, method string, now time.Time) error {
	return a.AuthorizeBy(a.Grant(s, caller), caller, method, now)
}

// AuthorizeBy is Authorize for who has looked up the caller's grant already.
func (a *Authorizer) AuthorizeBy(g *Grant, caller *authn.Caller, method string, now time.Time) error {
	rule, ok := a.methods[method]
	switch {
	case !ok:
		return errdefs.New(errdefs.PermissionDenied, "METHOD_NOT_ALLOWED", "nobody may call %s", method)
	case rule.Open:
		return nil
	case caller == nil || caller.Name == "":
		return errdefs.New(errdefs.PermissionDenied, "METHOD_NOT_ALLOWED", "nobody may call %s without an identity", method)
	case caller.Agent != nil:
		return authorizeAgent(rule, caller, method, now)
	case caller.Replica != "":
		return authorizeReplica(rule, caller, method)
	case rule.Replica:
		return errdefs.New(errdefs.PermissionDenied, "REPLICAS_ONLY", "only a replica may call %s", method)
	case rule.Permission == "" && !rule.Anyone:
		return errdefs.New(errdefs.PermissionDenied, "AGENTS_ONLY", "only a node's agent may call %s", method)
	case rule.Scope == ScopeCluster && g.tenant != "":
		return confined(caller.Name, g.tenant, method)
	case rule.Permission == "" || g.Has(rule.Permission):
		return nil
	}
	return lacks(caller.Name, rule.Permission)
}

// Stamp gives what changes whenever it may have changed who may do what, to be
// compared with another of this authorizer.
func (a *Authorizer) Stamp(s *cluster.Snapshot) any {
	return a.stamp(s)
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

func authorizeReplica(rule Rule, caller *authn.Caller, method string) error {
	if !rule.Replica {
		return errdefs.New(errdefs.PermissionDenied, "NOT_FOR_REPLICAS",
			"%s may not call %s; use a principal's certificate", caller.Name, method)
	}
	return nil
}

// Require refuses a principal that may not use a permission. The error is
// PermissionDenied.
func (a *Authorizer) Require(s *cluster.Snapshot, caller *authn.Caller, permission string) error {
	if !isPrincipal(caller) {
		name := "nobody"
		if caller != nil {
			name = caller.Name
		}
		return lacks(name, permission)
	}
	g := a.Grant(s, caller)
	if g.Has(permission) {
		return nil
	}
	if _, _, granted := g.find(permission); granted {
		return confined(caller.Name, g.tenant, permission)
	}
	return lacks(caller.Name, permission)
}

func lacks(name, permission string) error {
	return errdefs.New(errdefs.PermissionDenied, "PERMISSION_DENIED",
		"%s lacks the permission %s; a record principals/%s with a role or a permission that covers it grants it", name, permission, name).
		With("principal", name).With("permission", permission)
}

// confined refuses what belongs to all: a method or a permission.
func confined(name, tenant, what string) error {
	return errdefs.New(errdefs.PermissionDenied, "CONFINED",
		"%s is confined to tenant %s, and %s is for callers that no tenant confines", name, tenant, what).
		With("principal", name).With("tenant", tenant)
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
