package storage

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff/look"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// rightLife is how long an attempt's stream may be used.
	rightLife = 24 * time.Hour
	// decisionLife is how long what a decision says is thought to hold.
	decisionLife = 15 * time.Minute
	// defaultParallel is how many replications may leave a node at once, and as many
	// arrive, where the node says nothing else.
	defaultParallel = 2
)

// The phases of an attempt, in their order.
const (
	phaseSnapshot = storev1.ReplicatePhase_REPLICATE_PHASE_SNAPSHOT
	phasePlan     = storev1.ReplicatePhase_REPLICATE_PHASE_PLAN
	phaseReceive  = storev1.ReplicatePhase_REPLICATE_PHASE_RECEIVE
	phaseSend     = storev1.ReplicatePhase_REPLICATE_PHASE_SEND
)

// run is the next step of a run of a replication job.
func (d *decision) run() *step {
	r := d.op.GetReplicate()
	job, ok := d.snapshot.Replications[r.GetJobId()]
	switch {
	case !ok:
		if s, waiting := d.stop("ending, since the job is gone"); waiting {
			return s
		}
		return d.fail("JOB_NOT_FOUND", fmt.Sprintf("replication job %s is not in the records any more", r.GetJobId()))
	case d.op.GetState() == task.OpPending:
		return d.beginRun(job)
	}
	switch r.GetPhase() {
	case phaseSnapshot:
		return d.runSnapshot(job)
	case phasePlan:
		return d.runPlan(job)
	case phaseReceive, phaseSend:
		return d.runPair(job)
	}
	return d.broken("the run's phase is not known")
}

// beginRun begins the first attempt, unless there is a reason not to, or not yet.
func (d *decision) beginRun(job cluster.Entry[*storev1.ReplicationJob]) *step {
	r := d.op.GetReplicate()
	switch {
	case d.op.GetCancelRequested():
		return d.cancelled("cancelled as asked; nothing was done")
	case job.Value.GetDeleting():
		return d.fail("JOB_DELETING", fmt.Sprintf("replication job %s is being deleted", r.GetJobId()))
	}
	if node := d.unknown(job.Value.GetSource(), job.Value.GetTarget()); node != "" {
		return d.failRun(job, nil, "NODE_NOT_FOUND", fmt.Sprintf("node %s is not in the records any more", node))
	}
	if why := d.waits(job.Value.GetSource(), job.Value.GetTarget()); why != "" {
		return d.note(why)
	}
	if why := d.full(job.Value.GetSource(), job.Value.GetTarget()); why != "" {
		return d.note("waiting for its turn: " + why)
	}
	r.Source, r.Target = job.Value.GetSource(), job.Value.GetTarget()
	r.Dataset, r.TargetDataset = job.Value.GetDataset(), job.Value.GetTargetDataset()
	d.begin()
	d.nextAttempt(d.now)
	next := proto.CloneOf(job.Value)
	next.LastOperation = d.op.GetId()
	return d.withJob(d.commit(stepBegin, "replication "+r.GetJobId()+" begins"), job, next)
}

// full tells, for people, that no further run may begin between two nodes now;
// empty: it may. A run whose other node is not heard stands still, for as long as
// that stays so, and takes nobody's turn.
func (d *decision) full(source, target string) string {
	leaving, arriving := 0, 0
	for _, entry := range d.snapshot.ActiveOperations() {
		other := entry.Value.GetReplicate()
		if entry.Value.GetKind() != KindRun || entry.Value.GetId() == d.op.GetId() || entry.Value.GetState() != task.OpRunning {
			continue
		}
		if d.unheard(other.GetSource())+d.unheard(other.GetTarget()) != "" {
			continue
		}
		if other.GetSource() == source {
			leaving++
		}
		if other.GetTarget() == target {
			arriving++
		}
	}
	parallel := func(node string) int {
		if n := d.snapshot.Nodes[node].Value.GetParallelReplications(); n > 0 {
			return int(n)
		}
		return defaultParallel
	}
	switch {
	case leaving >= parallel(source):
		return fmt.Sprintf("%d replications leave %s already, as many as may at once", leaving, source)
	case arriving >= parallel(target):
		return fmt.Sprintf("%d replications arrive on %s already, as many as may at once", arriving, target)
	}
	return ""
}

