package storage

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	opID  = "op-1"
	jobID = "nightly"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// world is the records that a case is made of.
type world struct {
	t    *testing.T
	d    *cluster.Draft
	op   *storev1.Operation
	job  *storev1.ReplicationJob
	at   moment
	last *storev1.Task
}

// records makes a snapshot of facts, comma-separated. Nodes a and b are there and
// heard; job "nightly" copies tank/vm of a to backup/vm of b, cursor s1 (guid 1).
//
//	running, cancel              the operation; it is pending otherwise
//	down NODE, off NODE, nonode NODE, nozfs NODE
//	nojob, deleting, other N     the job; N other runs are at work
//	phase PHASE, attempt N, broken N, pause, last CODE, more, nosnapshot, confirmed, batch N
//	task ATTEMPT KIND STATE [CODE]    of the operation
//	asked, interrupted           of the task before; its end was asked for; worth another
//	address, bytes N, cursor NAME GUID, destroyed N, kept N
//	vm NODE STATE                web's, of the images; prefer, demand: consistency
//	ceph NODE, cephdown NODE     a node sees the Ceph cluster; it does not answer it
//	removed N, stayed N, depth N, percent N
//	rbd [protected NAME]         what the agent answered of images
//	unfit                        no transaction holds the step that was to be next
//	answer PLAN | error CODE [again] | listing   what the agents answered
func records(t *testing.T, kind, facts string) (*cluster.Snapshot, cluster.Entry[*storev1.Operation], moment) {
	t.Helper()
	w := &world{t: t, d: cluster.Empty().Draft(), at: moment{now: noon, term: task.Term{Revision: 8}, rightID: "r1", pace: ordinary()}}
	w.op = &storev1.Operation{Id: opID, Kind: kind, State: task.OpPending, CreatedAt: timestamppb.New(noon.Add(-time.Minute)), Resources: []string{"x", "y"}}
	w.job = &storev1.ReplicationJob{
		Id: jobID, Source: "a", Target: "b", Dataset: "tank/vm", TargetDataset: "backup/vm", DatasetGuid: 1000,
		CursorName: "s1", CursorGuid: 1, CursorCreated: timestamppb.New(noon.Add(-time.Hour)), CreatedAt: timestamppb.New(noon.Add(-24 * time.Hour)),
		BytesTotal: 100, Options: encoded(&debvisorv1.ReplicationOptions{BandwidthMib: 7}),
	}
	switch kind {
	case KindCreate:
		w.op.Detail = &storev1.Operation_TakeSnapshots{TakeSnapshots: &storev1.TakeSnapshots{Node: "a", Datasets: []string{"tank/vm", "tank/vm2"}, Name: "dv-1", Label: "l"}}
	case KindDelete:
		w.op.Detail = &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{Node: "a", Snapshots: [][]byte{
			encoded(&agentv1.ZfsSnapshotID{Dataset: "tank/vm", Name: "s2", Guid: 2}), encoded(&agentv1.ZfsSnapshotID{Dataset: "tank/vm", Name: "s3", Guid: 3}),
		}}}
	case KindClone, KindFlatten, KindRemove, kindTakeImages, kindDeleteImages, kindPruneImages:
		w.ceph(kind)
	case KindPrune:
		w.op.Detail = &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{
			Node: "a", Datasets: []string{"tank"}, Recursive: true, Retention: encoded(&debvisorv1.RetentionPolicy{KeepLast: 1}),
		}}
	default:
		w.op.Detail = &storev1.Operation_Replicate{Replicate: &storev1.Replicate{
			JobId: jobID, Source: "a", Target: "b", Dataset: "tank/vm", TargetDataset: "backup/vm", Snapshot: "dv-1",
		}}
	}
	for id, mib := range map[string]uint64{"a": 30, "b": 40} {
		w.d.Nodes.Put(id, &storev1.Node{Id: id, ReplicationBandwidthMib: mib}, 3)
		w.d.Statuses.Put(id, &storev1.NodeStatus{Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, BootId: "1"}, 3)
	}
	for fact := range strings.SplitSeq(facts, ",") {
		w.fact(strings.Fields(fact))
	}
	if w.last != nil {
		w.d.Tasks.Put(w.last.GetId(), w.last, 7)
	}
	if w.job != nil {
		w.d.Replications.Put(jobID, w.job, 6)
	}
	if r := w.op.GetReplicate(); r != nil && w.op.GetState() == task.OpRunning && r.GetAttempt() == 0 {
		r.Attempt, r.AttemptAt = 1, timestamppb.New(noon.Add(-time.Second))
	}
	w.d.Operations.Put(opID, w.op, 5)
	s := w.d.Snapshot(9)
	return s, s.Operations[opID], w.at
}

