package events

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// What follows is the control plane's own and about who may do what: nobody's
// whom a tenant confines.

// replicaFacts are those of a replica's membership.
func replicaFacts(d *derivation, c store.Changed, was, is *storev1.Replica) {
	about := []string{"replica/" + c.ID}
	switch {
	case !c.Has:
		d.tell(told{kind: "replica.removed", about: about, message: fmt.Sprintf("replica %s was removed", c.ID)})
	case !c.Had:
		d.tell(told{kind: "replica.joined", about: about, message: fmt.Sprintf("replica %s has joined", c.ID), details: map[string]string{"version": is.GetVersion()}})
	case was.GetVersion() != is.GetVersion():
		d.tell(told{
			kind: "replica.version", about: about, message: fmt.Sprintf("replica %s is another version", c.ID),
			details: map[string]string{"from": was.GetVersion(), "to": is.GetVersion()},
		})
	}
}

// replicaStatusFacts are those of a replica's readiness.
func replicaStatusFacts(d *derivation, c store.Changed, was, is *storev1.ReplicaStatus) {
	if !c.Has || c.Had && was.GetReady() == is.GetReady() {
		return
	}
	t := told{kind: "replica.ready", at: is.GetAt(), about: []string{"replica/" + c.ID}, message: fmt.Sprintf("replica %s is ready", c.ID)}
	if !is.GetReady() {
		t.kind, t.message, t.why = "replica.not-ready", fmt.Sprintf("replica %s is not ready", c.ID), strings.Join(is.GetReasons(), "; ")
	}
	d.tell(t)
}

// certificateFacts tell of a certificate's issue; that its record is swept away is
// no fact.
func certificateFacts(d *derivation, c store.Changed, _, is *storev1.Certificate) {
	if !c.Has || c.Had {
		return
	}
	holder := word(debvisorv1.CertificateHolder(is.GetHolder()), "CERTIFICATE_HOLDER_")
	d.tell(told{
		kind: "certificate.issued", at: is.GetIssuedAt(), about: []string{"certificate/" + c.ID}, by: is.GetIssuedBy(),
		message: fmt.Sprintf("a certificate was issued for %s %s", holder, is.GetName()), details: map[string]string{"holder": holder, "name": is.GetName()},
	})
}

// revokedFacts tell of a certificate's revocation.
func revokedFacts(d *derivation, c store.Changed) {
	if c.Has && !c.Had {
		d.tell(told{kind: "certificate.revoked", about: []string{"certificate/" + c.ID}, message: fmt.Sprintf("certificate %s was revoked", c.ID)})
	}
}

// caFacts are the steps of an exchange of the cluster's CA.
func caFacts(d *derivation, c store.Changed, was, is *storev1.CARotation) {
	from, to := debvisorv1.CAPhase(was.GetPhase()), debvisorv1.CAPhase(is.GetPhase())
	if !c.Has || from == to {
		return
	}
	if from == debvisorv1.CAPhase_CA_PHASE_UNSPECIFIED {
		from = debvisorv1.CAPhase_CA_PHASE_STABLE
	}
	if from == to {
		return
	}
	now := word(to, "CA_PHASE_")
	d.tell(told{
		kind: "ca.phase", at: is.GetPhaseSince(), about: []string{"ca"}, by: is.GetChangedBy(),
		message: "the exchange of the cluster's CA is " + now, details: map[string]string{"from": word(from, "CA_PHASE_"), "to": now},
	})
}

