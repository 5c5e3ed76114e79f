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
	case KindPrune:
		w.op.Detail = &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{
			Node: "a", Datasets: []string{"tank"}, Recursive: true, Retention: encoded(&debvisorv1.RetentionPolicy{KeepLast: 1}),
		}}
	default:
		w.op.Detail = &storev1.Operation_Replicate{Replicate: &storev1.Replicate{
			JobId: jobID, Source: "a", Target: "b", Dataset: "tank/vm", TargetDataset: "backup/vm", Snapshot: "dv-1",
		}}
	}
	for _, id := range []string{"a", "b"} {
		w.d.Nodes.Put(id, &storev1.Node{Id: id}, 3)
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
	case "other":
		for i := range n(1) {
			id := fmt.Sprint("op-other-", i)
			w.d.Operations.Put(id, &storev1.Operation{Id: id, Kind: KindRun, State: task.OpRunning, Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{Source: "a", Target: "c"}}}, 3)
		}
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
		w.taskFact(f, n)
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

func TestTakingSnapshots(t *testing.T) {
	for facts, want := range map[string]string{
		"":                                    "task 1/zfs-snapshot",
		"down a":                              "note waiting for the agent of a, which is not heard",
		"nozfs a":                             "note waiting for ZFS of a, which does not answer: no module",
		"nonode a":                            "fail NODE_NOT_FOUND",
		"cancel":                              "cancelled CANCELLED",
		"running,task 1 zfs-snapshot running": "note taking snapshots on a",
		"running,task 1 zfs-snapshot running,down a":                        "note taking snapshots on a: waiting for the agent of a, which is not heard",
		"running,cancel,task 1 zfs-snapshot running":                        "cancel-task 1/zfs-snapshot",
		"running,cancel,task 1 zfs-snapshot running,asked":                  "note cancelling",
		"running,cancel,task 1 zfs-snapshot succeeded":                      "succeed",
		"running,task 1 zfs-snapshot succeeded":                             "succeed",
		"running,cancel,task 1 zfs-snapshot cancelled CANCELLED":            "cancelled CANCELLED",
		"running,task 1 zfs-snapshot failed NO_SPACE":                       "fail NO_SPACE",
		"running,task 1 zfs-snapshot failed SNAPSHOT_EXISTS":                "fail SNAPSHOT_EXISTS",
		"running,task 1 zfs-snapshot failed INTERRUPTED,interrupted":        "task 2/zfs-snapshot",
		"running,cancel,task 1 zfs-snapshot failed INTERRUPTED,interrupted": "cancelled CANCELLED",
		"running,task 1 zfs-snapshot failed POOL_SUSPENDED,interrupted":     "task 2/zfs-snapshot",
		"running,task 1 zfs-snapshot running,nonode a":                      "node-gone 1/zfs-snapshot",
		"running,task 1 zfs-snapshot running,off a":                         "node-gone 1/zfs-snapshot",
		"running,task 1 zfs-snapshot failed NODE_OFF":                       "fail NODE_OFF",
		"running,task 1 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 2 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 3 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 4 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 5 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 6 zfs-snapshot failed POOL_SUSPENDED,interrupted": "fail POOL_SUSPENDED",
	} {
		check(t, KindCreate, facts, want)
	}
	s := check(t, KindCreate, "", "task 1/zfs-snapshot")
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
		t.Fatal(err)
	}
	if c := spec.GetZfsSnapshotCreate(); c.GetName() != "dv-1" || c.GetOperation() != opID || c.GetSet() != opID || c.GetLabel() != "l" || len(c.GetDatasets()) != 2 {
		t.Errorf("it is told %v", c)
	}
}

