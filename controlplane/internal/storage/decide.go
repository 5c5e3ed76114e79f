package storage

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of the operations that this controller advances.
const (
	KindCreate = "snapshot.create"
	KindDelete = "snapshot.delete"
	KindPrune  = "snapshot.prune"
	KindRun    = "replication.run"
	KindEnd    = "replication.delete"

	KindClone   = "image.clone"
	KindFlatten = "image.flatten"
	KindRemove  = "image.delete"
)

// The kinds of tasks, the last part of their ids.
const (
	taskSnapshot = "zfs-snapshot"
	taskDestroy  = "zfs-destroy"
	taskReceive  = "replicate-receive"
	taskSend     = "replicate-send"
	taskRelease  = "replication-release"

	cephTasks          = "rbd-" // they all begin so
	taskRbdSnapshot    = "rbd-snapshot"
	taskRbdRemove      = "rbd-snapshot-remove"
	taskRbdClone       = "rbd-clone"
	taskRbdFlatten     = "rbd-flatten"
	taskRbdImageRemove = "rbd-image-remove"
)

func ours(kind string) bool {
	switch kind {
	case KindCreate, KindDelete, KindPrune, KindRun, KindEnd, KindClone, KindFlatten, KindRemove:
		return true
	}
	return false
}

// moment is what a decision needs besides the records.
type moment struct {
	now     time.Time
	term    task.Term
	rightID string
	// answer is the last that was asked for the operation; nil: nothing was.
	answer *answer
	// unfit is why no transaction holds the step that was to be next; nil: it may.
	unfit error
	pace  pace
}

// stepName names a step, for logs and failpoints.
type stepName string

const (
	stepBegin      stepName = "begin"
	stepTask       stepName = "task"
	stepTaken      stepName = "snapshot-taken"
	stepReceive    stepName = "receive"
	stepSend       stepName = "send"
	stepBatch      stepName = "batch-done"
	stepAgain      stepName = "again"
	stepNote       stepName = "note"
	stepProgress   stepName = "progress"
	stepRefused    stepName = "stream-refused"
	stepCancelTask stepName = "cancel-task"
	stepGone       stepName = "node-gone"
	stepSucceed    stepName = "succeed"
	stepFail       stepName = "fail"
	stepCancelled  stepName = "cancelled"
	stepRPO        stepName = "rpo"
)

// step is one transaction, of one operation or about one job.
type step struct {
	name   stepName
	about  string
	log    string
	change store.Change
	audit  *audit.Event // what is in the audit log before the step is taken

	// What the change writes, for those who look at a step.
	op   *storev1.Operation
	task *storev1.Task
	job  *storev1.ReplicationJob
	// began is the operation that goes on where this one ends; nil: none does.
	began *storev1.Operation
}

// told is what a line about the step tells.
func (s *step) told(more ...any) []any {
	return store.OperationIDs(s.op).Args(append([]any{"about", s.about, "step", s.name}, more...)...)
}

// decision is one operation with all that is decided on.
type decision struct {
	moment
	snapshot *cluster.Snapshot
	entry    cluster.Entry[*storev1.Operation]
	op       *storev1.Operation // a copy: what the step will write
	tasks    []*half            // in the order in which they were written
	question *question
}

// half is a task with what it says.
type half struct {
	entry    cluster.Entry[*storev1.Task]
	task     *storev1.Task
	kind     string
	progress agentv1.TaskProgress
	outcome  agentv1.TaskOutcome
}

func (h *half) ended() bool     { return task.Ended(task.State(h.task.GetState())) }
func (h *half) succeeded() bool { return task.State(h.task.GetState()) == task.Succeeded }