// nextAttempt has another attempt begin, at that time.
func (d *decision) nextAttempt(at time.Time) {
	r := d.op.GetReplicate()
	r.Attempt++
	r.AttemptAt, r.Right, r.ToCreated, r.More = timestamppb.New(at), nil, nil, false
	r.Phase = phasePlan
	if r.GetSnapshot() != "" && !d.snapshotTaken() {
		r.Phase = phaseSnapshot
	}
}

// snapshotTaken tells whether the run's own snapshot is there.
func (d *decision) snapshotTaken() bool {
	for _, h := range d.all(taskSnapshot) {
		if h.succeeded() {
			return true
		}
	}
	return false
}

func (d *decision) attempt() string { return strconv.Itoa(int(d.op.GetReplicate().GetAttempt())) }

// pausing is the step of a run that waits for its next attempt, or for a node;
// false: it need not.
func (d *decision) pausing() (*step, bool) {
	r := d.op.GetReplicate()
	if d.now.Before(r.GetAttemptAt().AsTime()) {
		return d.note(fmt.Sprintf("waiting to try again (attempt %d): %s", r.GetAttempt(), r.GetLastError())), true
	}
	if why := d.waits(r.GetSource(), r.GetTarget()); why != "" {
		return d.note(why), true
	}
	return nil, false
}

// runSnapshot takes the run's own snapshot.
func (d *decision) runSnapshot(job cluster.Entry[*storev1.ReplicationJob]) *step {
	r := d.op.GetReplicate()
	h := d.of(d.attempt(), taskSnapshot)
	switch {
	case h == nil && d.op.GetCancelRequested():
		return d.cancelRun(job, nil)
	case h == nil:
		if node := d.unknown(r.GetSource(), r.GetTarget()); node != "" {
			return d.failRun(job, nil, "NODE_NOT_FOUND", fmt.Sprintf("node %s is not in the records any more", node))
		}
		if s, waiting := d.pausing(); waiting {
			return s
		}
		spec := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ZfsSnapshotCreate{ZfsSnapshotCreate: &agentv1.ZfsSnapshotCreate{
			Datasets: []string{r.GetDataset()}, Name: r.GetSnapshot(), Operation: d.op.GetId(),
		}}}
		return d.order(stepTask, d.attempt(), taskSnapshot, r.GetSource(), "zfs/"+r.GetDataset(), spec, "taking a snapshot on "+r.GetSource())
	case !h.ended() && d.op.GetCancelRequested():
		s, _ := d.stop("cancelling")
		return s
	case !h.ended():
		return d.note("taking a snapshot on " + r.GetSource() + d.unheard(r.GetSource()))
	}
	if judge(h) != done {
		return d.brokeOff(job, h)
	}
	r.Phase = phasePlan
	return d.commit(stepTaken, "snapshot "+r.GetDataset()+"@"+r.GetSnapshot()+" is taken on "+r.GetSource())
}