func TestRemovingSnapshots(t *testing.T) {
	for facts, want := range map[string]string{
		"":                      "note asking a for its snapshots ask",
		"down a":                "note waiting for the agent of a, which is not heard",
		"cancel":                "cancelled CANCELLED",
		"error NO_SESSION":      "note asking a for its snapshots: no answer: NO_SESSION",
		"error ZFS_ERROR":       "note asking a for its snapshots: no answer: ZFS_ERROR",
		"error ZFS_ERROR again": "fail ZFS_ERROR",
		"answer earlier":        "note asking a for its snapshots ask",
		"listing":               "task 1/zfs-destroy",
		"listing,nojob":         "task 1/zfs-destroy",
		"listing s1 s2 s3 s4":   "succeed",
		"running,batch 1,task 1 zfs-destroy running":                        "note destroying snapshots on a, 0 so far",
		"running,batch 1,cancel,task 1 zfs-destroy running":                 "cancel-task 1/zfs-destroy",
		"running,batch 1,task 1 zfs-destroy succeeded,destroyed 2":          "batch-done",
		"running,batch 1,task 1 zfs-destroy succeeded":                      "fail INTERNAL",
		"running,batch 1,task 1 zfs-destroy failed POOL_SUSPENDED":          "batch-done",
		"running,task 1 zfs-destroy failed POOL_SUSPENDED,destroyed 1":      "fail POOL_SUSPENDED",
		"running,task 1 zfs-destroy succeeded,destroyed 2":                  "note asking a for its snapshots ask",
		"running,task 1 zfs-destroy cancelled CANCELLED,cancel,destroyed 1": "cancelled CANCELLED",
		"running,task 1 zfs-destroy failed INTERRUPTED,interrupted":         "note asking a for its snapshots ask",
		"running,batch 1": "fail BROKEN_RECORD",
	} {
		check(t, KindPrune, facts, want)
	}
	for facts, want := range map[string]string{
		"listing":       "task 1/zfs-destroy",
		"listing s1 s4": "task 1/zfs-destroy", // others' are nobody's business
		"listing s3":    "fail SNAPSHOT_NEEDED",
	} {
		check(t, KindDelete, facts, want)
	}
	for kind, want := range map[string]string{KindPrune: "[2 3 4]", KindDelete: "[2 3]"} {
		s := check(t, kind, "listing", "task 1/zfs-destroy")
		var spec agentv1.TaskSpec
		if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
			t.Fatal(err)
		}
		var guids []uint64
		for _, id := range spec.GetZfsSnapshotDestroy().GetSnapshots() {
			guids = append(guids, id.GetGuid())
		}
		// s1 is the cursor of the job, s5 the last.
		if got := fmt.Sprint(guids); got != want {
			t.Errorf("%s destroys %s, want %s", kind, got, want)
		}
	}
	s := check(t, KindPrune, "running,batch 1,task 1 zfs-destroy succeeded,destroyed 1,kept 3", "batch-done")
	if r := s.op.GetRemoveSnapshots(); r.GetRemoved() != 1 || r.GetFreedBytes() != 10 || len(r.GetKeptBecause()) != 1 || r.GetBatch() != 0 {
		t.Errorf("it counts %v", r)
	}
}

// TestWhatAnAgentKeptIsNotAskedForAgain: a pruning ends though a snapshot stays.
func TestWhatAnAgentKeptIsNotAskedForAgain(t *testing.T) {
	snapshot, entry, at := records(t, KindPrune, "running,task 1 zfs-destroy succeeded,destroyed 1,kept 2,kept 3,kept 4,listing")
	at.answer.key = opID + "/2"
	if s, q := decide(snapshot, entry, at); told(s, q) != "succeed" || s.op.GetRemoveSnapshots().GetKept() != 5 {
		t.Errorf("%s: %v", told(s, q), s.op)
	}
}

const pair = "running,phase send,task 1 replicate-receive "