// decide gives the next step of an operation, and what has to be asked before
// there is one; both nil: there is nothing to do yet. It is pure.
func decide(s *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], at moment) (*step, *question) {
	d := &decision{moment: at, snapshot: s, entry: entry, op: proto.CloneOf(entry.Value)}
	if err := d.readTasks(); err != nil {
		return d.broken(err.Error()), nil
	}
	if s := d.gone(); s != nil {
		return s, nil
	}
	var next *step
	switch {
	case d.unfit != nil:
		next = d.tooLarge()
	case d.op.GetKind() == KindCreate && d.op.GetTakeSnapshots() != nil:
		next = d.create()
	case (d.op.GetKind() == KindDelete || d.op.GetKind() == KindPrune) && d.op.GetRemoveSnapshots() != nil:
		next = d.remove()
	case d.op.GetKind() == KindClone && d.op.GetCloneImage() != nil:
		next = d.clone()
	case (d.op.GetKind() == KindFlatten || d.op.GetKind() == KindRemove) && d.op.GetChangeImage() != nil:
		next = d.change()
	case d.op.GetKind() == KindRun && d.op.GetReplicate() != nil:
		next = d.run()
	case d.op.GetKind() == KindEnd && d.op.GetReplicate() != nil:
		next = d.release()
	default:
		next = d.broken("the operation does not say what it is about")
	}
	return next, d.question
}

// readTasks reads the operation's tasks.
func (d *decision) readTasks() error {
	for _, entry := range d.snapshot.TasksOf(d.op.GetId()) {
		h := &half{entry: entry, task: entry.Value, kind: entry.Value.GetId()[strings.LastIndexByte(entry.Value.GetId(), '/')+1:]}
		if err := proto.Unmarshal(h.task.GetProgress(), &h.progress); err != nil {
			return fmt.Errorf("the progress of task %s cannot be read", h.task.GetId())
		}
		if err := proto.Unmarshal(h.task.GetOutcome(), &h.outcome); err != nil {
			return fmt.Errorf("what came of task %s cannot be read", h.task.GetId())
		}
		d.tasks = append(d.tasks, h)
	}
	slices.SortStableFunc(d.tasks, func(a, b *half) int { return a.task.GetCreatedAt().AsTime().Compare(b.task.GetCreatedAt().AsTime()) })
	return nil
}

// of gives the operation's task of an attempt; nil: there is none.
func (d *decision) of(attempt, kind string) *half {
	id := d.op.GetId() + "/" + attempt + "/" + kind
	for _, h := range d.tasks {
		if h.task.GetId() == id {
			return h
		}
	}
	return nil
}

// all gives the operation's tasks of a kind.
func (d *decision) all(kind string) []*half {
	var found []*half
	for _, h := range d.tasks {
		if h.kind == kind {
			found = append(found, h)
		}
	}
	return found
}

// open is the first of the operation's tasks that has not ended; nil: all have.
func (d *decision) open() *half {
	for _, h := range d.tasks {
		if !h.ended() {
			return h
		}
	}
	return nil
}

// stop asks for the end of all that agents are at for the operation, one task
// after the other; then it waits, saying why. nil, false: all has ended.
func (d *decision) stop(why string) (s *step, waiting bool) {
	for _, h := range d.tasks {
		if !h.ended() && !h.task.GetCancelRequested() {
			return d.cancelTask(h, why), true
		}
	}
	if h := d.open(); h != nil {
		return d.note(why + d.unheard(h.task.GetNode())), true
	}
	return nil, false
}

// broken is for records that cannot be read. What agents are still at goes on
// holding what it works on: its end is waited for.
func (d *decision) broken(why string) *step {
	if s, waiting := d.stop("waiting for the agents to end: " + why); waiting {
		return s
	}
	return d.fail("BROKEN_RECORD", why)
}

// tooLarge ends an operation whose next step no transaction holds, once no agent is
// at work for it any more.
func (d *decision) tooLarge() *step {
	if s, waiting := d.stop("ending, since its next step does not fit in a transaction"); waiting {
		return s
	}
	if job, ok := d.snapshot.Replications[d.op.GetReplicate().GetJobId()]; ok && d.op.GetKind() == KindRun {
		return d.failRun(job, nil, codeOf(d.unfit), plain(d.unfit))
	}
	return d.fail(codeOf(d.unfit), plain(d.unfit))
}