// runPlan has both sides asked, and has the target made ready for what is to be
// sent then.
func (d *decision) runPlan(job cluster.Entry[*storev1.ReplicationJob]) *step {
	r := d.op.GetReplicate()
	if d.op.GetCancelRequested() {
		return d.cancelRun(job, nil)
	}
	if node := d.unknown(r.GetSource(), r.GetTarget()); node != "" {
		return d.failRun(job, nil, "NODE_NOT_FOUND", fmt.Sprintf("node %s is not in the records any more", node))
	}
	if s, waiting := d.pausing(); waiting {
		return s
	}
	q := &question{key: d.op.GetId() + "/" + d.attempt(), job: job.Value, more: look.More{
		Run:       true,
		Confirmed: r.GetConfirmedPlan(), Accepted: d.accepted(), Modified: r.GetLastCode() == codeModified,
	}}
	a, s := d.answered(q, "asking "+r.GetSource()+" and "+r.GetTarget()+" what they have", func(code, message string) *step {
		return d.failRun(job, nil, code, message)
	})
	if a == nil {
		return s
	}
	plan, said := a.plan, proto.CloneOf(a.plan.Decision)
	said.ExpiresAt = &debvisorv1.Timestamp{Seconds: d.now.Add(decisionLife).Unix()}
	r.Decision, r.SourceWritten = encoded(said), plan.SourceWritten
	switch {
	case plan.Refusal != nil:
		return d.failRun(job, nil, plan.Refusal.Code, plan.Refusal.Message)
	case len(plan.Steps) == 0 && !plan.Unmarked:
		return d.succeedRun(job, &reached{name: plan.CommonName, guid: plan.Common, created: plan.CommonCreated})
	}
	return d.receive(job, plan)
}

// accepted is what an earlier attempt was allowed to destroy; nil: nothing.
func (d *decision) accepted() *agentv1.TargetAside {
	var last *agentv1.TargetAside
	for _, h := range d.all(taskReceive) {
		var spec agentv1.TaskSpec
		if proto.Unmarshal(h.task.GetSpec(), &spec) != nil {
			continue
		}
		if aside := spec.GetReplicateReceive().GetAside(); aside != nil && aside.GetRenameTo() == "" {
			last = aside
		}
	}
	return last
}

// receive writes the target's task.
func (d *decision) receive(job cluster.Entry[*storev1.ReplicationJob], plan *repldiff.Plan) *step {
	r := d.op.GetReplicate()
	prefix := d.op.GetId() + "/" + d.attempt() + "/"
	right := &agentv1.ReplicationRight{
		Id: d.rightID, JobId: r.GetJobId(), SourceNode: r.GetSource(), TargetNode: r.GetTarget(), SourceDataset: r.GetDataset(),
		SourceGuid: plan.SourceGUID, TargetDataset: r.GetTargetDataset(), Term: d.term.Wire(),
		ExpiresAt: d.now.Add(rightLife).Unix(), SendTaskId: prefix + taskSend, ReceiveTaskId: prefix + taskReceive,
	}
	r.Right, r.More, r.Phase = encoded(right), plan.More, phaseReceive
	r.ToCreated = seconds(plan.LastCreated)
	spec := &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_ReplicateReceive{ReplicateReceive: &agentv1.ReplicateReceive{
		Right: right, Steps: plan.Steps, Aside: plan.Aside, Raw: plan.Raw, Type: plan.Type, TargetGuid: plan.TargetGUID,
		Cursor: cursor(r.GetTargetDataset(), plan), NodeBandwidthMib: d.snapshot.Nodes[r.GetTarget()].Value.GetReplicationBandwidthMib(),
	}}}
	s := d.order(stepReceive, d.attempt(), taskReceive, r.GetTarget(), "zfs-copy/"+r.GetTargetDataset(), spec, "preparing "+r.GetTarget())
	s.change.Require = append(s.change.Require, store.Unchanged(store.ReplicationKey(r.GetJobId()), job.ModRevision))
	return s
}

// cursor is the snapshot that a dataset has before the first step.
func cursor(dataset string, plan *repldiff.Plan) *agentv1.ZfsSnapshotID {
	if plan.Common == 0 {
		return nil
	}
	return &agentv1.ZfsSnapshotID{Dataset: dataset, Name: plan.CommonName, Guid: plan.Common}
}

// seconds is a time, absent where it is not known.
func seconds(unix int64) *timestamppb.Timestamp {
	if unix <= 0 {
		return nil
	}
	return &timestamppb.Timestamp{Seconds: unix}
}