func (w *world) fact(f []string) {
	w.t.Helper()
	if len(f) == 0 {
		return
	}
	n := func(i int) uint64 {
		v, err := strconv.ParseUint(f[i], 10, 32)
		if err != nil {
			w.t.Fatal(err)
		}
		return v
	}
	r := w.op.GetReplicate()
	switch f[0] {
	case "running":
		w.op.State, w.op.StartedAt = task.OpRunning, timestamppb.New(noon.Add(-2*time.Second))
	case "cancel":
		w.op.CancelRequested = true
	case "unfit":
		w.at.unfit = errdefs.New(errdefs.InvalidArgument, "CHANGE_TOO_LARGE", "the record has too many bytes")
	case "down", "off":
		w.d.Statuses.Put(f[1], &storev1.NodeStatus{Id: f[1], Liveness: storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, BootId: "1"}, 3)
		if f[0] == "off" {
			w.d.Nodes.Put(f[1], &storev1.Node{Id: f[1], OffConfirmedAt: timestamppb.New(noon), OffBootId: "1", OffConfirmedBy: "ada", OffReason: "burnt"}, 3)
		}
	case "nonode":
		w.d.Nodes.Delete(f[1])
	case "nozfs":
		w.d.ZFS.Put(f[1], &storev1.NodeZFS{Node: f[1], Inventory: encoded(&agentv1.ZfsInventory{Error: "no module"})}, 3)
	case "nojob":
		w.job = nil
	case "deleting":
		w.job.Deleting = true
	case "other", "arriving":
		run := &storev1.Replicate{Source: "a", Target: "c"}
		if f[0] == "arriving" {
			run = &storev1.Replicate{Source: "c", Target: "b"}
		}
		w.d.Statuses.Put("c", &storev1.NodeStatus{Id: "c", Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE}, 3)
		for i := range n(1) {
			id := fmt.Sprint("op-", f[0], "-", i)
			w.d.Operations.Put(id, &storev1.Operation{Id: id, Kind: KindRun, State: task.OpRunning, Detail: &storev1.Operation_Replicate{Replicate: run}}, 3)
		}
	case "limit":
		w.d.Nodes.Put(f[1], &storev1.Node{Id: f[1], ParallelReplications: uint32(n(2))}, 3)
	case "phase":
		r.Phase = storev1.ReplicatePhase(storev1.ReplicatePhase_value["REPLICATE_PHASE_"+strings.ToUpper(f[1])])
	case "attempt":
		r.Attempt = uint32(n(1))
	case "broken":
		r.Broken = uint32(n(1))
	case "pause":
		r.AttemptAt, r.LastError = timestamppb.New(noon.Add(time.Second)), "it broke"
	case "last":
		r.LastCode = f[1]
	case "more":
		r.More = true
	case "nosnapshot":
		r.Snapshot = ""
	case "confirmed":
		r.ConfirmedPlan = "plan-1"
	case "batch":
		w.op.GetRemoveSnapshots().Batch, w.op.GetRemoveSnapshots().BatchBytes = uint32(n(1)), 20
	case "answer", "error", "listing":
		w.answer(f)
	default:
		if !w.cephFact(f, n) {
			w.taskFact(f, n)
		}
	}
}

