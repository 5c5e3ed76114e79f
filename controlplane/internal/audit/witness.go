package audit

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// witnessEvery is how often a Witness looks.
const witnessEvery = time.Second

// justNow is how old an ended operation may be that a new term still tells of:
// the leader before may not have.
const justNow = time.Minute

// system is the principal of operations that the cluster orders by itself.
const system = "system"

// Adder takes events (Log).
type Adder interface {
	Add(e *Event) (kept bool)
}

// Witness writes to the leader's audit log what the cluster does by itself, so
// that "who did this?" has an answer there: that it leads, the operations that
// it orders, also those that have ended before it looks, what the schedules of
// storage policies begin, the moves that an evacuation begins, the ends of all
// operations, whoever asked for them, lost copies of VMs, nodes that fall silent and are heard again.
// It tells within a second or two of the record; what is new when a term begins may be told by
// two leaders, rather than by none.
type Witness struct {
	Log     Adder
	Current func() *cluster.Snapshot
	// Term is whose leadership it is, such as "term 1.42".
	Term string

	seen, ended map[string]bool
	liveness    map[string]storev1.NodeLiveness
	copies      map[string]storev1.LostCopyState
}

// Run watches until ctx ends.
func (w *Witness) Run(ctx context.Context) error {
	w.tell("election", "lead", &Event{Reason: "this replica leads, " + w.Term})
	w.seen, w.ended, w.liveness = map[string]bool{}, map[string]bool{}, map[string]storev1.NodeLiveness{}
	w.copies = map[string]storev1.LostCopyState{}
	tick := time.NewTicker(witnessEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		w.look(w.Current(), first)
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.look(w.Current(), false)
			w.tell("election", "leave", &Event{Reason: "this replica no longer leads, " + w.Term})
			return nil
		}
	}
}

// tell writes down what a part of the control plane does.
func (w *Witness) tell(who, what string, e *Event) {
	e.Time, e.Kind, e.Principal, e.Method = time.Now(), Action, system+":"+who, what
	w.Log.Add(e)
}

// look tells what is new in the records.
func (w *Witness) look(s *cluster.Snapshot, first bool) {
	w.operations(s, first)
	w.lostCopies(s, first)
	for id, entry := range s.Statuses {
		was, known := w.liveness[id]
		now := entry.Value.GetLiveness()
		if now == storev1.NodeLiveness_NODE_LIVENESS_SUSPECT {
			now = storev1.NodeLiveness_NODE_LIVENESS_ONLINE // nothing is done about it yet
		}
		w.liveness[id] = now
		if was != now && (known || !first) {
			w.tell("inventory", "node-liveness", &Event{
				Args: "node=" + id, Reason: fmt.Sprintf("node %s was %s and is %s", id, liveness(was), liveness(now)),
			})
		}
	}
	for id := range w.liveness {
		if _, ok := s.Statuses[id]; !ok {
			delete(w.liveness, id)
		}
	}
}

// lostCopies tells what becomes of copies of VMs that were brought back elsewhere.
func (w *Witness) lostCopies(s *cluster.Snapshot, first bool) {
	for id, entry := range s.LostCopies {
		c := entry.Value
		if w.copies[id] == c.GetState() {
			continue
		}
		w.copies[id] = c.GetState()
		if first {
			continue // it was told of, or nobody can tell when it was
		}
		state := strings.ToLower(strings.TrimPrefix(c.GetState().String(), "LOST_COPY_STATE_"))
		w.tell("failover", "lost-copy", &Event{
			Operation: c.GetOperation(), Args: fmt.Sprintf("vm=%s node=%s brought_back_on=%s", c.GetVmName(), c.GetNode(), c.GetBroughtBackOn()),
			Reason: fmt.Sprintf("the copy of %s that %s has lost is %s: %s", c.GetVmName(), c.GetNode(), state, strings.Join(c.GetProof(), "; ")),
		})
	}
	for id := range w.copies {
		if _, ok := s.LostCopies[id]; !ok {
			delete(w.copies, id)
		}
	}
}

// operations tells of the operations that nobody has called for. A quick one may
// be over before it is seen.
func (w *Witness) operations(s *cluster.Snapshot, first bool) {
	for id, entry := range s.Operations {
		op := entry.Value
		if w.seen[id] || op.GetPrincipal() != system && op.GetPrincipal() != systemStorage && op.GetParent() == "" && !scheduled(op) {
			continue
		}
		w.seen[id] = true
		if !first || !task.OpEnded(op.GetState()) || time.Since(op.GetCreatedAt().AsTime()) < justNow {
			w.operation(op)
		}
	}
	w.ends(s, first)
	for _, known := range []map[string]bool{w.seen, w.ended} {
		for id := range known {
			if _, ok := s.Operations[id]; !ok {
				delete(known, id)
			}
		}
	}
}

