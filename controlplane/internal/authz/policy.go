package authz

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// stamp tells policies apart: two snapshots and files with the same one agree
// in who may do what. A restored etcd counts its revisions anew, in a new epoch.
type stamp struct {
	access int64
	epoch  uint64
	file   *accessfile.Policy
	// perMinute is the limit of who has none.
	perMinute int64
}

// policy is the access policy of one stamp. Each principal and each role is
// compiled when it is first asked for: a change of one among a hundred thousand
// does not make the next call wait for all of them.
type policy struct {
	stamp
	universe *universe
	records  records
	// otherwise is the limit of who has none.
	otherwise rate
	// nobody is the grant of all who have no record.
	nobody *Grant
	// grants holds what has been compiled, of those who have a record; founders,
	// of founders that have none.
	grants, founders table
	// roles are compiled roles by name, of those that exist; *compiledRole.
	roles sync.Map
}

// compiledRole is what one role brings.
type compiledRole struct {
	record  Record[*storev1.Role]
	covered set
}

func newPolicy(u *universe, at stamp, r records, otherwise rate) *policy {
	return &policy{
		stamp: at, universe: u, records: r, otherwise: otherwise,
		nobody:   &Grant{universe: u, limit: otherwise},
		grants:   newTable(len(r.principals) + len(r.change.Principals) + len(r.file.Principals)),
		founders: newTable(len(r.founders)),
	}
}

// grant gives what a principal may do. A founder without a record counts as
// one only where the call brought its certificate.
func (p *policy) grant(name string, certificate bool) *Grant {
	if g := p.grants.get(name); g != nil {
		return g
	}
	if record, ok := p.records.principal(name); ok {
		return p.grants.put(p.compile(record))
	}
	if !certificate {
		return p.nobody
	}
	if g := p.founders.get(name); g != nil {
		return g
	}
	if record, ok := p.records.founder(name); ok {
		return p.founders.put(p.compile(record))
	}
	return p.nobody
}

// compile makes a principal's grant of its record.
func (p *policy) compile(record Record[*storev1.Principal]) *Grant {
	v := record.Value
	g := &Grant{
		universe: p.universe, name: record.Name, covered: p.universe.compile(v.GetPermissions()),
		tenant: v.GetTenant(), limit: p.otherwise, roles: v.GetRoles(),
		parts: make([]part, 0, 1+len(v.GetRoles())),
	}
	g.parts = append(g.parts, part{permissions: v.GetPermissions()})
	limited := false
	for _, name := range v.GetRoles() {
		role := p.role(name)
		if role == nil {
			continue
		}
		g.covered.add(role.covered)
		g.parts = append(g.parts, part{role: name, permissions: role.record.Value.GetPermissions()})
		if l := role.record.Value.GetLimit(); l != nil {
			if r := rateOf(l, p.otherwise); !limited || r.above(g.limit) {
				g.limit, limited = r, true
			}
		}
	}
	if l := v.GetLimit(); l != nil {
		g.limit = rateOf(l, p.otherwise)
	}
	g.confine()
	return g
}

// confine takes away what a confined principal must not use.
func (g *Grant) confine() {
	if g.tenant != "" {
		g.covered.remove(g.universe.shared)
	}
}

// with gives the grant with more permissions, such as a token's.
func (g *Grant) with(name string, permissions []string) *Grant {
	more := *g
	more.name = name
	more.covered = g.universe.compile(permissions)
	more.covered.add(g.covered)
	more.parts = append([]part{{permissions: permissions}}, g.parts...)
	more.confine()
	return &more
}

// role gives a role, compiled; nil where there is none of that name.
func (p *policy) role(name string) *compiledRole {
	if found, ok := p.roles.Load(name); ok {
		return found.(*compiledRole)
	}
	record, ok := p.records.role(name)
	if !ok {
		return nil
	}
	role, _ := p.roles.LoadOrStore(name, &compiledRole{record: record, covered: p.universe.compile(record.Value.GetPermissions())})
	return role.(*compiledRole)
}

// table holds grants by name. Reading it takes no lock and no memory; a name
// that is put twice stays as it was first. It never holds more than it was made
// for, since only who has a record is put.
type table struct {
	seed  maphash.Seed
	slots []atomic.Pointer[Grant]
}

// newTable makes a table for so many names, half of it empty at the least.
func newTable(names int) table {
	size := 8
	for size < 2*names {
		size *= 2
	}
	return table{seed: maphash.MakeSeed(), slots: make([]atomic.Pointer[Grant], size)}
}

// get gives the grant of that name, nil where there is none.
func (t *table) get(name string) *Grant {
	mask := uint64(len(t.slots) - 1)
	for at := maphash.String(t.seed, name) & mask; ; at = (at + 1) & mask {
		if g := t.slots[at].Load(); g == nil || g.name == name {
			return g
		}
	}
}

// put keeps a grant by its name, and gives the one that is kept.
func (t *table) put(g *Grant) *Grant {
	mask := uint64(len(t.slots) - 1)
	for at := maphash.String(t.seed, g.name) & mask; ; at = (at + 1) & mask {
		if t.slots[at].CompareAndSwap(nil, g) {
			return g
		}
		if kept := t.slots[at].Load(); kept.name == g.name {
			return kept
		}
	}
}
