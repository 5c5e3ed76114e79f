package controlplane

import (
	"github.com/debvisor/debvisor/controlplane/internal/members"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// trust tells agents which CAs this replica trusts.
type trust struct{ member *members.Member }

// Bundle is what they are to trust, and which CA their certificates are to be of.
func (t trust) Bundle() *agentv1.TrustBundle {
	_, signing := t.member.Trust()
	return &agentv1.TrustBundle{Ca: t.member.Ring().Bundle(), SigningCa: signing}
}

// Changed is closed when that has changed.
func (t trust) Changed() <-chan struct{} { return t.member.Changed() }
