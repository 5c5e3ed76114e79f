package failover

import (
	"cmp"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of tasks.
const (
	taskFence   = "rbd-fence"
	taskUnfence = "rbd-unfence"
	taskStart   = "failover-start"
	taskDiscard = "failover-discard"
)

const (
	phaseFence = storev1.FailoverPhase_FAILOVER_PHASE_FENCE
	phaseStart = storev1.FailoverPhase_FAILOVER_PHASE_START
)

const (
	// fenceFor is how long Ceph keeps entries of its blocklist by itself: as good as
	// for ever, since they are taken away when the lost copies are destroyed.
	fenceFor = 10 * 365 * 24 * time.Hour
	// maxFences bounds how often a fence is tried that Ceph did not answer.
	maxFences = 5
	// maxUnfences bounds how often it is tried to undo one before the operation ends
	// without.
	maxUnfences = 20
	// shortest and longest are the pauses between attempts.
	shortest, longest = 2 * time.Second, time.Minute
)

// moment is what a decision needs besides the records.
type moment struct {
	now  time.Time
	term task.Term
}

// stepName names a step, for logs and failpoints.
type stepName string

const (
	stepFence      stepName = "fence"
	stepStart      stepName = "start"
	stepAgain      stepName = "start-again"
	stepNote       stepName = "note"
	stepCancelTask stepName = "cancel-task"
	stepUndo       stepName = "undo"
	stepUnfence    stepName = "unfence"
	stepGone       stepName = "node-gone"
	stepSucceed    stepName = "succeed"
	stepFail       stepName = "fail"
	stepCancelled  stepName = "cancelled"
	stepDiscard    stepName = "discard"
	stepDiscarded  stepName = "discarded"
	stepForget     stepName = "forget"
	stepTried      stepName = "tried"
)

// step is one transaction of one operation, or lost copy.
type step struct {
	name   stepName
	about  string
	log    string
	change store.Change

	// What the change writes, for those who look at a step.
	op   *storev1.Operation
	task *storev1.Task
	vm   *storev1.VM
	copy *storev1.LostCopy
}

// told is what a line about the step tells.
func (s *step) told(more ...any) []any {
	more = append([]any{"about", s.about, "step", s.name}, more...)
	if s.op == nil {
		return store.TaskIDs(s.task).Args(more...)
	}
	return store.OperationIDs(s.op).Args(more...)
}

// decision is one operation with all that is decided on.
type decision struct {
	moment
	snapshot *cluster.Snapshot
	entry    cluster.Entry[*storev1.Operation]
	op       *storev1.Operation // a copy: what the step will write
	f        *storev1.Failover  // of op
}

// half is a task with what it says.
type half struct {
	entry   cluster.Entry[*storev1.Task]
	task    *storev1.Task
	outcome agentv1.TaskOutcome
}

func (h *half) ended() bool     { return task.Ended(task.State(h.task.GetState())) }
func (h *half) succeeded() bool { return task.State(h.task.GetState()) == task.Succeeded }
func (h *half) code() string    { return cmp.Or(h.outcome.GetErrorCode(), "INTERNAL") }
func (h *half) why() string {
	return cmp.Or(h.outcome.GetErrorMessage(), "the agent of "+h.task.GetNode()+" gave no reason")
}

// decide gives the next step of an operation; nil: there is none yet. It is pure.
func decide(s *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], at moment) *step {
	op := proto.CloneOf(entry.Value)
	d := &decision{moment: at, snapshot: s, entry: entry, op: op, f: op.GetFailover()}
	if d.f == nil {
		d.f = &storev1.Failover{}
	}
	if s := d.gone(); s != nil {
		return s
	}
	switch {
	case d.f.GetVmUuid() == "" || d.f.GetSource() == "" || d.f.GetTarget() == "":
		return d.fail("BROKEN_RECORD", "the operation does not say which VM it is about, or where that was or is to be")
	case op.GetState() == task.OpPending && op.GetCancelRequested():
		return d.cancelled("cancelled as asked; nothing was done")
	case op.GetState() == task.OpPending:
		return d.begin()
	case d.f.GetPhase() == phaseFence:
		return d.fence()
	case d.f.GetPhase() == phaseStart:
		return d.start()
	}
	return d.fail("BROKEN_RECORD", "the operation's phase is not known")
}

