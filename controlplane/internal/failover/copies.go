package failover

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	awaited    = storev1.LostCopyState_LOST_COPY_STATE_AWAITED
	discarding = storev1.LostCopyState_LOST_COPY_STATE_DISCARDING
	unfencing  = storev1.LostCopyState_LOST_COPY_STATE_UNFENCING
	gone       = storev1.LostCopyState_LOST_COPY_STATE_GONE
)

// keepGone is how long after its failover a copy that is gone is told of, with
// the offer to replicate back.
const keepGone = 30 * 24 * time.Hour

// remains is one lost copy with all that is decided on.
type remains struct {
	moment
	snapshot *cluster.Snapshot
	entry    cluster.Entry[*storev1.LostCopy]
	c        *storev1.LostCopy // a copy of the record: what the step will write
}

// decideCopy gives the next step of a lost copy; nil: there is none yet. It is pure.
func decideCopy(s *cluster.Snapshot, entry cluster.Entry[*storev1.LostCopy], at moment) *step {
	r := &remains{moment: at, snapshot: s, entry: entry, c: proto.CloneOf(entry.Value)}
	_, known := s.Nodes[r.c.GetNode()]
	switch {
	case r.c.GetState() == gone && at.now.Sub(r.c.GetAt().AsTime()) > keepGone:
		st := r.commit(stepForget, "a lost copy is told of no more")
		st.change.Puts, st.change.Deletes = nil, []string{store.LostCopyKey(r.c.GetVmUuid(), r.c.GetNode())}
		return st
	case r.c.GetState() == gone:
		return nil
	case r.c.GetState() == unfencing:
		return r.unfence()
	case !known:
		return r.removed()
	case r.c.GetState() == awaited:
		return r.await()
	case r.c.GetState() == discarding:
		return r.discard()
	}
	return nil
}

// removed ends the waiting for a node that is out of the cluster: its copy may run
// for all that is known, so that its entries stay on the blocklist.
func (r *remains) removed() *step {
	r.c.State = gone
	r.c.LastError = "node " + r.c.GetNode() + " was removed from the cluster before its copy was destroyed; what is on the blocklist stays there"
	s := r.commit(stepDiscarded, r.c.GetLastError())
	if h := r.read(discardOf(r.c.GetAttempt()), taskDiscard); h != nil && !h.ended() {
		// Whoever gets that name next has not lost the copy.
		s.end(h.entry, &agentv1.TaskOutcome{ErrorCode: codeGone, ErrorMessage: r.c.GetLastError()}, r.now)
	}
	return s
}

// await has the copy destroyed once its node is heard. Whether the node still
// reports it does not matter: only the agent's own look tells.
func (r *remains) await() *step {
	if r.snapshot.Statuses[r.c.GetNode()].Value.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		return nil
	}
	return r.order(discarding, 1)
}

// order writes the task of an attempt to destroy the copy.
func (r *remains) order(state storev1.LostCopyState, attempt uint32) *step {
	vm := r.snapshot.VMs[r.c.GetVmUuid()]
	if vm.Value.GetNode() == r.c.GetNode() {
		// It belongs there, by whatever way: what is there is not lost.
		return r.note("VM " + r.name() + " belongs to " + r.c.GetNode() + " (again): its copy there is left alone")
	}
	r.c.State, r.c.Attempt = state, attempt
	spec := &agentv1.FailoverDiscard{VmUuid: r.c.GetVmUuid(), VmName: r.c.GetVmName(), Generation: r.c.GetGeneration()}
	for _, b := range r.c.GetDatasets() {
		former := &agentv1.FailoverFormerSource{}
		if proto.Unmarshal(b, former) == nil {
			spec.Datasets = append(spec.Datasets, former)
		}
	}
	s := r.commit(stepDiscard, fmt.Sprintf("the copy of %s on %s is being destroyed, attempt %d", r.name(), r.c.GetNode(), attempt))
	s.change.Require = append(s.change.Require, store.Unchanged(store.VMKey(r.c.GetVmUuid()), vm.ModRevision))
	s.adds(r.task(discardOf(attempt), taskDiscard, r.c.GetNode(), &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_FailoverDiscard{FailoverDiscard: spec}}))
	return s
}

// discard is the next step while the copy is being destroyed.
func (r *remains) discard() *step {
	h := r.read(discardOf(r.c.GetAttempt()), taskDiscard)
	switch {
	case h != nil && !h.ended():
		return nil
	case h != nil && h.succeeded():
		return r.discarded(h)
	case h != nil && r.now.Before(h.task.GetEndedAt().AsTime().Add(pause(r.c.GetAttempt()))):
		return r.note(h.why())
	case !heard(r.snapshot, r.c.GetNode()):
		return nil
	}
	if h != nil {
		r.c.LastError = h.why()
	}
	return r.order(discarding, r.c.GetAttempt()+1) // also where its task was forgotten with the operation
}