func TestRuns(t *testing.T) {
	for facts, want := range map[string]string{
		"":         "begin",
		"cancel":   "cancelled CANCELLED",
		"nojob":    "fail JOB_NOT_FOUND",
		"deleting": "fail JOB_DELETING",
		"down b":   "note waiting for the agent of b, which is not heard",
		"nozfs a":  "note waiting for ZFS of a, which does not answer: no module",
		"nonode b": "fail NODE_NOT_FOUND",
		"other 1":  "begin",
		"other 2":  "note waiting for its turn: 2 replications leave a already, as many as may at once",
		"running":  "fail BROKEN_RECORD",

		"running,phase snapshot":                                                    "task 1/zfs-snapshot",
		"running,phase snapshot,cancel":                                             "cancelled CANCELLED",
		"running,phase snapshot,down b":                                             "note waiting for the agent of b, which is not heard",
		"running,phase snapshot,task 1 zfs-snapshot running":                        "note taking a snapshot on a",
		"running,phase snapshot,task 1 zfs-snapshot running,cancel":                 "cancel-task 1/zfs-snapshot",
		"running,phase snapshot,task 1 zfs-snapshot succeeded":                      "snapshot-taken",
		"running,phase snapshot,task 1 zfs-snapshot failed NO_SPACE":                "fail NO_SPACE",
		"running,phase snapshot,task 1 zfs-snapshot failed INTERRUPTED,interrupted": "again 2 snapshot in 3s",
		"running,phase snapshot,attempt 2,pause":                                    "note waiting to try again (attempt 2): it broke",

		"running,phase plan":                       "note asking a and b what they have ask",
		"running,phase plan,cancel":                "cancelled CANCELLED",
		"running,phase plan,nojob":                 "fail JOB_NOT_FOUND",
		"running,phase plan,down a":                "note waiting for the agent of a, which is not heard",
		"running,phase plan,error NO_SESSION":      "note asking a and b what they have: no answer: NO_SESSION",
		"running,phase plan,error ZFS_ERROR":       "note asking a and b what they have: no answer: ZFS_ERROR",
		"running,phase plan,error ZFS_ERROR again": "fail ZFS_ERROR",
		"running,phase plan,answer old":            "ask",
		"running,phase plan,answer new":            "receive 1/replicate-receive",
		"running,phase plan,answer new,cancel":     "cancelled CANCELLED",
		"running,phase plan,answer nothing":        "succeed cursor 3",
		"running,phase plan,answer unmarked":       "receive 1/replicate-receive",
		"running,phase plan,answer diverged":       "fail REPLICATION_DIVERGED",

		"running,phase receive,task 1 replicate-receive assigned":                                    "note preparing b",
		"running,phase receive,task 1 replicate-receive assigned,down b":                             "note preparing b: waiting for the agent of b, which is not heard",
		"running,phase receive,task 1 replicate-receive assigned,cancel":                             "cancel-task 1/replicate-receive",
		"running,phase receive,task 1 replicate-receive running,asked,cancel":                        "note cancelling",
		"running,phase receive,task 1 replicate-receive running,address":                             "send 1/replicate-send",
		"running,phase receive,task 1 replicate-receive running,address,cancel":                      "cancel-task 1/replicate-receive",
		"running,phase receive,task 1 replicate-receive failed TARGET_CHANGED":                       "again 2 snapshot in 2s",
		"running,phase receive,nosnapshot,task 1 replicate-receive failed STREAM_FAILED,interrupted": "again 2 plan in 3s",
		"running,phase receive,task 1 replicate-receive failed STREAM_REFUSED":                       "fail STREAM_REFUSED",
		"running,phase receive,task 1 replicate-receive cancelled CANCELLED,cancel":                  "cancelled CANCELLED",
		"running,phase receive": "fail BROKEN_RECORD",

		pair + "running,task 1 replicate-send running":                                                                         "note sending",
		pair + "running,task 1 replicate-send running,down a":                                                                  "note sending: waiting for the agent of a, which is not heard",
		pair + "running,task 1 replicate-send running,cancel":                                                                  "cancel-task 1/replicate-receive",
		pair + "running,asked,task 1 replicate-send running,cancel":                                                            "cancel-task 1/replicate-send",
		pair + "running,asked,task 1 replicate-send running,asked,cancel":                                                      "note cancelling",
		pair + "failed NO_SPACE,task 1 replicate-send running":                                                                 "cancel-task 1/replicate-send",
		pair + "running,task 1 replicate-send failed INTERRUPTED,interrupted":                                                  "cancel-task 1/replicate-receive",
		pair + "succeeded,task 1 replicate-send running":                                                                       "note sending",
		pair + "succeeded,task 1 replicate-send succeeded,cursor s2 2":                                                         "succeed cursor 2",
		pair + "succeeded,task 1 replicate-send succeeded,cursor s2 2,cancel":                                                  "succeed cursor 2",
		pair + "succeeded,nosnapshot,more,task 1 replicate-send succeeded,cursor s2 2":                                         "again 2 plan in 0s cursor 2",
		pair + "succeeded,more,task 1 replicate-send succeeded,cursor s2 2,cancel":                                             "cancelled CANCELLED cursor 2",
		pair + "cancelled CANCELLED,task 1 replicate-send cancelled CANCELLED,cancel":                                          "cancelled CANCELLED",
		pair + "failed NO_SPACE,task 1 replicate-send cancelled CANCELLED":                                                     "fail NO_SPACE",
		pair + "cancelled CANCELLED,task 1 replicate-send failed INTERRUPTED,interrupted,nosnapshot":                           "again 2 plan in 3s",
		pair + "succeeded,task 1 replicate-send failed INTERRUPTED,interrupted,nosnapshot":                                     "again 2 plan in 3s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot":                         "again 2 plan in 2s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 2":                "again 2 plan in 8s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 5":                "fail STREAM_BROKEN",
		pair + "failed STREAM_BROKEN,interrupted,bytes 20000000,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 5": "again 2 plan in 2s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,cursor s2 2,nosnapshot,broken 5":    "again 2 plan in 2s cursor 2",
		pair + "failed INTERRUPTED,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 5":                  "again 2 plan in 3s",
		pair + "failed DESTINATION_MODIFIED,task 1 replicate-send cancelled CANCELLED,nosnapshot":                              "again 2 plan in 2s",
		pair + "running,task 1 replicate-send running,nonode b":                                                                "node-gone 1/replicate-receive",
		pair + "running,task 1 replicate-send running,off a":                                                                   "node-gone 1/replicate-send",
		pair + "failed NODE_GONE,task 1 replicate-send running":                                                                "cancel-task 1/replicate-send",
		pair + "failed NODE_GONE,task 1 replicate-send cancelled CANCELLED":                                                    "fail NODE_GONE",
		pair + "running,task 1 replicate-send running,nojob":                                                                   "cancel-task 1/replicate-receive",
	} {
		check(t, KindRun, facts, want)
	}
}

