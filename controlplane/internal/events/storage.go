package events

import (
	"fmt"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// replicationFacts are those of a replication job and its runs.
func replicationFacts(d *derivation, c store.Changed, was, is *storev1.ReplicationJob) {
	job := is
	if !c.Has {
		job = was
	}
	tell := func(t told) {
		t.owner = Owner{Tenant: job.GetTenant()}
		t.about = []string{"replication/" + c.ID, "node/" + job.GetSource(), "node/" + job.GetTarget()}
		t.details = map[string]string{
			"dataset": job.GetDataset(), "target_dataset": job.GetTargetDataset(), "from": job.GetSource(), "to": job.GetTarget(), "error": t.details["error"],
		}
		t.message = fmt.Sprintf("replication %s of %s from %s to %s %s", c.ID, job.GetDataset(), job.GetSource(), job.GetTarget(), t.message)
		d.tell(t)
	}
	switch {
	case !c.Has:
		tell(told{kind: "replication.deleted", message: "was deleted"})
		return
	case !c.Had:
		tell(told{kind: "replication.created", at: is.GetCreatedAt(), message: "was set up", by: is.GetCreatedBy()})
	}
	if appeared(was.GetLastEnd(), is.GetLastEnd()) {
		switch {
		case is.GetLastErrorCode() != "":
			tell(told{
				kind: "replication.failed", at: is.GetLastEnd(), message: fmt.Sprintf("has failed (%s)", is.GetLastErrorCode()),
				why: is.GetLastError(), details: map[string]string{"error": is.GetLastErrorCode()},
			})
		case appeared(was.GetLastSuccess(), is.GetLastSuccess()):
			tell(told{kind: "replication.succeeded", at: is.GetLastEnd(), message: "has brought the copy up to date"})
		}
	}
	switch {
	case is.GetRpoMissedSince() != nil && was.GetRpoMissedSince() == nil:
		tell(told{kind: "replication.rpo-missed", at: is.GetRpoMissedSince(), message: "is later than its RPO allows"})
	case was.GetRpoMissedSince() != nil && is.GetRpoMissedSince() == nil:
		tell(told{kind: "replication.recovered", message: "keeps its RPO again"})
	}
}

// lostCopyFacts are those of a copy of a VM that was brought back elsewhere.
func lostCopyFacts(d *derivation, c store.Changed, was, is *storev1.LostCopy) {
	if !c.Has {
		return
	}
	tell := func(kind, message, why string) {
		t := told{
			kind: kind, owner: Owner{Tenant: is.GetTenant()}, message: message, why: why,
			about:   []string{"vm/" + is.GetVmUuid(), "node/" + is.GetNode(), "node/" + is.GetBroughtBackOn()},
			details: map[string]string{"from": is.GetNode(), "to": is.GetBroughtBackOn()},
		}
		if !c.Had {
			t.at = is.GetAt()
		}
		d.tell(t)
	}
	name, node := is.GetVmName(), is.GetNode()
	if !c.Had {
		tell("vm.brought-back", fmt.Sprintf("VM %s was brought back on %s; %s has lost it", name, is.GetBroughtBackOn(), node), strings.Join(is.GetProof(), "; "))
	}
	if was.GetState() == is.GetState() {
		return
	}
	switch is.GetState() {
	case storev1.LostCopyState_LOST_COPY_STATE_DISCARDING:
		tell("vm.lost-copy-discarding", fmt.Sprintf("node %s is back: its former copy of VM %s is being destroyed", node, name), "")
	case storev1.LostCopyState_LOST_COPY_STATE_GONE:
		tell("vm.lost-copy-gone", fmt.Sprintf("the former copy of VM %s on %s is gone", name, node), is.GetLastError())
	}
}

// policyFacts are those of retention and replication policies, which only callers
// whom no tenant confines may list.
func policyFacts(d *derivation, c store.Changed) {
	kind, name, ok := strings.Cut(c.ID, "/")
	var was, is policy
	switch kind {
	case "retention":
		was, is = policyOf(c.Was, &storev1.RetentionPolicy{}), policyOf(c.Is, &storev1.RetentionPolicy{})
	case "replication":
		was, is = policyOf(c.Was, &storev1.ReplicationPolicy{}), policyOf(c.Is, &storev1.ReplicationPolicy{})
	default:
		return
	}
	if !ok || c.Has && is == nil {
		return
	}
	title := kind + " policy " + name
	tell := func(t told) {
		t.about = append([]string{"policy/" + c.ID}, t.about...)
		d.tell(t)
	}
	switch {
	case !c.Has:
		tell(told{kind: "policy.deleted", message: title + " was deleted"})
		return
	case !c.Had || was == nil:
		tell(told{kind: "policy.set", at: is.GetChangedAt(), by: is.GetChangedBy(), message: title + " was made"})
		return
	case appeared(was.GetChangedAt(), is.GetChangedAt()):
		tell(told{kind: "policy.set", at: is.GetChangedAt(), by: is.GetChangedBy(), message: title + " was changed"})
	}
	before, now := was.GetRun(), is.GetRun()
	if now.GetFired() > before.GetFired() {
		var began []string
		for _, id := range now.GetLastOperations() {
			began = append(began, "operation/"+id)
		}
		tell(told{kind: "policy.ran", at: now.GetLastFired(), about: began[:min(len(began), 16)], message: title + " was due and ran"})
	}
	if now.GetSkipped() > before.GetSkipped() {
		tell(told{kind: "policy.skipped", at: now.GetLastDue(), message: title + " was due and was skipped", why: now.GetLastSkip()})
	}
}
