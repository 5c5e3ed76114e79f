package drain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// noteEvery is the least time between two notes of progress, reasonsEvery
	// between two that tell of nothing but other figures in a reason.
	noteEvery    = time.Second
	reasonsEvery = 10 * time.Second
	// mostBegun bounds how many moves one transaction begins.
	mostBegun = 16
)

// The states of a move.
const (
	waiting = storev1.MoveState_MOVE_STATE_WAITING
	moving  = storev1.MoveState_MOVE_STATE_MOVING
	moved   = storev1.MoveState_MOVE_STATE_MOVED
	blocked = storev1.MoveState_MOVE_STATE_BLOCKED
	failed  = storev1.MoveState_MOVE_STATE_FAILED
)

// moment is what a decision needs besides the records.
type moment struct {
	now time.Time
	// mayPlan allows a plan though none of the operation's moves has ended.
	mayPlan bool
	// world gives the planner's world of the very snapshot.
	world func() *planner.World
}

// stepName names a step, for logs and failpoints.
type stepName string

const (
	stepBegin  stepName = "begin"
	stepMove   stepName = "move"
	stepCancel stepName = "cancel-move"
	stepNote   stepName = "note"
	stepEnd    stepName = "end"
)

// step is one transaction of one operation.
type step struct {
	name   stepName
	log    string
	change store.Change

	// What the change writes, for those who look at a step: the operation, the
	// moves' own operations that begin or are to end, and the node.
	op       *storev1.Operation
	begun    []*storev1.Operation
	stopping *storev1.Operation
	node     *storev1.Node
}

// verdict is what a look at an operation comes to.
type verdict struct {
	// step is the next; nil: there is none yet.
	step *step
	// planned tells that the planner was asked, began that it let something begin.
	planned, began bool
	// questions are what the planner did not know.
	questions []planner.Question
}

// drain is one operation with all that is decided on.
type drain struct {
	moment
	verdict
	snapshot *cluster.Snapshot
	entry    cluster.Entry[*storev1.Operation]
	op       *storev1.Operation // a copy: what the step will write
	e        *storev1.Evacuate  // of op
	// ended tells that a move has ended, or that there is a new VM, since the record.
	ended bool
	// extra is what the step writes besides the operation.
	extra    store.Change
	begun    []*storev1.Operation
	stopping *storev1.Operation
	node     *storev1.Node
	log      string
	// all are the unfinished migrations, own those of this operation.
	all, own traffic
}

// decide gives the next step of an operation. It is pure.
func decide(s *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], at moment) verdict {
	d := &drain{moment: at, snapshot: s, entry: entry, op: proto.CloneOf(entry.Value)}
	d.e = d.op.GetEvacuate()
	switch {
	case d.e == nil:
		d.e = &storev1.Evacuate{}
		d.fail("BROKEN_RECORD", "the operation does not say what it is to move", nil)
	case d.op.GetState() == task.OpPending && d.op.GetCancelRequested():
		d.cancelled()
	case d.op.GetState() == task.OpPending:
		d.begin()
	case d.op.GetCancelRequested():
		d.settle()
		d.cancel()
	default:
		d.advance()
	}
	return d.verdict
}

// given tells whether the moves were given and not found here.
func (d *drain) given() bool { return d.op.GetKind() == Rebalance || d.e.GetPlanId() != "" }

// begin is the first step. With it the node is cordoned, or takes VMs again.
func (d *drain) begin() {
	d.op.State, d.op.StartedAt = task.OpRunning, timestamppb.New(d.now)
	if d.op.GetKind() == Rebalance {
		d.write(stepBegin, fmt.Sprintf("carrying out %d moves", len(d.e.GetMoves())))
		return
	}
	entry, ok := d.snapshot.Nodes[d.e.GetNode()]
	if !ok {
		d.fail("NODE_NOT_FOUND", fmt.Sprintf("no node is called %q", d.e.GetNode()), nil)
		return
	}
	node := proto.CloneOf(entry.Value)
	switch d.op.GetKind() {
	case Restore:
		node.Cordoned, node.CordonReason = false, ""
		d.e.Moves = away(d.snapshot, node.GetId())
		d.log = fmt.Sprintf("%s takes VMs again; %d are to come back", node.GetId(), len(d.e.GetMoves()))
	default:
		d.e.Cordoned = !node.GetCordoned()
		if d.e.Cordoned || d.e.GetCordonReason() != "" {
			node.CordonReason = cmp.Or(d.e.GetCordonReason(), "evacuated by "+d.op.GetPrincipal()) // tenants read it, too
		}
		node.Cordoned = true
		d.log = "emptying " + node.GetId()
	}
	key := store.NodeKey(node.GetId())
	d.extra.Require = append(d.extra.Require, store.Unchanged(key, entry.ModRevision))
	if !proto.Equal(node, entry.Value) {
		d.extra.Puts = append(d.extra.Puts, store.PutProto(key, node))
		d.node = node
	}
	d.write(stepBegin, d.log)
}

