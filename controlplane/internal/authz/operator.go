package authz

import (
	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// LeavesOperator refuses a change after which no principal that no tenant
// confines would have all permissions of the built-in role operator: nobody
// could then mend it. Founders without a record and the file's principals
// count; what tokens bring does not. Where there is none before the change
// either, any may be made. The error is FailedPrecondition.
//
// It speaks of the snapshot that it is given: what makes it hold when two such
// changes are made at once is that each requires the snapshot's AccessTurn.
func (a *Authorizer) LeavesOperator(s *cluster.Snapshot, change Change) error {
	next := a.records(s)
	next.change = change
	return a.leavesOperator(s, next, "this change")
}

// AcceptsFile refuses an access file for the same reason. It is for a file that
// takes the place of another.
func (a *Authorizer) AcceptsFile(s *cluster.Snapshot, file *accessfile.Policy) error {
	next := a.records(s)
	next.file = file
	return a.leavesOperator(s, next, "this access file")
}

func (a *Authorizer) leavesOperator(s *cluster.Snapshot, next records, what string) error {
	if a.hasOperator(next) || !a.hasOperator(a.records(s)) {
		return nil
	}
	return errdefs.New(errdefs.FailedPrecondition, "NO_OPERATOR_LEFT",
		"%s would leave no principal with all permissions of the role operator and without a tenant: make another one operator first", what)
}

// hasOperator looks for one who could mend anything.
func (a *Authorizer) hasOperator(r records) bool {
	p := newPolicy(a.universe, stamp{}, r, rate{unlimited: true})
	for _, founder := range r.founders {
		if p.isOperator(founder) {
			return true
		}
	}
	for name := range r.file.Principals {
		if p.isOperator(name) {
			return true
		}
	}
	for name := range r.change.Principals {
		if p.isOperator(name) {
			return true
		}
	}
	for name := range r.principals {
		if p.isOperator(name) {
			return true
		}
	}
	return false
}

func (p *policy) isOperator(name string) bool {
	if identity.CheckPrincipal(name) != nil {
		return false // a record that somebody put there by hand, and nobody's
	}
	record, ok := p.records.principal(name)
	if !ok {
		record, ok = p.records.founder(name)
	}
	// One that a tenant confines lacks what belongs to all.
	return ok && p.compile(record).covered.covers(p.universe.operator)
}