// judge judges anew what was asked for, as it was asked for.
func (d *decision) judge() *Verdict {
	r := Request{
		VM: d.f.GetVmUuid(), Target: d.f.GetTarget(), Tenant: d.op.GetTenant(), Operation: d.op.GetId(), NodeIsOff: d.f.GetNodeIsOff(),
		By: d.op.GetPrincipal(), AcceptLoss: time.Duration(d.f.GetAcceptDataLossSeconds()) * time.Second,
		Images: map[string]Image{}, Replicas: map[string]Replica{},
		// What was accepted was accepted then.
		Now: d.op.GetCreatedAt().AsTime(),
	}
	for _, disk := range d.disks() {
		switch {
		case disk.GetImage() != nil:
			r.Images[disk.GetTarget()] = Image{ID: disk.GetImage()}
		case disk.GetSnapshot() != nil:
			r.Replicas[disk.GetTarget()] = Replica{
				Node: d.f.GetTarget(), Job: disk.GetJobId(), Snapshot: disk.GetSnapshot(),
				Created: r.Now.Add(-time.Duration(d.f.GetDataAgeSeconds()) * time.Second),
			}
		}
	}
	v := Judge(d.snapshot, r)
	if len(v.Reasons) == 0 && v.Again == nil {
		v.ground(d)
	}
	return v
}

// ground refuses what has changed since it was asked for.
func (v *Verdict) ground(d *decision) {
	vm, status := v.VM.Value, d.snapshot.Statuses[v.Source].Value
	if vm.GetNode() != d.f.GetSource() || vm.GetGeneration() != d.f.GetGeneration() {
		v.no("PLACEMENT_CHANGED", "VM %s belongs to %s (placement %d) by now; this was asked for %s (placement %d)",
			v.Name, vm.GetNode(), vm.GetGeneration(), d.f.GetSource(), d.f.GetGeneration())
		return
	}
	if status.GetBootId() != d.f.GetSourceBootId() || !status.GetLastSeen().AsTime().Equal(d.f.GetSourceLastSeen().AsTime()) {
		v.no(NodeReachable, "node %s has been heard since this was asked for: what was said of it counts no more; look at it, and ask again", v.Source)
	}
	asked := map[string]bool{}
	for _, disk := range d.disks() {
		asked[disk.GetTarget()] = true
	}
	for _, disk := range v.Disks {
		if !asked[disk.GetTarget()] {
			v.no("PLACEMENT_CHANGED", "disk %s of VM %s was not there when this was asked for", disk.GetTarget(), v.Name)
		}
	}
	v.Allowed = v.Allowed && len(v.Reasons) == 0
}

// disks are those of the record.
func (d *decision) disks() []*agentv1.FailoverDisk {
	var disks []*agentv1.FailoverDisk
	for _, b := range d.f.GetDisks() {
		disk := &agentv1.FailoverDisk{}
		if proto.Unmarshal(b, disk) == nil {
			disks = append(disks, disk)
		}
	}
	return disks
}

// begin begins: with a fence, where there is anything to fence.
func (d *decision) begin() *step {
	v := d.judge()
	if !v.Allowed {
		return d.refused(v)
	}
	d.op.State, d.op.StartedAt = task.OpRunning, timestamppb.New(d.now)
	d.f.VmName, d.f.Start = v.Name, v.Start
	if v.Again != nil {
		return d.again(v)
	}
	if len(fenced(v)) == 0 {
		return d.bringBack(v, nil)
	}
	d.f.Phase, d.f.Fsid = phaseFence, v.FSID
	return d.fenceTask(v)
}