func (w *world) taskFact(f []string, n func(int) uint64) {
	w.t.Helper()
	outcome := func(change func(*agentv1.TaskOutcome)) {
		o := &agentv1.TaskOutcome{}
		if err := proto.Unmarshal(w.last.GetOutcome(), o); err != nil {
			w.t.Fatal(err)
		}
		if o.GetZfs() == nil {
			o.Zfs = &agentv1.ZfsOutcome{}
		}
		change(o)
		w.last.Outcome = encoded(o)
	}
	switch f[0] {
	case "task":
		if w.last != nil {
			w.d.Tasks.Put(w.last.GetId(), w.last, 7)
		}
		w.last = w.task(f[1:])
	case "asked":
		w.last.CancelRequested = true
	case "interrupted":
		outcome(func(o *agentv1.TaskOutcome) { o.Interrupted = true })
	case "address":
		w.last.Progress = encoded(&agentv1.TaskProgress{Kind: &agentv1.TaskProgress_ReplicateReceive{ReplicateReceive: &agentv1.ReplicateReceiveProgress{Address: "b:7500"}}})
	case "bytes":
		outcome(func(o *agentv1.TaskOutcome) { o.Zfs.Bytes = n(1) })
	case "cursor":
		outcome(func(o *agentv1.TaskOutcome) {
			o.Zfs.Cursor = &agentv1.ZfsSnapshotID{Dataset: "tank/vm", Name: f[1], Guid: n(2)}
		})
	case "destroyed":
		outcome(func(o *agentv1.TaskOutcome) { o.Zfs.Destroyed = uint32(n(1)) })
	case "kept":
		outcome(func(o *agentv1.TaskOutcome) {
			o.Zfs.Kept = append(o.Zfs.Kept, &agentv1.ZfsKept{Snapshot: &agentv1.ZfsSnapshotID{Dataset: "tank/vm", Guid: n(1)}, Code: "SNAPSHOT_HELD"})
		})
	default:
		w.t.Fatalf("what is %q?", f)
	}
}

// task reads ATTEMPT KIND STATE [CODE].
func (w *world) task(f []string) *storev1.Task {
	w.t.Helper()
	state, ok := agentv1.TaskState_value["TASK_STATE_"+strings.ToUpper(f[2])]
	if !ok {
		w.t.Fatalf("what state is %q?", f[2])
	}
	node := "a"
	if f[1] == taskReceive || strings.HasPrefix(f[0], "target") {
		node = "b"
	}
	t := &storev1.Task{Id: opID + "/" + f[0] + "/" + f[1], OperationId: opID, Node: node, State: storev1.TaskState(state), CreatedAt: timestamppb.New(noon.Add(-time.Second))}
	if task.Ended(task.State(state)) {
		t.EndedAt = timestamppb.New(noon.Add(-time.Minute))
	}
	if len(f) > 3 {
		t.Outcome = encoded(&agentv1.TaskOutcome{ErrorCode: f[3], ErrorMessage: "the agent says " + f[3]})
	}
	spec := &agentv1.TaskSpec{}
	switch f[1] {
	case taskReceive:
		spec.Kind = &agentv1.TaskSpec_ReplicateReceive{ReplicateReceive: &agentv1.ReplicateReceive{
			Right: &agentv1.ReplicationRight{Id: "r0"}, Steps: []*agentv1.ReplicationStep{{From: "@s1", FromGuid: 1, To: "s2", ToGuid: 2}}, Raw: true,
			Cursor: &agentv1.ZfsSnapshotID{Dataset: "backup/vm", Name: "c1", Guid: 1},
		}}
		w.op.GetReplicate().Decision = encoded(&debvisorv1.ReplicationDecision{
			Common: "@s1", EstimatedBytes: 50, Steps: []*debvisorv1.ReplicationStepPlan{{From: "@s1", To: "@s2"}},
		})
		w.op.GetReplicate().ToCreated = timestamppb.New(noon.Add(-5 * time.Second))
	case taskDestroy:
		spec.Kind = &agentv1.TaskSpec_ZfsSnapshotDestroy{ZfsSnapshotDestroy: &agentv1.ZfsSnapshotDestroy{Snapshots: []*agentv1.ZfsSnapshotID{{Guid: 2}, {Guid: 3}}}}
	}
	t.Spec = encoded(spec)
	return t
}