// advance is any later look at an operation that is not to be cancelled.
func (d *drain) advance() {
	d.settle()
	if d.op.GetKind() == Evacuate && !d.given() {
		d.takeIn()
		if m := d.stranded(); m != nil {
			d.end(m, "ending the move of "+name(m)+", which has not begun: "+m.GetTarget()+" is not heard")
			return
		}
	}
	if code, _ := d.stopped(); code == "" {
		d.count()
		switch {
		case d.given():
			d.beginGiven()
		case d.op.GetKind() == Restore:
			d.beginBack()
		default:
			d.beginAway()
		}
	}
	switch code, why := d.stopped(); {
	case d.any(moving):
		d.e.BlockedSince = nil
		d.note()
	case code != "":
		d.stop(code, why)
	default:
		d.conclude()
	}
}

// stopped tells why no further move may begin, with the code that the operation
// will fail with; empty: they may.
func (d *drain) stopped() (code, why string) {
	if d.op.GetKind() == Evacuate && !d.snapshot.Nodes[d.e.GetNode()].Value.GetCordoned() {
		return codeUncordoned, "somebody has lifted the cordon of " + d.e.GetNode()
	}
	if !d.given() {
		return "", ""
	}
	for _, m := range d.e.GetMoves() {
		if m.GetState() == failed {
			return codeStopped, fmt.Sprintf("the move of %s from %s to %s did not come off: %s", name(m), m.GetSource(), m.GetTarget(), m.GetMessage())
		}
	}
	return "", ""
}

// cancel asks for the end of every move at work, one a step, and ends the
// operation when there is none.
func (d *drain) cancel() {
	for _, m := range d.e.GetMoves() {
		child, ok := d.snapshot.Operations[m.GetOperation()]
		if m.GetState() != moving || !ok || child.Value.GetCancelRequested() || child.Value.GetMigrate().GetSwitchedOver() {
			continue
		}
		d.op.Step = "cancelling: " + d.tally()
		d.end(m, "ending the move of "+name(m))
		return
	}
	if d.any(moving) {
		d.note()
		return
	}
	d.cancelled()
}

// end asks for the end of a move's operation.
func (d *drain) end(m *storev1.Move, log string) {
	child := d.snapshot.Operations[m.GetOperation()]
	op := proto.CloneOf(child.Value)
	op.CancelRequested = true
	key := store.OperationKey(op.GetId())
	d.extra.Require = append(d.extra.Require, store.Unchanged(key, child.ModRevision))
	d.extra.Puts = append(d.extra.Puts, store.PutProto(key, op))
	d.stopping = op
	d.write(stepCancel, log)
}

// note writes how far the operation is, where that is worth a transaction.
func (d *drain) note() {
	d.op.Step = d.tally()
	if d.op.GetCancelRequested() {
		d.op.Step = "cancelling: " + d.op.GetStep()
	}
	was, now := d.progress()
	since := d.now.Sub(time.Unix(was.GetUpdatedAt().GetSeconds(), int64(was.GetUpdatedAt().GetNanos())))
	switch {
	case len(d.begun) > 0, d.significant():
	case since < noteEvery:
		return
	case now.GetPercent() == was.GetPercent() && now.GetBytesPerSecond() == was.GetBytesPerSecond() &&
		(since < reasonsEvery || proto.Equal(d.op, d.entry.Value)):
		return
	}
	d.setProgress(now)
	if len(d.begun) > 0 {
		d.write(stepMove, d.log)
		return
	}
	d.write(stepNote, d.op.GetStep())
}

// significant tells whether the step says more than other figures in a reason
// or another target of what is still to come.
func (d *drain) significant() bool {
	was, is := d.entry.Value, proto.CloneOf(d.op)
	is.Progress = was.GetProgress()
	before := was.GetEvacuate().GetMoves()
	for i, m := range is.GetEvacuate().GetMoves() {
		if i >= len(before) || m.GetState() != before[i].GetState() || m.GetState() == moving || m.GetState() == moved {
			continue
		}
		if m.GetMessage() != "" && before[i].GetMessage() != "" {
			m.Message = before[i].GetMessage()
		}
		if m.GetTarget() != "" && before[i].GetTarget() != "" {
			m.Target = before[i].GetTarget()
		}
	}
	return !proto.Equal(was, is)
}

