package pki

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// laggard is one who keeps an exchange from going on.
type laggard struct {
	Holder
	why string
}

// unsealed are the replicas to which no key can be sealed.
func unsealed(s *cluster.Snapshot) (list []laggard) {
	for _, name := range slices.Sorted(maps.Keys(s.Replicas)) {
		if len(s.Replicas[name].Value.GetSealKey()) == 0 {
			list = append(list, laggard{Holder{Replica, name}, "it runs a version that cannot exchange the CA, or has never told its seal key: upgrade and start it"})
		}
	}
	return list
}

// untrusting are those who do not yet say that they trust both CAs.
func untrusting(s *cluster.Snapshot, prints []string) (list []laggard) {
	lacks := func(trusted []string) string {
		for _, p := range prints {
			if !slices.Contains(trusted, p) {
				return p
			}
		}
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(s.Replicas)) {
		said := s.ReplicaStatuses[name].Value
		if p := lacks(said.GetTrustedCas()); p != "" {
			list = append(list, laggard{Holder{Replica, name}, "it does not say yet that it trusts the CA " + short(p) + heard(said)})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		if !speaks(s, id) {
			continue
		}
		switch status := s.Statuses[id].Value; {
		case len(status.GetTrustedCas()) == 0:
			list = append(list, laggard{Holder{Agent, id}, "its agent has not said which CAs it trusts: it is off, or of a version that does not say"})
		case lacks(status.GetTrustedCas()) != "":
			list = append(list, laggard{Holder{Agent, id}, "its agent does not trust the CA " + short(lacks(status.GetTrustedCas())) + " yet"})
		}
	}
	return list
}

// speaks tells whether a node has an agent that may speak for it.
func speaks(s *cluster.Snapshot, node string) bool {
	_, revoked := s.Revoked[s.Statuses[node].Value.GetCertificateSerial()]
	return s.Nodes[node].Value.GetEnrolledAt() != nil && !revoked
}

func heard(said *storev1.ReplicaStatus) string {
	if said == nil {
		return " (it has never said how it is)"
	}
	return " (it was last heard at " + said.GetAt().AsTime().Format(time.RFC3339) + ")"
}

// dependent are those who still show certificates of a CA, or would.
func dependent(s *cluster.Snapshot, gone, stays string, now time.Time) (list []laggard) {
	a := newAccount(s, now)
	for _, name := range slices.Sorted(maps.Keys(s.Replicas)) {
		if said := s.ReplicaStatuses[name].Value; said.GetSigningCa() != stays {
			list = append(list, laggard{Holder{Replica, name}, "it does not say yet that it signs with the CA " + short(stays) + heard(said)})
		}
	}
	byName := map[Holder]int{}
	for _, e := range s.Certificates {
		if h := holderOf(e.Value); e.Value.GetCa() == gone && a.live(e) {
			byName[h]++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		h, status := Holder{Agent, id}, s.Statuses[id].Value
		if !speaks(s, id) || status.GetCertificateCa() == stays {
			continue // what it shows counts, not what it was given
		}
		if status.GetCertificateCa() == gone || status.GetCertificateCa() == "" && byName[h] > 0 {
			list = append(list, laggard{h, "its agent's certificate is of the CA " + short(gone)})
		}
	}
	for _, h := range slices.SortedFunc(maps.Keys(byName), func(x, y Holder) int { return strings.Compare(x.Name, y.Name) }) {
		if h.Kind == Principal {
			list = append(list, laggard{h, fmt.Sprintf("it has %d live certificates of the CA %s: issue new ones, or revoke them", byName[h], short(gone))})
		}
	}
	return list
}

// short is how a fingerprint is told in a sentence.
func short(fingerprint string) string { return fingerprint[:min(len(fingerprint), 12)] }

// waiting are those who keep the exchange from its next phase.
func waiting(s *cluster.Snapshot, record *storev1.CARotation, now time.Time) []laggard {
	current, next := fingerprint(record.GetCurrent()), fingerprint(record.GetNext())
	switch phaseOf(record) {
	case Trusting:
		return untrusting(s, []string{current, next})
	case Signing:
		return dependent(s, current, next, now)
	default:
		return unsealed(s)
	}
}

// Status tells how far an exchange of the CA is; ring is that of the replica
// that tells.
func Status(s *cluster.Snapshot, ring *certs.Ring, now time.Time) *debvisorv1.CAStatus {
	record := recordOf(s, ring)
	m := &debvisorv1.CAStatus{
		Phase: phaseOf(record), Current: fingerprint(record.GetCurrent()), Next: fingerprint(record.GetNext()),
		Bundle: slices.Concat(record.GetCurrent(), record.GetNext()), PhaseSince: moment(record.GetPhaseSince()),
	}
	if c := one(record.GetCurrent()); c != nil {
		m.CurrentExpiresAt = &debvisorv1.Timestamp{Seconds: c.NotAfter.Unix()}
	}
	if c := one(record.GetNext()); c != nil {
		m.NextExpiresAt = &debvisorv1.Timestamp{Seconds: c.NotAfter.Unix()}
	}
	for _, l := range waiting(s, record, now) {
		m.WaitingFor = append(m.WaitingFor, &debvisorv1.CALaggard{Who: l.String(), Why: l.why})
	}
	return m
}

// recordOf is the CAs' record; before the first exchange what the replica has
// takes its place.
func recordOf(s *cluster.Snapshot, ring *certs.Ring) *storev1.CARotation {
	if s.CA.Value != nil {
		return s.CA.Value
	}
	return &storev1.CARotation{Phase: uint32(Stable), Current: ring.Signing().PEM()}
}
