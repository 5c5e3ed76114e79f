package migrate

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	opID = "op-1"
	vmID = "6f2f3a1e-0000-4000-8000-000000000001"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// facts say what the records hold, in words:
//
//	pending | running N    the operation, and its attempt
//	cancel                 its end was asked for
//	switched               it is past the switch-over
//	age D                  the attempt began that long ago
//	receive STATE [words]  the target's task: ready, interrupted
//	send STATE [words]     the source's: copying, switching, gone, interrupted, cancelled
//	down NODE              its agent is not heard
//	off NODE               nor will it be: an operator says that it is powered off
//	holds NODE             the node reports the VM's UUID
//	stopped                the VM is shut off on a
//
// STATE is assigned, accepted, running, succeeded, failed or cancelled.
func records(t *testing.T, facts string) (*cluster.Snapshot, cluster.Entry[*storev1.Operation]) {
	t.Helper()
	op := &storev1.Operation{
		Id: opID, Kind: Kind, Resources: []string{"vm/" + vmID}, State: task.OpPending,
		Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmUuid: vmID}},
	}
	m := op.GetMigrate()
	d := cluster.Empty().Draft()
	down, holds, off, state := "", "", "", debvisorv1.VMState_VM_STATE_RUNNING
	var tasks []*storev1.Task
	for fact := range strings.SplitSeq(facts, ",") {
		w := strings.Fields(fact)
		switch w[0] {
		case "pending":
		case "running":
			op.State, m.Source, m.Target, m.WasRunning, m.VmName = task.OpRunning, "a", "b", true, "web"
			m.Attempt, m.AttemptAt = uint32(w[1][0]-'0'), timestamppb.New(noon.Add(-time.Second))
			m.Right = encode(t, &agentv1.MigrationRight{Id: "right"})
		case "cancel":
			op.CancelRequested = true
		case "switched":
			m.SwitchedOver = true
		case "age":
			age, err := time.ParseDuration(w[1])
			if err != nil {
				t.Fatal(err)
			}
			m.AttemptAt = timestamppb.New(noon.Add(-age))
		case "receive", "send":
			tasks = append(tasks, taskRecord(t, w))
		case "down":
			down = w[1]
		case "off":
			down, off = w[1], w[1]
		case "holds":
			holds = w[1]
		case "disks":
			m.Disks = [][]byte{encode(t, &agentv1.DiskTransfer{Target: "vda"})}
		case "stopped":
			state = debvisorv1.VMState_VM_STATE_SHUTOFF
		default:
			t.Fatalf("what is %q?", fact)
		}
	}
	for _, k := range tasks {
		k.Id = opID + "/" + string(rune('0'+m.GetAttempt())) + "/" + k.GetId()
		d.Tasks.Put(k.GetId(), k, 7)
	}
	world(t, d, down, holds, off, state)
	d.Operations.Put(opID, op, 5)
	d.InUse.Put("vm/"+vmID, opID, 5)
	s := d.Snapshot(9)
	return s, s.Operations[opID]
}

// world is two nodes, a with the VM and b with room.
func world(t *testing.T, d *cluster.Draft, down, holds, off string, state debvisorv1.VMState) {
	t.Helper()
	for _, id := range []string{"a", "b"} {
		node := &storev1.Node{Id: id}
		if id == off {
			node.OffConfirmedAt, node.OffConfirmedBy, node.OffReason = timestamppb.New(noon.Add(time.Minute)), "ann", "I pulled the plug"
			node.OffLastSeen = timestamppb.New(noon)
		}
		d.Nodes.Put(id, node, 3)
		status := &storev1.NodeStatus{
			Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, PeerAddress: id + ":7445", LastSeen: timestamppb.New(noon),
			Capacity: encode(t, &debvisorv1.NodeCapacity{Cpus: 8, MemoryBytes: 64 << 30, MemoryAvailableBytes: 60 << 30}),
		}
		if id == "a" || id == holds {
			status.Domains = []string{vmID}
		}
		if id == down {
			status.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
		}
		d.Statuses.Put(id, status, 3)
	}
	d.VMs.Put(vmID, &storev1.VM{Uuid: vmID, Name: "web", Node: "a", Generation: 4, Domain: encode(t, &agentv1.Domain{
		Uuid: vmID, Name: "web", State: state, MemoryBytes: 1 << 30, Persistent: true,
	})}, 4)
}

