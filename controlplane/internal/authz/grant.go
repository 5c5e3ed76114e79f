package authz

import (
	"slices"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// part is some of what a principal was granted: by a role, or its own.
type part struct {
	// role is empty for what is the principal's own.
	role        string
	permissions []string
}

// Grant is what one principal may do, compiled. It is never changed.
type Grant struct {
	universe *universe
	name     string
	// covered holds what it may use, without what its tenant keeps it from.
	covered set
	tenant  string
	limit   rate
	roles   []string
	parts   []part
}

// Has tells whether the principal may use a permission. One that only callers
// without a tenant may use, a confined principal has not, whatever was granted.
func (g *Grant) Has(permission string) bool {
	if bit, ok := g.universe.bits[permission]; ok {
		return g.covered.has(bit)
	}
	// No method asks for it, so that nothing says that a tenant's may use it.
	_, _, ok := g.find(permission)
	return ok && g.tenant == ""
}

// find gives the granted permission that covers a wanted one, and the role that
// has it; empty for one of the principal's own, which go first.
func (g *Grant) find(wanted string) (role, granted string, ok bool) {
	for _, p := range g.parts {
		for _, granted := range p.permissions {
			if matches(granted, wanted) {
				return p.role, granted, true
			}
		}
	}
	return "", "", false
}

// Tenant is the tenant that the principal is confined to; empty: none.
func (g *Grant) Tenant() string { return g.tenant }

// Limit is how often the principal may call one replica: calls a minute, and
// how many at once after a pause. Both are 0 if there is no limit.
func (g *Grant) Limit() (perMinute, burst int, unlimited bool) {
	return g.limit.perMinute, g.limit.burst, g.limit.unlimited
}

// Roles are the names of its roles, those that do not exist among them.
func (g *Grant) Roles() []string { return slices.Clone(g.roles) }

// Permissions are all that were granted, its roles' and its own, as they were
// written, in order, each once.
func (g *Grant) Permissions() []string {
	var all []string
	for _, p := range g.parts {
		all = append(all, p.permissions...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// rate is how often one may call.
type rate struct {
	perMinute, burst int
	unlimited        bool
}

// rateOf reads a limit; what it leaves open is as in otherwise.
func rateOf(limit *storev1.RateLimit, otherwise rate) rate {
	if limit.GetUnlimited() {
		return rate{unlimited: true}
	}
	r := rate{perMinute: int(limit.GetPerMinute()), burst: int(limit.GetBurst())}
	if r.perMinute == 0 {
		if otherwise.unlimited {
			return otherwise
		}
		r.perMinute = otherwise.perMinute
	}
	if r.burst == 0 {
		r.burst = r.perMinute
	}
	return r
}

// above tells whether a limit is more generous than another.
func (r rate) above(other rate) bool {
	switch {
	case r.unlimited != other.unlimited:
		return r.unlimited
	case r.perMinute != other.perMinute:
		return r.perMinute > other.perMinute
	}
	return r.burst > other.burst
}
