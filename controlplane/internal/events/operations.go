package events

import (
	"fmt"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// operationFacts are those of an operation's way; that it is forgotten in the end
// is none.
func operationFacts(d *derivation, c store.Changed, was, is *storev1.Operation) {
	if !c.Has {
		return
	}
	tell := func(t told) {
		t.owner, t.about = Owner{Tenant: is.GetTenant()}, append([]string{"operation/" + c.ID}, is.GetResources()...)
		more := map[string]string{"kind": is.GetKind()}
		for key, value := range t.details {
			more[key] = value
		}
		t.message, t.details = what(is)+" "+t.message, more
		d.tell(t)
	}
	from, to := was.GetState(), is.GetState()
	switch {
	case from == to:
	case to == task.OpPending:
		tell(told{kind: "operation.submitted", at: is.GetCreatedAt(), message: "was asked for", by: is.GetPrincipal()})
	case to == task.OpRunning:
		tell(told{kind: "operation.started", at: is.GetStartedAt(), message: "has begun", by: is.GetPrincipal()})
	case to == task.OpSucceeded:
		tell(told{kind: "operation.succeeded", at: is.GetEndedAt(), message: "has succeeded", by: is.GetPrincipal()})
	case to == task.OpFailed:
		tell(told{
			kind: "operation.failed", at: is.GetEndedAt(), message: fmt.Sprintf("has failed (%s)", is.GetErrorCode()),
			why: is.GetErrorMessage(), by: is.GetPrincipal(), details: map[string]string{"error": is.GetErrorCode()},
		})
	case to == task.OpCancelled:
		tell(told{kind: "operation.cancelled", at: is.GetEndedAt(), message: "was cancelled", by: is.GetPrincipal()})
	}
	if is.GetCancelRequested() && !was.GetCancelRequested() && !task.OpEnded(to) {
		tell(told{kind: "operation.cancel-requested", message: "is to be cancelled"})
	}
}

// what is an operation in words: its kind and what it is about.
func what(op *storev1.Operation) string {
	subject := ""
	switch {
	case op.GetMigrate() != nil:
		subject = "VM " + op.GetMigrate().GetVmName()
		if target := op.GetMigrate().GetTarget(); target != "" {
			subject += " from " + op.GetMigrate().GetSource() + " to " + target
		}
	case op.GetFailover() != nil:
		subject = "VM " + op.GetFailover().GetVmName() + " from " + op.GetFailover().GetSource() + " to " + op.GetFailover().GetTarget()
	case op.GetPower() != nil:
		subject = "VM " + op.GetPower().GetVmName() + " on " + op.GetPower().GetNode()
	case op.GetEvacuate().GetNode() != "":
		subject = "node " + op.GetEvacuate().GetNode()
	case op.GetReplicate() != nil:
		subject = "job " + op.GetReplicate().GetJobId()
	case len(op.GetResources()) > 0:
		subject = op.GetResources()[0]
	}
	if subject == "" {
		return op.GetKind()
	}
	return op.GetKind() + " of " + subject
}