func taskRecord(t *testing.T, w []string) *storev1.Task {
	t.Helper()
	state, ok := agentv1.TaskState_value["TASK_STATE_"+strings.ToUpper(w[1])]
	if !ok {
		t.Fatalf("what state is %q?", w[1])
	}
	k := &storev1.Task{Id: "migrate-" + w[0], OperationId: opID, State: storev1.TaskState(state), Node: map[string]string{"send": "a", "receive": "b"}[w[0]]}
	progress, outcome := &agentv1.TaskProgress{}, &agentv1.TaskOutcome{ErrorMessage: "libvirt says no"}
	if w[1] == "succeeded" {
		outcome = &agentv1.TaskOutcome{DowntimeMs: 210}
	}
	sending := func() *agentv1.MigrateSendProgress {
		if progress.GetMigrateSend() == nil {
			progress.Kind = &agentv1.TaskProgress_MigrateSend{MigrateSend: &agentv1.MigrateSendProgress{}}
		}
		return progress.GetMigrateSend()
	}
	for _, word := range w[2:] {
		switch word {
		case "ready":
			progress.Kind = &agentv1.TaskProgress_MigrateReceive{MigrateReceive: &agentv1.MigrateReceiveProgress{TunnelAddress: "b:7450"}}
		case "copying":
			sending().BytesTotal, sending().BytesDone, sending().BytesRemaining = 1000, 400, 600
		case "switching":
			sending().SwitchingOver = true
		case "gone":
			outcome.Side = &agentv1.Side{State: agentv1.SideState_SIDE_STATE_ABSENT, Ended: true}
		case "here":
			outcome.Side = &agentv1.Side{State: agentv1.SideState_SIDE_STATE_PAUSED, Ended: true}
		case "shut":
			outcome.Side = &agentv1.Side{State: agentv1.SideState_SIDE_STATE_SHUTOFF, Ended: true}
		case "off": // as told ends it
			outcome.ErrorCode, outcome.ErrorMessage = codeOff, "a is powered off, by the word of ann (I pulled the plug)"
			outcome.Side = &agentv1.Side{State: agentv1.SideState_SIDE_STATE_ABSENT, Ended: true}
			if w[0] == "send" {
				outcome.Side.State = agentv1.SideState_SIDE_STATE_SHUTOFF
			}
		case "interrupted":
			outcome.Interrupted = true
		case "notletin":
			outcome.ErrorCode = codeTunnelRefused
		case "hungup":
			outcome.ErrorCode, outcome.ErrorMessage = codeQEMUEnded, "QEMU on b ended"
		case "libvirt":
			outcome.ErrorCode, outcome.ErrorMessage = codeLibvirt, "Unable to write"
		case "asked":
			k.CancelRequested = true
		case "just":
			k.EndedAt = timestamppb.New(noon.Add(-time.Second))
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	k.Progress = encode(t, progress)
	if task.Ended(task.State(k.GetState())) {
		k.Outcome = encode(t, outcome)
	}
	return k
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEachStepFollowsFromTheRecords(t *testing.T) {
	for _, c := range []struct{ facts, want string }{
		{"pending", "begin"},
		{"pending, cancel", "cancelled"},
		{"pending, down b", "progress: waiting"},
		{"pending, holds b", "fail: PLAN_REFUSED"},

		{"running 1, receive assigned", "progress: preparing b"},
		{"running 1, receive running", "progress: preparing b"},
		{"running 1, receive running, down b", "progress: not heard"},
		{"running 1, receive running ready", "send"},
		{"running 1, cancel, receive running ready", "cancel-task migrate-receive"},
		{"running 1, cancel, receive running ready asked", "none"},
		{"running 1, cancel, receive cancelled", "cancelled"},
		{"running 1, receive failed", "fail: MIGRATION_FAILED"},
		{"running 1, receive failed interrupted", "begin"},

		{"running 1, receive running ready, send assigned", "progress: starting"},
		{"running 1, receive running ready, send running copying", "copying"},
		{"running 1, cancel, receive running ready, send running copying", "cancel-task migrate-send"},
		{"running 1, receive running ready, send running copying switching", "switched-over"},
		{"running 1, receive running ready, send succeeded gone", "switched-over"},
		{"running 1, switched, receive running ready, send succeeded gone", "progress: switching over"},
		{"running 1, switched, receive succeeded, send running copying", "progress: switching over"},
		{"running 1, receive failed, send running copying", "cancel-task migrate-send"},
		{"running 1, receive running ready, send failed", "cancel-task migrate-receive"},

		{"running 1, switched, receive succeeded, send succeeded gone", "succeed"},
		{"running 1, cancel, switched, receive succeeded, send succeeded gone", "succeed"},
		{"running 1, switched, receive succeeded, send failed", "fail: SOURCE_NOT_GONE"},
		{"running 1, receive failed, send failed", "fail: MIGRATION_FAILED"},
		{"running 1, receive failed gone, send failed here", "fail: failed: web stays on a: libvirt says no"},
		{"running 1, receive failed here, send failed shut", "fail: failed: both a and b have web and neither lets it run"},
		{"running 1, receive failed here, send failed gone", "fail: failed: web is on b now, but not as it was"},
		{"running 1, disks, receive failed here, send failed gone", "fail: failed: web is on b now, but not as it was: look at it there; files of its disks may be left on a"},
		{"running 1, receive failed gone, send failed gone", "fail: failed: neither a nor b has web any more"},
		{"running 1, cancel, receive failed, send cancelled", "cancelled"},
		// It was asked for too late: the VM has left, whatever came of it there.
		{"running 1, cancel, switched, receive failed here, send succeeded gone", "fail: failed: web is on b now, but not as it was"},
		{"running 1, cancel, switched, receive failed here interrupted, send succeeded gone", "fail: failed: web is on b now"},
		{"running 1, receive failed, send failed interrupted", "begin"},
		{"running 5, receive failed, send failed interrupted", "fail: INTERRUPTED"},
		{"running 1, receive failed notletin, send failed interrupted", "fail: MIGRATION_FAILED"},
		{"running 1, receive failed hungup gone, send failed libvirt here", "fail: failed: web stays on a: QEMU on b ended: Unable to write"},
		{"running 1, receive failed hungup gone, send failed here", "fail: failed: web stays on a: libvirt says no"},
		// The target's inventory may still show what the attempt left.
		{"running 1, holds b, receive failed, send failed interrupted", "progress: waiting"},
		{"running 1, age 11m, holds b, receive failed, send failed interrupted", "fail: PLAN_REFUSED"},
		{"running 1, age 5h, holds b, receive failed, send failed interrupted just", "progress: waiting"},
		{"running 1, down b, receive failed, send failed interrupted", "progress: waiting"},
		{"running 1", "fail: BROKEN_RECORD"},
		// Nothing is left to those tasks that a node without power will do.
		{"running 1, off b, receive running ready", "node-off migrate-receive"},
		{"running 1, off b, receive running ready, send running copying", "node-off migrate-receive"},
		{"running 1, off a, receive running ready, send running copying", "node-off migrate-send"},
		{"running 1, off b, receive failed off, send running copying", "cancel-task migrate-send"},
		{"running 1, off b, receive failed off, send failed here interrupted", "fail: NODE_OFF"},
		{"running 1, off b, receive failed off, send failed here", "fail: failed: web stays on a"},
		{"running 1, off a, receive failed gone, send failed off", "fail: failed: web stays on a: a is powered off"},
		{"running 1, switched, off b, receive failed off, send succeeded gone", "fail: failed: web had just moved to b when that lost its power"},
		{"running 1, switched, off a, receive succeeded, send running copying", "node-off migrate-send"},
		{"running 1, switched, off a, receive succeeded, send failed off", "succeed"},
		// A guest that has stopped is not moved as one that was shut off.
		{"running 1, stopped, age 1m, receive failed, send failed interrupted", "fail: GUEST_STOPPED"},
		{"running 1, stopped, age 1s, receive failed, send failed interrupted", "progress: waiting"},
		{"pending, off b", "progress: waiting"}, // others may come: no target was asked for
		{"pending, off a", "fail: PLAN_REFUSED"},
	} {
		s, entry := records(t, c.facts)
		got := decide(s, entry, moment{now: noon, rightID: "fresh", term: task.Term{Revision: 8}})
		if !matches(got, c.want) {
			t.Errorf("%s: got %s, want %s", c.facts, describe(got), c.want)
		}
		if after, _ := records(t, c.facts); !proto.Equal(after.Operations[opID].Value, entry.Value) {
			t.Errorf("%s: deciding changed the record it was decided on", c.facts)
		}
	}
}

// describe writes a step as the cases do.
func describe(s *step) string {
	if s == nil {
		return "none"
	}
	text := string(s.name)
	if strings.HasPrefix(s.log, "ending ") {
		text += " " + s.log
	}
	return text + ": " + s.log
}

func matches(s *step, want string) bool {
	name, detail, _ := strings.Cut(want, ": ")
	name, which, _ := strings.Cut(name, " ")
	if s == nil {
		return want == "none"
	}
	if string(s.name) != name || !strings.Contains(s.log, which) {
		return false
	}
	if detail == "" {
		return true
	}
	if strings.Contains(s.log, detail) {
		return true
	}
	return s.errorCode == detail
}

func TestARefusalByTheLeaderSaysWhatItMeans(t *testing.T) {
	for facts, want := range map[string][]string{
		"pending, holds b": {"cannot move, and nothing was begun: ", "b: "},
		"running 1, age 11m, holds b, receive failed, send failed interrupted": {"attempt 1 to move VM ", " broke off (", "another cannot begin: "},
	} {
		s, entry := records(t, facts)
		op := decide(s, entry, moment{now: noon, rightID: "fresh", term: task.Term{Revision: 8}}).op
		for _, text := range want {
			if !strings.Contains(op.GetErrorMessage(), text) {
				t.Errorf("%s: %q does not say %q", facts, op.GetErrorMessage(), text)
			}
		}
		if about := op.GetErrorContext(); !strings.Contains(about["reasons"], "b:UUID_CLASH") || about["vm"] == "" {
			t.Errorf("%s: context %v", facts, about)
		}
	}
	s, entry := records(t, "pending, down b")
	if op := decide(s, entry, moment{now: noon}).op; !strings.HasPrefix(op.GetStep(), "waiting to begin: ") || op.GetState() != task.OpPending {
		t.Errorf("what passes: %v", op)
	}
}

// A tenant's callers read what comes of the moves of its VMs, whoever asked.
func TestARefusalNamesNothingThatIsAnotherTenants(t *testing.T) {
	const other = "6f2f3a1e-0000-4000-8000-00000000000f"
	for tenant, want := range map[string]string{
		"":       "another VM there is called web too (UUID " + other + ")",
		"acme":   "another VM there is called web too",
		"globex": "no VM has the UUID",
	} {
		s, entry := records(t, "pending")
		d := s.Draft()
		vm, op := proto.CloneOf(s.VMs[vmID].Value), proto.CloneOf(entry.Value)
		vm.Policy, op.Tenant = encode(t, &debvisorv1.VMPolicy{Tenant: "acme"}), tenant
		d.VMs.Put(vmID, vm, 10)
		d.VMs.Put(other, &storev1.VM{Uuid: other, Name: "web", Node: "b", Policy: encode(t, &debvisorv1.VMPolicy{Tenant: "globex"})}, 10)
		d.Operations.Put(opID, op, 10)
		s = d.Snapshot(10)
		got := decide(s, s.Operations[opID], moment{now: noon, rightID: "fresh", term: task.Term{Revision: 8}}).op
		if message := got.GetErrorMessage(); !strings.Contains(message, want) || tenant != "" && strings.Contains(message, other) || got.GetState() != task.OpFailed {
			t.Errorf("of %q: %v", tenant, got)
		}
	}
}

func TestProgressIsWrittenOnceASecond(t *testing.T) {
	s, entry := records(t, "running 1, receive running ready, send running copying")
	first := decide(s, entry, moment{now: noon})
	if first == nil || first.name != stepCopying {
		t.Fatalf("the first figures: got %s", describe(first))
	}
	entry.Value = first.op
	if again := decide(s, entry, moment{now: noon.Add(2 * time.Second)}); again != nil {
		t.Errorf("the same figures are written again: %s", describe(again))
	}
	s, _ = records(t, "running 1, receive running ready, send running copying")
	grown := proto.CloneOf(entry.Value)
	was := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(grown.GetProgress(), was); err != nil {
		t.Fatal(err)
	}
	was.BytesDone = 1
	grown.Progress = encode(t, was)
	entry.Value = grown
	if soon := decide(s, entry, moment{now: noon.Add(300 * time.Millisecond)}); soon != nil {
		t.Errorf("new figures are written after 300 ms: %s", describe(soon))
	}
	if later := decide(s, entry, moment{now: noon.Add(1100 * time.Millisecond)}); later == nil || later.name != stepProgress {
		t.Errorf("new figures after 1.1 s: got %s", describe(later))
	}
}

func TestSuccessMovesThePlacementInOneTransaction(t *testing.T) {
	s, entry := records(t, "running 1, switched, receive succeeded, send succeeded gone")
	got := decide(s, entry, moment{now: noon})
	if got == nil || got.name != stepSucceed {
		t.Fatalf("got %s", describe(got))
	}
	if got.vm.GetNode() != "b" || got.vm.GetGeneration() != 5 {
		t.Errorf("the VM is placed on %s with generation %d, want b with 5", got.vm.GetNode(), got.vm.GetGeneration())
	}
	if len(got.change.Deletes) != 1 || !strings.HasSuffix(got.change.Deletes[0], "inuse/vm/"+vmID) {
		t.Errorf("freed: %v", got.change.Deletes)
	}
	if m := got.op.GetMigrate(); m.GetDowntimeMs() != 210 || len(m.GetRight()) != 0 || got.op.GetState() != task.OpSucceeded {
		t.Errorf("the operation ends as %v", got.op)
	}
}

func TestTheWordThatANodeIsOffEndsItsTaskAndSaysNoMoreThanIsKnown(t *testing.T) {
	s, entry := records(t, "running 1, off a, receive running ready, send running copying")
	got := decide(s, entry, moment{now: noon})
	if got == nil || got.name != stepOff {
		t.Fatalf("got %s", describe(got))
	}
	ended := got.task
	outcome := &agentv1.TaskOutcome{}
	if err := proto.Unmarshal(ended.GetOutcome(), outcome); err != nil {
		t.Fatal(err)
	}
	// SHUTOFF and not ABSENT: a copy that is whole must not run on this word alone.
	if outcome.GetSide().GetState() != agentv1.SideState_SIDE_STATE_SHUTOFF || !outcome.GetSide().GetEnded() || ended.GetState() != task.Recorded(task.Failed) {
		t.Errorf("the source's task is ended as %v with %v", ended.GetState(), outcome)
	}
	if !strings.Contains(outcome.GetErrorMessage(), "ann") || !strings.Contains(outcome.GetErrorMessage(), "I pulled the plug") {
		t.Errorf("it does not say who said it and why: %q", outcome.GetErrorMessage())
	}
}

func TestAVMThatWasLostOnItsWayBelongsToTheTarget(t *testing.T) {
	s, entry := records(t, "running 1, switched, off b, receive failed off, send succeeded gone")
	got := decide(s, entry, moment{now: noon})
	if got == nil || got.vm.GetNode() != "b" || got.vm.GetGeneration() != 5 {
		t.Fatalf("got %s with %v", describe(got), got.vm)
	}
}

func TestWhatCannotBeReadIsHeldUntilItsAgentsHaveEnded(t *testing.T) {
	s, entry := records(t, "running 1, receive running ready, send running copying")
	d := s.Draft()
	was := s.Tasks["op-1/1/migrate-send"].Value
	garbled := proto.CloneOf(was)
	garbled.Progress = []byte{0xff}
	d.Tasks.Put(was.GetId(), garbled, 8)
	if got := decide(d.Snapshot(10), entry, moment{now: noon}); !matches(got, "cancel-task migrate-receive") {
		t.Errorf("got %s", describe(got))
	}
}

func TestOnlySoManyMigrationsLeaveOrReachANodeAtOnce(t *testing.T) {
	for _, c := range []struct {
		what   string
		others map[string][2]string // operation: source, target
		limit  uint32
		want   string
	}{
		{"one leaves", map[string][2]string{"op-2": {"a", "c"}}, 0, "begin"},
		{"two leave", map[string][2]string{"op-2": {"a", "c"}, "op-3": {"a", "d"}}, 0, "progress: 2 migrations leave a already"},
		{"two arrive", map[string][2]string{"op-2": {"c", "b"}, "op-3": {"d", "b"}}, 0, "progress: 2 migrations arrive on b already"},
		{"two elsewhere", map[string][2]string{"op-2": {"b", "c"}, "op-3": {"c", "a"}}, 0, "begin"},
		{"two leave where four may", map[string][2]string{"op-2": {"a", "c"}, "op-3": {"a", "d"}}, 4, "begin"},
		{"one leaves where one may", map[string][2]string{"op-2": {"a", "c"}}, 1, "progress: 1 migrations leave a already"},
	} {
		s, entry := records(t, "pending")
		d := s.Draft()
		d.Nodes.Put("a", &storev1.Node{Id: "a", ParallelMigrations: c.limit}, 3)
		for id, ends := range c.others {
			d.Operations.Put(id, &storev1.Operation{Id: id, Kind: Kind, State: task.OpRunning, Detail: &storev1.Operation_Migrate{
				Migrate: &storev1.Migrate{VmUuid: id, Source: ends[0], Target: ends[1]},
			}}, 4)
		}
		if got := decide(d.Snapshot(10), entry, moment{now: noon, rightID: "fresh"}); !matches(got, c.want) {
			t.Errorf("%s: got %s, want %s", c.what, describe(got), c.want)
		}
	}
}

func TestOptionsReachTheSource(t *testing.T) {
	s, entry := records(t, "running 1, receive running ready")
	m := entry.Value.GetMigrate()
	disk := &agentv1.DiskTransfer{Target: "vda", Path: "/srv/web.raw", Action: agentv1.DiskAction_DISK_ACTION_COPY_LIVE}
	m.Disks = [][]byte{encode(t, disk)}
	m.Options = encode(t, &debvisorv1.MigrateOptions{
		BandwidthMib: 100, DeadlineSeconds: 60, OnDeadline: debvisorv1.DeadlineAction_DEADLINE_ACTION_PAUSE, ParallelConnections: 4,
	})
	m.Method = int32(debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY)
	d := s.Draft()
	d.Nodes.Put("b", &storev1.Node{Id: "b", MigrationBandwidthMib: 50}, 3)
	got := decide(d.Snapshot(10), entry, moment{now: noon})
	if got == nil || got.task == nil {
		t.Fatalf("got %s", describe(got))
	}
	spec := &agentv1.TaskSpec{}
	if err := proto.Unmarshal(got.task.GetSpec(), spec); err != nil {
		t.Fatal(err)
	}
	want := &agentv1.MigrateSend{
		Right: &agentv1.MigrationRight{Id: "right"}, TargetPeerAddress: "b:7445", TunnelAddress: "b:7450", Resume: true,
		Disks: []*agentv1.DiskTransfer{disk}, BandwidthMib: 100, NodeBandwidthMib: 50, ParallelConnections: 4, AutoConverge: true,
		DeadlineMs: 60_000, PauseAtDeadline: true, StallMs: 120_000, ShutdownMs: 120_000,
	}
	if !proto.Equal(spec.GetMigrateSend(), want) {
		t.Errorf("the source is told\n%v\nwant\n%v", spec.GetMigrateSend(), want)
	}
	m.Disks = [][]byte{{0xff}}
	if got := decide(d.Snapshot(10), entry, moment{now: noon}); !matches(got, "cancel-task migrate-receive") {
		t.Errorf("a disk that cannot be read: got %s", describe(got))
	}
}

func TestWhatATunnelRefusedIsAuditedOnce(t *testing.T) {
	s, entry := records(t, "running 1, receive running ready, send running copying")
	d := s.Draft()
	receive := proto.CloneOf(s.Tasks["op-1/1/migrate-receive"].Value)
	receive.Progress = encode(t, &agentv1.TaskProgress{Kind: &agentv1.TaskProgress_MigrateReceive{
		MigrateReceive: &agentv1.MigrateReceiveProgress{TunnelAddress: "b:7450", Refused: 3, RefusedLast: "procedure 13 is not let in"},
	}})
	d.Tasks.Put(receive.GetId(), receive, 8)
	got := decide(d.Snapshot(10), entry, moment{now: noon})
	if got == nil || got.audit == nil || got.audit.Principal != "agent:a" || !strings.Contains(got.audit.Reason, "3 requests") ||
		!strings.Contains(got.audit.Reason, "procedure 13") || got.audit.Operation != opID {
		t.Fatalf("got %s with %+v", describe(got), got)
	}
	entry.Value = got.op
	if again := decide(d.Snapshot(10), entry, moment{now: noon}); again == nil || again.audit != nil {
		t.Errorf("the same is audited again: %s", describe(again))
	}
}

func TestSeveralStreamsGoWhereTheyHelp(t *testing.T) {
	for _, c := range []struct {
		what           string
		memory         uint64
		link           uint64
		cpus           uint32
		asked, limited uint32
		want           uint32
	}{
		{"a large guest between fast hosts", 32 << 30, 3_000_000_000, 32, 0, 0, 4},
		{"a small guest", 1 << 30, 3_000_000_000, 32, 0, 0, 1},
		{"a slow link", 32 << 30, 125_000_000, 32, 0, 0, 1},
		{"a link that nobody knows", 32 << 30, 0, 32, 0, 0, 1},
		{"few CPUs", 32 << 30, 3_000_000_000, 4, 0, 0, 1},
		{"a limit below one stream's", 32 << 30, 3_000_000_000, 32, 0, 500, 1},
		{"the caller knows better", 1 << 30, 125_000_000, 2, 3, 0, 3},
	} {
		s, entry := records(t, "pending")
		entry.Value.GetMigrate().Options = encode(t, &debvisorv1.MigrateOptions{ParallelConnections: c.asked, BandwidthMib: uint64(c.limited)})
		d := s.Draft()
		for _, id := range []string{"a", "b"} {
			status := proto.CloneOf(s.Statuses[id].Value)
			status.Capabilities = encode(t, &debvisorv1.NodeCapabilities{LinkBytesPerSecond: c.link})
			status.Capacity = encode(t, &debvisorv1.NodeCapacity{Cpus: c.cpus, MemoryBytes: 128 << 30, MemoryAvailableBytes: 120 << 30})
			d.Statuses.Put(id, status, 3)
		}
		vm := proto.CloneOf(s.VMs[vmID].Value)
		vm.Domain = encode(t, &agentv1.Domain{
			Uuid: vmID, Name: "web", State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: c.memory, Persistent: true,
		})
		d.VMs.Put(vmID, vm, 4)
		got := decide(d.Snapshot(10), entry, moment{now: noon, rightID: "fresh"})
		spec := &agentv1.TaskSpec{}
		if got == nil || got.task == nil {
			t.Errorf("%s: got %s", c.what, describe(got))
			continue
		}
		if err := proto.Unmarshal(got.task.GetSpec(), spec); err != nil {
			t.Fatal(err)
		}
		o := &debvisorv1.MigrateOptions{}
		if err := proto.Unmarshal(got.op.GetMigrate().GetOptions(), o); err != nil {
			t.Fatal(err)
		}
		n, later := spec.GetMigrateReceive().GetParallelConnections(), o.GetParallelConnections()
		if max(n, 1) != c.want || later != c.want {
			t.Errorf("%s: %d streams, and the source will be told %d; want %d", c.what, n, later, c.want)
		}
	}
}