// refused ends an operation that nothing was done for.
func (d *decision) refused(v *Verdict) *step {
	s := d.fail(v.Code(), fmt.Sprintf("VM %s cannot be brought back, and nothing was done: %s", d.name(), v.Refusal()))
	return s
}

// gone ends an open task of a node that is no longer in the records, or that an
// operator says is powered off; nil: there is none.
func (d *decision) gone() *step {
	for _, entry := range d.snapshot.TasksOf(d.op.GetId()) {
		t := entry.Value
		node, known := d.snapshot.Nodes[t.GetNode()]
		if task.Ended(task.State(t.GetState())) || known && !d.snapshot.ConfirmedOff(t.GetNode()) {
			continue
		}
		out := &agentv1.TaskOutcome{ErrorCode: codeGone, ErrorMessage: "node " + t.GetNode() + " is not in the records any more"}
		if known {
			out.ErrorCode = codeOff
			out.ErrorMessage = fmt.Sprintf("%s is powered off, by the word of %s (%s)", t.GetNode(), node.Value.GetOffConfirmedBy(), node.Value.GetOffReason())
		}
		d.op.Step = out.GetErrorMessage()
		s := d.commit(stepGone, "ending "+t.GetId()+": "+out.GetErrorMessage())
		s.end(entry, out, d.now)
		// A sign of life that came meanwhile makes the word void.
		s.change.Require = append(
			s.change.Require, store.Unchanged(store.NodeKey(t.GetNode()), node.ModRevision),
			store.Unchanged(store.StatusKey(t.GetNode()), d.snapshot.Statuses[t.GetNode()].ModRevision),
		)
		return s
	}
	return nil
}

// The codes of tasks that were ended without their agents.
const (
	codeGone = "NODE_GONE"
	codeOff  = "NODE_OFF"
	codeLost = "NODE_LOST"
)

// end adds to a step the end of a task without its agent.
func (s *step) end(entry cluster.Entry[*storev1.Task], out *agentv1.TaskOutcome, now time.Time) {
	t := proto.CloneOf(entry.Value)
	t.State, t.Outcome, t.EndedAt = task.Recorded(task.Failed), encoded(out), timestamppb.New(now)
	s.change.Require = append(s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), entry.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	s.task = t
}

func (d *decision) taskID(attempt, kind string) string {
	return d.op.GetId() + "/" + attempt + "/" + kind
}

func (d *decision) attempt() string { return strconv.FormatUint(uint64(d.f.GetAttempt()), 10) }

// half reads a task; nil: there is none, or it cannot be read.
func readTask(s *cluster.Snapshot, id string) *half {
	entry, ok := s.Tasks[id]
	if !ok {
		return nil
	}
	h := &half{entry: entry, task: entry.Value}
	if err := proto.Unmarshal(h.task.GetOutcome(), &h.outcome); err != nil {
		h.outcome = agentv1.TaskOutcome{ErrorCode: "BROKEN_RECORD", ErrorMessage: "what came of task " + id + " cannot be read"}
	}
	return h
}

func (d *decision) name() string { return cmp.Or(d.f.GetVmName(), d.f.GetVmUuid()) }

// heard tells whether a node's agent is.
func heard(s *cluster.Snapshot, node string) bool {
	switch s.Statuses[node].Value.GetLiveness() {
	case storev1.NodeLiveness_NODE_LIVENESS_ONLINE, storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return true
	}
	return false
}

// unheard says that a node's agent is not heard, for a step.
func unheard(s *cluster.Snapshot, node string) string {
	if heard(s, node) {
		return ""
	}
	return ": waiting for the agent of " + node + ", which is not heard"
}

// pause is how long to wait after so many attempts in vain.
func pause(attempts uint32) time.Duration {
	return min(shortest<<min(max(attempts, 1)-1, 10), longest)
}