// TestWhatARunSays: what the agents are told, and what the job comes to.
func TestWhatARunSays(t *testing.T) {
	s := check(t, KindRun, "running,phase plan,answer new", "receive 1/replicate-receive")
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
		t.Fatal(err)
	}
	r := spec.GetReplicateReceive()
	if len(r.GetSteps()) != 2 || r.GetTargetGuid() != 2000 || r.GetCursor().GetGuid() != 1 || r.GetRight().GetSourceGuid() != 1000 ||
		r.GetRight().GetId() != "r1" || r.GetRight().GetSendTaskId() != "op-1/1/replicate-send" || r.GetRight().GetTargetDataset() != "backup/vm" ||
		s.task.GetNode() != "b" || s.task.GetResource() != "zfs-copy/backup/vm" || s.op.GetReplicate().GetToCreated().GetSeconds() != noon.Unix()-97 {
		t.Errorf("the target is told %v; %v", r, s.op)
	}
	s = check(t, KindRun, "running,phase receive,task 1 replicate-receive running,address", "send 1/replicate-send")
	if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
		t.Fatal(err)
	}
	if send := spec.GetReplicateSend(); send.GetTargetAddress() != "b:7500" || send.GetRight().GetId() != "r0" || !send.GetRaw() || send.GetBandwidthMib() != 7 ||
		send.GetCursor().GetName() != "s1" || send.GetCursor().GetDataset() != "tank/vm" || len(send.GetSteps()) != 1 || s.task.GetNode() != "a" {
		t.Errorf("the source is told %v", send)
	}
	s = check(t, KindRun, pair+"succeeded,bytes 40,task 1 replicate-send succeeded,cursor s2 2,bytes 42", "succeed cursor 2")
	if j := s.job; j.GetCursorName() != "s2" || j.GetCursorCreated().GetSeconds() != noon.Unix()-5 || j.GetBytesTotal() != 142 || j.GetLastBytes() != 42 ||
		j.GetLastDurationMs() != 2000 || j.GetLastSuccess() == nil || j.GetLastOperation() != opID || len(j.GetDecision()) == 0 || j.GetLagBytes() != 0 {
		t.Errorf("the job comes to %v", j)
	}
	s = check(t, KindRun, pair+"failed NO_SPACE,task 1 replicate-send cancelled CANCELLED", "fail NO_SPACE")
	if j := s.job; j.GetLastErrorCode() != "NO_SPACE" || j.GetLastSuccess() != nil || j.GetLagBytes() != 50 || j.GetCursorGuid() != 1 {
		t.Errorf("after a failure the job is %v", j)
	}
	_, q := decide3(t, "running,phase plan,confirmed,last DESTINATION_MODIFIED")
	if q == nil || !q.more.Modified || q.more.Confirmed != "plan-1" || q.job.GetId() != jobID {
		t.Errorf("it asks %+v", q)
	}
}