// The codes of tasks that were ended without their agents.
const (
	codeNodeGone = "NODE_GONE"
	codeNodeOff  = "NODE_OFF"
)

// gone ends an open task of a node that is no longer in the records, or that an
// operator says is powered off; nil: there is none.
func (d *decision) gone() *step {
	for _, h := range d.tasks {
		id := h.task.GetNode()
		node, known := d.snapshot.Nodes[id]
		off := d.snapshot.ConfirmedOff(id)
		if h.ended() || known && !off {
			continue
		}
		out := &agentv1.TaskOutcome{ErrorCode: codeNodeGone, ErrorMessage: "node " + id + " is not in the records any more"}
		if known {
			out.ErrorCode = codeNodeOff
			out.ErrorMessage = fmt.Sprintf("%s is powered off, by the word of %s (%s)", id, node.Value.GetOffConfirmedBy(), node.Value.GetOffReason())
		}
		t := proto.CloneOf(h.task)
		t.State, t.Outcome, t.EndedAt = task.Recorded(task.Failed), encoded(out), timestamppb.New(d.now)
		d.op.Step = out.GetErrorMessage()
		s := d.commit(stepGone, "ending "+t.GetId()+": "+out.GetErrorMessage())
		// A sign of life that came meanwhile makes the word void.
		s.change.Require = append(
			s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), h.entry.ModRevision),
			store.Unchanged(store.NodeKey(id), node.ModRevision), store.Unchanged(store.StatusKey(id), d.snapshot.Statuses[id].ModRevision),
		)
		s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
		s.task = t
		return s
	}
	return nil
}

// waits is what has to pass before an agent of one of those nodes is given
// anything; "": nothing has.
func (d *decision) waits(nodes ...string) string {
	for _, node := range nodes {
		if why := d.unheard(node); why != "" {
			return strings.TrimPrefix(why, ": ")
		}
		inventory := &agentv1.ZfsInventory{}
		if proto.Unmarshal(d.snapshot.ZFS[node].Value.GetInventory(), inventory) == nil && inventory.GetError() != "" {
			return "waiting for ZFS of " + node + ", which does not answer: " + inventory.GetError()
		}
	}
	return ""
}

// unheard says that a node's agent is not heard, for the operation's step.
func (d *decision) unheard(node string) string {
	switch d.snapshot.Statuses[node].Value.GetLiveness() {
	case storev1.NodeLiveness_NODE_LIVENESS_ONLINE, storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return ""
	}
	return ": waiting for the agent of " + node + ", which is not heard"
}

// unknown is the first of those nodes that is not in the records; "": all are.
func (d *decision) unknown(nodes ...string) string {
	for _, node := range nodes {
		if _, ok := d.snapshot.Nodes[node]; !ok {
			return node
		}
	}
	return ""
}

// answered gives the answer to the operation's question of that key. Until there
// is one it has it asked, and gives what the operation's step says meanwhile: nil
// where that is said already. What agents refuse to answer again and again ends
// the operation by fail.
func (d *decision) answered(q *question, waiting string, fail func(code, message string) *step) (*answer, *step) {
	a := d.answer
	switch {
	case a == nil || a.key != q.key:
		d.question = q
		return nil, d.note(waiting)
	case a.err != nil && a.refused >= maxRefused:
		return nil, fail(codeOf(a.err), plain(a.err))
	case a.err != nil && d.now.Sub(a.at) < d.pace.askAgain:
		return nil, d.note(waiting + ": " + plain(a.err))
	case a.err != nil || d.now.Sub(a.at) > answerLife:
		d.question = q
		return nil, nil
	}
	return a, nil
}

// sortedKeys are a set's.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