// progress gives the figures that are recorded and those of now: the moves that
// are done, and the share of those on their way.
func (d *drain) progress() (was, now *debvisorv1.OperationProgress) {
	was, now = &debvisorv1.OperationProgress{}, &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(d.op.GetProgress(), was); err != nil {
		was.Reset()
	}
	sum := 0.0
	for _, m := range d.e.GetMoves() {
		switch m.GetState() {
		case moved:
			sum += 100
		case moving:
			p := &debvisorv1.OperationProgress{}
			if err := proto.Unmarshal(d.snapshot.Operations[m.GetOperation()].Value.GetProgress(), p); err == nil {
				sum += min(max(p.GetPercent(), 0), 100)
				now.BytesPerSecond += p.GetBytesPerSecond()
			}
		}
	}
	if n := len(d.e.GetMoves()); n > 0 {
		now.Percent = sum / float64(n)
	}
	now.UpdatedAt = &debvisorv1.Timestamp{Seconds: d.now.Unix(), Nanos: int32(d.now.Nanosecond())}
	return was, now
}

func (d *drain) setProgress(p *debvisorv1.OperationProgress) {
	if encoded, err := proto.Marshal(p); err == nil {
		d.op.Progress = encoded
	}
}

// tally counts the moves, for people.
func (d *drain) tally() string {
	n := d.counts()
	text := fmt.Sprintf("%d of %d moved", n[moved], len(d.e.GetMoves()))
	for _, part := range []struct {
		state storev1.MoveState
		word  string
	}{{moving, "on their way"}, {waiting, "to come"}, {blocked, "blocked"}, {failed, "failed"}} {
		if n[part.state] > 0 {
			text += fmt.Sprintf(", %d %s", n[part.state], part.word)
		}
	}
	return text
}

func (d *drain) counts() map[storev1.MoveState]int {
	n := map[storev1.MoveState]int{}
	for _, m := range d.e.GetMoves() {
		n[m.GetState()]++
	}
	return n
}

func (d *drain) any(state storev1.MoveState) bool {
	return slices.ContainsFunc(d.e.GetMoves(), func(m *storev1.Move) bool { return m.GetState() == state })
}

// write makes the step that writes the operation as it now stands, on the ground
// that nobody changed it meanwhile.
func (d *drain) write(name stepName, log string) {
	fit(d.e)
	key := store.OperationKey(d.op.GetId())
	change := d.extra
	change.Require = append([]store.Condition{store.Unchanged(key, d.entry.ModRevision)}, change.Require...)
	change.Puts = append([]store.Put{store.PutProto(key, d.op)}, change.Puts...)
	d.step = &step{name: name, log: log, change: change, op: d.op, begun: d.begun, stopping: d.stopping, node: d.node}
	d.began = len(d.begun) > 0
}

// finish ends the operation and frees what it held.
func (d *drain) finish(state task.OpState, log string) {
	d.op.State, d.op.EndedAt, d.op.Step = state, timestamppb.New(d.now), ""
	for _, resource := range d.op.GetResources() {
		d.extra.Deletes = append(d.extra.Deletes, store.InUseKey(resource))
	}
	d.write(stepEnd, log)
}

func (d *drain) fail(code, message string, about map[string]string) {
	d.op.ErrorCode, d.op.ErrorMessage = code, message
	d.op.ErrorContext = map[string]string{}
	maps.Copy(d.op.ErrorContext, about)
	if node := d.e.GetNode(); node != "" {
		d.op.ErrorContext["node"] = node
	}
	d.finish(task.OpFailed, "failed: "+message)
}

// name is what people call a move's VM.
func name(m *storev1.Move) string { return cmp.Or(m.GetVmName(), m.GetVmUuid()) }

// The most that one record's moves may say of their reasons, and the least that
// each may, bytes.
const (
	mostReasons  = 400 << 10
	leastReasons = 120
)

// fit shortens what moves say where there are so many that the record would not
// be taken.
func fit(e *storev1.Evacuate) {
	most := max(mostReasons/max(len(e.GetMoves()), 1), leastReasons)
	for _, m := range e.GetMoves() {
		m.Message = clip(m.GetMessage(), most)
	}
}

// clip shortens a text to so many bytes, at a character's end.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	cut := most - len("…")
	for cut > 0 && text[cut]&0xC0 == 0x80 {
		cut--
	}
	return text[:cut] + "…"
}