func decide3(t *testing.T, facts string) (*step, *question) {
	t.Helper()
	snapshot, entry, at := records(t, KindRun, facts)
	return decide(snapshot, entry, at)
}

func TestEndingJobs(t *testing.T) {
	for facts, want := range map[string]string{
		"deleting":                   "task source-1/replication-release",
		"deleting,down a":            "task target-1/replication-release",
		"deleting,down a,down b":     "note waiting for the agent of a, which is not heard; a node that is gone for good is forgotten by removing it from the cluster",
		"deleting,cancel":            "cancelled CANCELLED",
		"deleting,nonode a":          "task target-1/replication-release",
		"deleting,nonode a,nonode b": "succeed",
		"nojob":                      "succeed",
		"running,deleting,task source-1 replication-release running":                                                                    "task target-1/replication-release",
		"running,deleting,task source-1 replication-release running,task target-1 replication-release succeeded":                        "note releasing what the job keeps on a",
		"running,deleting,task source-1 replication-release running,task target-1 replication-release succeeded,cancel":                 "cancel-task source-1/replication-release",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release succeeded":                      "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release succeeded,cancel":               "succeed",
		"running,deleting,task source-1 replication-release succeeded,nonode b":                                                         "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release running,nonode b":               "node-gone target-1/replication-release",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed NODE_GONE,nonode b":      "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed NODE_OFF,off b":          "note waiting for the agent of b, which is not heard; a node that is gone for good is forgotten by removing it from the cluster",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed DATASET_NOT_FOUND":       "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed ZFS_ERROR":               "fail ZFS_ERROR",
		"running,deleting,task source-1 replication-release failed INTERRUPTED,interrupted,task target-1 replication-release succeeded": "task source-2/replication-release",
	} {
		s := check(t, KindEnd, facts, want)
		if s == nil || s.name != stepSucceed || strings.Contains(facts, "nojob") {
			continue
		}
		found := false
		for _, key := range s.change.Deletes {
			found = found || key == store.ReplicationKey(jobID)
		}
		if !found {
			t.Errorf("%s: the job stays", facts)
		}
	}
}

func TestRPO(t *testing.T) {
	options := encoded(&debvisorv1.ReplicationOptions{RpoSeconds: 600})
	at := func(minutes int) *timestamppb.Timestamp {
		return timestamppb.New(noon.Add(time.Duration(minutes) * time.Minute))
	}
	for _, c := range []struct {
		name string
		job  *storev1.ReplicationJob
		want string
	}{
		{"none", &storev1.ReplicationJob{CreatedAt: at(-100)}, ""},
		{"kept", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-9)}, ""},
		{"just kept", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-10)}, ""},
		{"missed", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-11)}, "RPO_MISSED since -1m0s"},
		{"missed still", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-11), RpoMissedSince: at(-1)}, ""},
		{"kept again", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-1), RpoMissedSince: at(-1)}, "RPO_KEPT"},
		{"not wanted any more", &storev1.ReplicationJob{CursorGuid: 1, CursorCreated: at(-100), RpoMissedSince: at(-1)}, "RPO_KEPT"},
		{"never ran, and is new", &storev1.ReplicationJob{Options: options, CreatedAt: at(-9)}, ""},
		{"never ran", &storev1.ReplicationJob{Options: options, CreatedAt: at(-30)}, "RPO_MISSED since -20m0s"},
		{"ran, nobody knows when its snapshot was taken", &storev1.ReplicationJob{Options: options, CreatedAt: at(-30), CursorGuid: 1, LastSuccess: at(-5)}, ""},
		{"being deleted", &storev1.ReplicationJob{Options: options, CreatedAt: at(-30), Deleting: true}, ""},
		{"of a hundred years and more", &storev1.ReplicationJob{Options: encoded(&debvisorv1.ReplicationOptions{RpoSeconds: 1 << 63}), CreatedAt: at(-30)}, ""},
	} {
		c.job.Id = jobID
		s := judgeRPO(cluster.Entry[*storev1.ReplicationJob]{Value: c.job, ModRevision: 4}, noon)
		got := ""
		if s != nil {
			got = s.audit.Error
			if since := s.job.GetRpoMissedSince(); since != nil {
				got += " since " + since.AsTime().Sub(noon).String()
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