// discarded goes on once the copy is destroyed.
func (r *remains) discarded(h *half) *step {
	what := "was not running any more"
	if h.outcome.GetFailover().GetWasRunning() {
		what = "still had its QEMU"
	}
	r.c.LastError, r.c.Attempt = "", 0
	r.c.State = unfencing
	switch {
	case len(r.blocklisted()) == 0:
		r.c.State = gone
	case r.snapshot.Statuses[r.c.GetNode()].Value.GetJournalId() != r.c.GetJournalId():
		// It may be another machine of that name, and the copy be alive on the former.
		r.c.State = gone
		r.c.LastError = "another installation of node " + r.c.GetNode() + " has answered than the one that was lost; what is on the blocklist stays there"
	}
	return r.commit(stepDiscarded, fmt.Sprintf("the copy of %s on %s %s, and is destroyed", r.name(), r.c.GetNode(), what))
}

func (r *remains) blocklisted() []string {
	evidence := &agentv1.FenceEvidence{}
	if proto.Unmarshal(r.c.GetEvidence(), evidence) != nil {
		return nil
	}
	return evidence.GetBlocklisted()
}

// unfence takes the copy's entries off the blocklist, on any node that sees the
// cluster: nothing writes by those addresses any more.
func (r *remains) unfence() *step {
	var h *half
	if r.c.GetAttempt() > 0 {
		h = r.read(unfenceOf(r.c.GetAttempt()), taskUnfence)
	}
	lost := h != nil && !h.ended() && !heard(r.snapshot, r.c.GetUnfenceNode())
	switch {
	case h != nil && !h.ended() && !lost:
		return nil
	case h != nil && h.succeeded():
		r.c.State, r.c.LastError = gone, ""
		return r.commit(stepDiscarded, fmt.Sprintf("nothing of the copy of %s that %s had is left on the blocklist", r.name(), r.c.GetNode()))
	case h != nil && !lost && r.now.Before(h.task.GetEndedAt().AsTime().Add(pause(r.c.GetAttempt()))):
		return r.note(h.why())
	}
	nodes, why := r.snapshot.CephNodes(r.c.GetFsid())
	if len(nodes) == 0 {
		return r.note(why)
	}
	if slices.Contains(nodes, r.c.GetBroughtBackOn()) && !lost {
		nodes = []string{r.c.GetBroughtBackOn()}
	}
	r.c.Attempt, r.c.UnfenceNode = r.c.GetAttempt()+1, nodes[0]
	s := r.commit(stepUnfence, fmt.Sprintf("entries of the copy of %s that %s had are taken off the blocklist, on %s", r.name(), r.c.GetNode(), nodes[0]))
	s.adds(r.task(unfenceOf(r.c.GetAttempt()), taskUnfence, nodes[0], unfenceSpec(r.c.GetFsid(), r.blocklisted())))
	if lost {
		added := s.task
		s.end(h.entry, &agentv1.TaskOutcome{ErrorCode: codeLost, ErrorMessage: "another node does it: " + h.task.GetNode() + " was not heard any more"}, r.now)
		s.task = added
	}
	return s
}

func discardOf(attempt uint32) string { return "discard-" + strconv.FormatUint(uint64(attempt), 10) }

func unfenceOf(attempt uint32) string { return "unfence-" + strconv.FormatUint(uint64(attempt), 10) }

func (r *remains) read(attempt, kind string) *half {
	return readTask(r.snapshot, r.c.GetOperation()+"/"+attempt+"/"+kind)
}

func (r *remains) task(attempt, kind, node string, spec *agentv1.TaskSpec) *storev1.Task {
	return &storev1.Task{
		Id: r.c.GetOperation() + "/" + attempt + "/" + kind, OperationId: r.c.GetOperation(), Node: node, Resource: "vm/" + r.c.GetVmUuid(),
		State: task.Recorded(task.Assigned), Term: r.term.Record(), Spec: encoded(spec), CreatedAt: timestamppb.New(r.now),
		Traceparent: obs.Below(r.snapshot.Operations[r.c.GetOperation()].Value.GetTraceparent(), r.c.GetOperation()),
	}
}

// commit makes the transaction that writes the record as it now stands in r.
func (r *remains) commit(name stepName, log string) *step {
	key := store.LostCopyKey(r.c.GetVmUuid(), r.c.GetNode())
	return &step{
		name: name, about: r.c.GetVmUuid() + "/" + r.c.GetNode(), log: log, copy: r.c,
		change: store.Change{
			Require: []store.Condition{store.Unchanged(key, r.entry.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, r.c)},
		},
	}
}

// note writes why nothing goes on where that says something new.
func (r *remains) note(why string) *step {
	if r.c.GetLastError() == why {
		return nil
	}
	r.c.LastError, r.c.TriedAt = why, timestamppb.New(r.now)
	return r.commit(stepTried, why)
}

func (r *remains) name() string { return cmp.Or(r.c.GetVmName(), r.c.GetVmUuid()) }