func (w *world) answer(f []string) {
	w.t.Helper()
	a := &answer{key: opID + "/1", at: noon.Add(-time.Second)}
	if r := w.op.GetReplicate(); r.GetAttempt() > 0 {
		a.key = fmt.Sprintf("%s/%d", opID, r.GetAttempt())
	}
	in := &repldiff.Input{Job: jobID, Dataset: "tank/vm", TargetDataset: "backup/vm", Now: noon}
	side := func(guid uint64, guids ...uint64) repldiff.Side {
		s := repldiff.Side{Dataset: &agentv1.ZfsDataset{Guid: guid, ReplicationJob: jobID}}
		for _, g := range guids {
			s.Snapshots = append(s.Snapshots, &agentv1.ZfsSnapshot{Name: fmt.Sprint("s", g), Guid: g, CreateTxg: g, Created: noon.Unix() - 100 + int64(g)})
		}
		return s
	}
	in.Source, in.Target = side(1000, 1, 2, 3), side(2000, 1)
	switch f[0] {
	case "error":
		kind := errdefs.FailedPrecondition
		if f[1] == "NO_SESSION" {
			kind = errdefs.Unavailable
		}
		a.err = errdefs.New(kind, f[1], "no answer: %s", f[1])
		if len(f) > 2 {
			a.refused = maxRefused
		}
	case "listing":
		a.frees = 77
		a.listing = &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{{Name: "tank/vm"}}}
		for g := uint64(1); g <= 5; g++ {
			s := &agentv1.ZfsSnapshot{Dataset: "tank/vm", Name: fmt.Sprint("s", g), Guid: g, CreateTxg: g, Created: noon.Unix() - 100 + int64(g), Operation: "op-0"}
			for _, held := range f[1:] {
				if held == s.GetName() {
					s.Holds = []string{"legal"}
				}
			}
			a.listing.Snapshots = append(a.listing.Snapshots, s)
		}
	default:
		switch f[1] {
		case "old":
			a.at = noon.Add(-time.Hour)
			a.plan = repldiff.Decide(in)
		case "earlier":
			a.key = "another"
		case "nothing", "unmarked":
			in.Target = side(2000, 1, 2, 3)
			a.plan = repldiff.Decide(in)
			a.plan.Unmarked = f[1] == "unmarked"
		case "diverged":
			in.RefuseDiverged, in.Target = true, side(2000, 9)
			a.plan = repldiff.Decide(in)
		default:
			a.plan = repldiff.Decide(in)
		}
	}
	w.at.answer = a
}

// told is a step in words: its name, the operation's code or what it waits for,
// its task, and what is asked.
func told(s *step, q *question) string {
	var b strings.Builder
	if s != nil {
		b.WriteString(string(s.name))
		switch {
		case s.op.GetErrorCode() != "":
			b.WriteString(" " + s.op.GetErrorCode())
		case s.name == stepNote:
			b.WriteString(" " + s.op.GetStep())
		case s.task != nil:
			b.WriteString(" " + strings.TrimPrefix(s.task.GetId(), opID+"/"))
		case s.name == stepAgain:
			fmt.Fprintf(&b, " %d %s in %v", s.op.GetReplicate().GetAttempt(), strings.ToLower(strings.TrimPrefix(s.op.GetReplicate().GetPhase().String(), "REPLICATE_PHASE_")),
				s.op.GetReplicate().GetAttemptAt().AsTime().Sub(noon))
		}
		if s.job != nil && s.job.GetCursorGuid() != 1 {
			fmt.Fprintf(&b, " cursor %d", s.job.GetCursorGuid())
		}
	}
	if q != nil {
		b.WriteString(" ask")
	}
	return strings.TrimSpace(b.String())
}

// check decides, and sees to what is so of every step.
func check(t *testing.T, kind, facts, want string) *step {
	t.Helper()
	snapshot, entry, at := records(t, kind, facts)
	before := proto.CloneOf(entry.Value)
	s, q := decide(snapshot, entry, at)
	if got := told(s, q); got != want {
		t.Errorf("%s: %q, want %q", facts, got, want)
	}
	if !proto.Equal(before, entry.Value) {
		t.Errorf("%s: the record was changed", facts)
	}
	if s == nil {
		return nil
	}
	ended := task.OpEnded(s.op.GetState())
	frees := 0
	for _, key := range s.change.Deletes {
		if strings.Contains(key, "/inuse/") {
			frees++
		}
	}
	if ended != (frees == 2) {
		t.Errorf("%s: it is %s and frees %v", facts, s.op.GetState(), s.change.Deletes)
	}
	for _, entry := range snapshot.TasksOf(opID) {
		if ended && !task.Ended(task.State(entry.Value.GetState())) {
			t.Errorf("%s: it ends while task %s is at work", facts, entry.Value.GetId())
		}
	}
	if s.change.Require[0] != store.Unchanged(store.OperationKey(opID), 5) {
		t.Errorf("%s: on the ground of %v", facts, s.change.Require)
	}
	return s
}
