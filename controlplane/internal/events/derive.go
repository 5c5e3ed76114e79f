package events

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// perChange is how many facts one change may have: where a later version derives
// more of a record, the cursors of all other facts stay what they are.
const perChange = 16

// derivation is the deriving of the facts of one revision.
type derivation struct {
	revision store.Revision
	facts    []*Fact
	// index is that of the next fact.
	index int
	// causes are the operations that this revision changed, by what they hold.
	causes map[string]cause
}

// cause is the operation behind a change, and who may know of it.
type cause struct {
	operation string
	owner     Owner
}

// told is what a rule says of a fact.
type told struct {
	kind string
	// at is when, as far as the record tells.
	at    *timestamppb.Timestamp
	owner Owner
	// about are its resources, the subject first; empty ones are left out.
	about   []string
	message string
	why, by string
	details map[string]string
}

// derive gives the facts of a revision, in their order, but for who leads: that
// no single change tells.
func derive(r store.Revision) []*Fact {
	rules := rules()
	d := &derivation{revision: r, causes: causesOf(r)}
	for i, change := range r.Changes {
		if rule, ok := rules[change.Collection]; ok {
			d.index = i*perChange + 1
			rule(d, change)
		}
	}
	return d.facts
}

// tell adds a fact.
func (d *derivation) tell(t told) {
	event := &debvisorv1.Event{
		Revision: d.revision.Number, Time: timestamp(t.at), Kind: t.kind, Severity: kinds()[t.kind].Severity, Message: t.message,
		Resources: slices.DeleteFunc(t.about, func(r string) bool { return strings.HasSuffix(r, "/") }), Details: map[string]string{},
	}
	for key, value := range t.details {
		if value != "" {
			event.Details[key] = value
		}
	}
	fact := &Fact{Cursor: Cursor{d.revision.Number, d.index}, Event: event, Owner: t.owner, Why: t.why, By: t.by}
	for _, resource := range event.GetResources() {
		if c, ok := d.causes[resource]; ok {
			event.OperationId, fact.Operation = c.operation, c.owner
			break
		}
	}
	event.Cursor = fact.Cursor.String()
	d.facts = append(d.facts, fact)
	d.index++
}

// causesOf gives the operations that a revision changed, by their resources.
// What of a revision's holds began or ended tells of others, whose owner is not
// known then.
func causesOf(r store.Revision) map[string]cause {
	all := map[string]cause{}
	for _, change := range r.Changes {
		if change.Collection != "inuse" {
			continue
		}
		id := string(change.Is)
		if !change.Has {
			id = string(change.Was)
		}
		all[change.ID] = cause{operation: id}
	}
	for _, change := range r.Changes {
		if change.Collection != "operations" || !change.Has {
			continue
		}
		op := &storev1.Operation{}
		if proto.Unmarshal(change.Is, op) != nil {
			continue
		}
		c := cause{op.GetId(), Owner{Tenant: op.GetTenant()}}
		all["operation/"+op.GetId()] = c
		for _, resource := range op.GetResources() {
			all[resource] = c
			// An evacuation holds the node that it cordons by another name.
			if node, ok := strings.CutPrefix(resource, "evacuation/"); ok {
				all["node/"+node] = c
			}
		}
	}
	return all
}

// rule derives the facts of one change.
type rule func(d *derivation, change store.Changed)

// message decodes the records of a collection for a rule; what cannot be decoded
// is as if it were not there. Neither is ever nil: had and has tell.
func message[M any, P interface {
	*M
	proto.Message
}](of func(d *derivation, c store.Changed, was, is P),
) rule {
	return func(d *derivation, c store.Changed) {
		was, is := P(new(M)), P(new(M))
		if c.Had && proto.Unmarshal(c.Was, was) != nil {
			was, c.Had = P(new(M)), false
		}
		if c.Has && proto.Unmarshal(c.Is, is) != nil {
			return
		}
		of(d, c, was, is)
	}
}

// rules are the collections that facts are derived of.
func rules() map[string]rule {
	return map[string]rule{
		"nodes":         message(nodeFacts),
		"nodestatus":    message(statusFacts),
		"zfs":           message(zfsFacts),
		"vms":           message(vmFacts),
		"operations":    message(operationFacts),
		"replication":   message(replicationFacts),
		"lostcopies":    message(lostCopyFacts),
		"policies":      policyFacts,
		"replicas":      message(replicaFacts),
		"replicastatus": message(replicaStatusFacts),
		"certificates":  message(certificateFacts),
		"revoked":       revokedFacts,
		"ca":            message(caFacts),
		"restore":       message(restoreFacts),
		"lastbackup":    message(backupFacts),
		"jointokens":    message(tokenFacts),
		"principals":    accessFacts("principal", "principal"),
		"roles":         accessFacts("role", "role"),
		"tenants":       accessFacts("tenant", "tenant"),
		"apikeys":       accessFacts("key", "API key"),
	}
}

// timestamp is the API's form of a moment; nil for none.
func timestamp(t *timestamppb.Timestamp) *debvisorv1.Timestamp {
	if t == nil {
		return nil
	}
	return &debvisorv1.Timestamp{Seconds: t.GetSeconds(), Nanos: t.GetNanos()}
}

// appeared tells whether a moment was noted by a change.
func appeared(was, is *timestamppb.Timestamp) bool {
	return is != nil && (was == nil || !was.AsTime().Equal(is.AsTime()))
}

// word is an enum's value in lower case, without its type.
func word(value fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(value.String(), prefix), "_", "-"))
}