// ends tells how operations ended. Of one that was over in the moment in which
// it was asked for, the answer's line tells.
func (w *Witness) ends(s *cluster.Snapshot, first bool) {
	for id, entry := range s.Operations {
		op := entry.Value
		if w.ended[id] || !task.OpEnded(op.GetState()) {
			continue
		}
		w.ended[id] = true
		began, end := op.GetCreatedAt().AsTime(), op.GetEndedAt().AsTime()
		if !end.After(began) || first && time.Since(end) >= justNow {
			continue
		}
		w.tell(controller(op), op.GetKind(), &Event{
			TraceID: op.GetTraceId(), Operation: id, Args: arguments(op), Duration: end.Sub(began),
			Code:  strings.TrimPrefix(op.GetState().String(), "OPERATION_STATE_"),
			Error: op.GetErrorCode(), Reason: "the end of what " + op.GetPrincipal() + " asked for",
		})
	}
}

// controller is which part of the leader carries an operation out.
func controller(op *storev1.Operation) string {
	switch {
	case op.GetMigrate() != nil:
		return "migrate"
	case op.GetEvacuate() != nil:
		return "drain"
	case op.GetPower() != nil:
		return "power"
	case op.GetReplicate() != nil:
		return "replication"
	case op.GetFailover() != nil:
		return "failover"
	case op.GetTakeSnapshots() != nil, op.GetRemoveSnapshots() != nil, op.GetCloneImage() != nil, op.GetChangeImage() != nil:
		return "storage"
	}
	return "operations"
}

// scheduled tells whether a policy's time had come: its operations bear the name
// of the call that made the policy, which begins none of these kinds.
func scheduled(op *storev1.Operation) bool {
	switch op.GetMethod() {
	case debvisorv1.StorageService_SetRetentionPolicy_FullMethodName, debvisorv1.StorageService_SetReplicationPolicy_FullMethodName:
		return op.GetTakeSnapshots() != nil || op.GetRemoveSnapshots() != nil || op.GetKind() == "replication.run"
	}
	return false
}

func liveness(l storev1.NodeLiveness) string {
	return strings.ToLower(strings.TrimPrefix(l.String(), "NODE_LIVENESS_"))
}

// operation tells of an operation that nobody has called for.
func (w *Witness) operation(op *storev1.Operation) {
	e := &Event{TraceID: op.GetTraceId(), Operation: op.GetId(), Reason: "ordered by the cluster itself"}
	who := "inventory"
	switch {
	case scheduled(op):
		who = "schedule"
		e.Reason = "a policy's time has come; " + op.GetPrincipal() + " made it so"
	case op.GetPrincipal() == systemStorage:
		who = "storage"
		e.Reason = "a clone that is deep is flattened in the background"
	case op.GetParent() != "":
		who = "drain"
		e.Reason = fmt.Sprintf("a move of %s, which %s began", op.GetParent(), op.GetPrincipal())
	}
	e.Args = arguments(op)
	w.tell(who, op.GetKind(), e)
}

// arguments is what an operation is about.
func arguments(op *storev1.Operation) string {
	switch {
	case op.GetMigrate() != nil:
		return fmt.Sprintf("vm=%s source=%s target=%s", op.GetMigrate().GetVmName(), op.GetMigrate().GetSource(), op.GetMigrate().GetTarget())
	case op.GetPower() != nil:
		return fmt.Sprintf("vm=%s node=%s", op.GetPower().GetVmName(), op.GetPower().GetNode())
	case op.GetFailover() != nil:
		f := op.GetFailover()
		return fmt.Sprintf("vm=%s source=%s target=%s node_is_off=%t data_age=%ds", f.GetVmName(), f.GetSource(), f.GetTarget(), f.GetNodeIsOff(), f.GetDataAgeSeconds())
	case op.GetEvacuate().GetNode() != "":
		return "node=" + op.GetEvacuate().GetNode()
	}
	return ofStorage(op)
}

// mostDatasets is how many datasets of an operation are named.
const mostDatasets = 5

func ofStorage(op *storev1.Operation) string {
	named := func(node string, datasets []string) string {
		text := "node=" + node + " datasets=" + strings.Join(datasets[:min(len(datasets), mostDatasets)], ",")
		if more := len(datasets) - mostDatasets; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		return text
	}
	if text := ofImages(op); text != "" {
		return text
	}
	switch {
	case op.GetTakeSnapshots() != nil:
		return named(op.GetTakeSnapshots().GetNode(), op.GetTakeSnapshots().GetDatasets()) + " name=" + op.GetTakeSnapshots().GetName()
	case op.GetRemoveSnapshots() != nil:
		return named(op.GetRemoveSnapshots().GetNode(), op.GetRemoveSnapshots().GetDatasets())
	case op.GetReplicate() != nil:
		r := op.GetReplicate()
		return fmt.Sprintf("job=%s source=%s:%s target=%s:%s", r.GetJobId(), r.GetSource(), r.GetDataset(), r.GetTarget(), r.GetTargetDataset())
	}
	return ""
}