// restoreFacts are those of a restore from a backup.
func restoreFacts(d *derivation, c store.Changed, was, is *storev1.Restore) {
	if !c.Has {
		return
	}
	about := []string{"restore"}
	again := is.GetEpoch() != was.GetEpoch()
	if again {
		was = &storev1.Restore{}
		d.tell(told{
			kind: "restore.begun", at: is.GetRestoredAt(), about: about, message: "the cluster was restored from a backup",
			details: map[string]string{"epoch": number(is.GetEpoch()), "backup_revision": fmt.Sprint(is.GetBackupRevision())},
		})
	}
	if appeared(was.GetConfirmedAt(), is.GetConfirmedAt()) {
		d.tell(told{
			kind: "restore.confirmed", at: is.GetConfirmedAt(), about: about, by: is.GetConfirmedBy(), why: is.GetConfirmedReason(),
			message: "the restore was confirmed: agents obey the restored cluster",
		})
	}
	var heard []string
	for _, node := range is.GetHeardNodes() {
		if !slices.Contains(was.GetHeardNodes(), node) {
			heard = append(heard, node)
		}
	}
	if len(heard) > 0 {
		all := make([]string, len(heard))
		for i, node := range heard {
			all[i] = "node/" + node
		}
		d.tell(told{kind: "restore.nodes-heard", about: append(about, all...), message: "what these nodes run was taken over after the restore: " + strings.Join(heard, ", ")})
	}
	if appeared(was.GetReconciledAt(), is.GetReconciledAt()) {
		d.tell(told{kind: "restore.reconciled", at: is.GetReconciledAt(), about: about, message: "the restored records are what the nodes run"})
	}
}

// backupFacts tell of a backup that was taken whole.
func backupFacts(d *derivation, c store.Changed, was, is *storev1.BackupNote) {
	if c.Has && appeared(was.GetAt(), is.GetAt()) {
		d.tell(told{
			kind: "backup.taken", at: is.GetAt(), about: []string{"backup"}, by: is.GetPrincipal(), message: "a backup was taken",
			details: map[string]string{"backup_revision": fmt.Sprint(is.GetRevision()), "bytes": number(is.GetBytes())},
		})
	}
}

// tokenFacts are those of join tokens; that one is swept away is none.
func tokenFacts(d *derivation, c store.Changed, was, is *storev1.JoinToken) {
	if !c.Has {
		return
	}
	kind := word(is.GetKind(), "JOIN_TOKEN_KIND_")
	if !c.Had {
		d.tell(told{
			kind: "token.created", at: is.GetCreatedAt(), about: []string{"token/" + c.ID, "node/" + is.GetNodeId()}, by: is.GetCreatedBy(),
			message: "a join token for a " + kind + " was made",
		})
	}
	if appeared(was.GetUsedAt(), is.GetUsedAt()) {
		d.tell(told{
			kind: "token.used", at: is.GetUsedAt(), about: []string{"token/" + c.ID, "node/" + is.GetUsedByNode()},
			message: "a join token for a " + kind + " was used by " + is.GetUsedByNode(),
		})
	}
}

// accessFacts tell that who may do what has changed, never to what: of a record
// whose content may be a secret the name is all that is told.
func accessFacts(noun, title string) rule {
	return func(d *derivation, c store.Changed) {
		t := told{kind: "access." + noun + "-set", about: []string{noun + "/" + c.ID}, message: title + " " + c.ID + " was set"}
		if !c.Has {
			t.kind, t.message = "access."+noun+"-deleted", title+" "+c.ID+" was deleted"
		}
		d.tell(t)
	}
}

// leaderFact tells who leads after a revision that changed the election; nil where
// that is who led before. Both may be nil.
func leaderFact(r store.Revision, index int, was, is *storev1.Leader, since int64) *Fact {
	d := &derivation{revision: r, index: index}
	if is == nil {
		d.tell(told{
			kind: "leader.lost", about: []string{"replica/" + was.GetName()}, details: map[string]string{"from": was.GetName()},
			message: "nobody leads; it was " + was.GetName(),
		})
	} else {
		d.tell(told{
			kind: "leader.changed", about: []string{"replica/" + is.GetName()}, message: "replica " + is.GetName() + " leads",
			details: map[string]string{"from": was.GetName(), "to": is.GetName(), "term": fmt.Sprint(since)},
		})
	}
	return d.facts[0]
}

// Kinds gives every kind of event there is, in order.
func Kinds() []Kind {
	all := kinds()
	out := make([]Kind, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		kind := all[name]
		kind.Name = name
		out = append(out, kind)
	}
	return out
}
