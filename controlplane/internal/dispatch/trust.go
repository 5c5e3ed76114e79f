package dispatch

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// nextBundle is what the agent is to be told to trust; nil: it knows. The first
// time it is told whatever it is.
func (s *session) nextBundle(first bool) *agentv1.TrustBundle {
	if s.leader.cfg.Trust == nil {
		return nil
	}
	now := s.leader.cfg.Trust.Bundle()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !first && (s.trust == nil || proto.Equal(now, s.bundle)) {
		return nil // it would not understand, or has been told
	}
	s.bundle = now
	return now
}

// tellTrust tells the agent what to trust, where that has changed.
func (s *session) tellTrust() {
	if b := s.nextBundle(false); b != nil {
		s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_TrustBundle{TrustBundle: b}})
	}
}

// hearTrust notes what the agent trusts. Where that is not what it was told, a
// replica that was behind has told it otherwise meanwhile: it is told again.
func (s *session) hearTrust(t *agentv1.Trust) {
	s.mu.Lock()
	s.trust = t
	list, err := certs.ParseCertificates(s.bundle.GetCa())
	if err == nil && !asTold(t, certs.Fingerprints(list)) {
		s.bundle = nil
	}
	s.mu.Unlock()
	s.tellTrust()
}

// asTold tells whether the agent trusts the CAs that it was told of and, besides,
// the one of its own certificate at most.
func asTold(t *agentv1.Trust, told []string) bool {
	lacks := func(p string) bool { return !slices.Contains(t.GetCas(), p) }
	extra := func(p string) bool { return p != t.GetIssuer() && !slices.Contains(told, p) }
	return !slices.ContainsFunc(told, lacks) && !slices.ContainsFunc(t.GetCas(), extra)
}
