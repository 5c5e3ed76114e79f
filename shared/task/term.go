// Package task holds what leader and agent must agree on about work: terms,
// the states of operations and tasks, and the table of allowed transitions.
package task

import (
	"fmt"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// Term orders leaders: by epoch (a restore from backup begins a new one), then
// by the create revision of the leader's election key.
type Term struct {
	Epoch    uint64
	Revision int64
}

// Less tells whether t is older than u.
func (t Term) Less(u Term) bool {
	if t.Epoch != u.Epoch {
		return t.Epoch < u.Epoch
	}
	return t.Revision < u.Revision
}

// IsZero tells whether t is no leader's term.
func (t Term) IsZero() bool { return t == Term{} }

// String is for logs: epoch.revision.
func (t Term) String() string { return fmt.Sprintf("%d.%d", t.Epoch, t.Revision) }

// Wire is the term as it is sent to agents.
func (t Term) Wire() *agentv1.Term {
	return &agentv1.Term{Epoch: t.Epoch, Revision: t.Revision}
}

// Record is the term as it is kept in etcd.
func (t Term) Record() *storev1.Term {
	return &storev1.Term{Epoch: t.Epoch, Revision: t.Revision}
}

// TermOf reads a term from either form; an absent one is the zero Term.
func TermOf(t interface {
	GetEpoch() uint64
	GetRevision() int64
},
) Term {
	return Term{Epoch: t.GetEpoch(), Revision: t.GetRevision()}
}
