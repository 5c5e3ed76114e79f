package recovery

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// records are of a cluster that returns from a backup: nodes a and b, of which
// some were heard, and an operation with a task on a.
func records(state task.State, off bool, heard ...string) *cluster.Snapshot {
	d := cluster.Empty().Draft()
	for _, id := range []string{"a", "b"} {
		n := &storev1.Node{Id: id}
		if off && id == "a" {
			n.OffConfirmedAt, n.OffConfirmedBy = timestamppb.New(noon), "eve"
		}
		d.Nodes.Put(id, n, 1)
		d.Statuses.Put(id, &storev1.NodeStatus{Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE}, 1)
	}
	d.SetRestore(&storev1.Restore{Epoch: 9, ConfirmedAt: timestamppb.New(noon), HeardNodes: heard}, 1)
	d.Operations.Put("op", &storev1.Operation{Id: "op", Kind: "vm.migrate", State: task.OpRunning, Restored: true, Resources: []string{"vm/v"}}, 4)
	t := &storev1.Task{Id: "op/1/k", OperationId: "op", Node: "a", State: task.Recorded(state)}
	if task.Ended(state) {
		t.Outcome, _ = proto.Marshal(&agentv1.TaskOutcome{ErrorCode: "SEEN", ErrorMessage: "as it is"})
	}
	d.Tasks.Put("op/1/k", t, 5)
	d.InUse.Put("vm/v", "op", 1)
	d.InUse.Put("vm/w", "another", 1)
	return d.Snapshot(9)
}

func TestAnOperationOfTheBackupEndsOnceItsNodesHaveSaid(t *testing.T) {
	for _, c := range []struct {
		name  string
		state task.State
		off   bool
		heard []string
		after time.Duration
		want  string // of what was seen; empty: it is waited for
	}{
		{"its node was not heard", task.Assigned, false, []string{"b"}, time.Hour, ""},
		{"its node was heard just now", task.Running, false, []string{"a"}, time.Minute, ""},
		{"its node says nothing", task.Running, false, []string{"a"}, observeFor, "op/1/k on a: not known: the node has not said for 2m0s what became of it"},
		{"its node is off", task.Running, true, nil, 0, "op/1/k on a: not known: the node is powered off, by the word of eve"},
		{"its node has said", task.Failed, false, nil, 0, "op/1/k on a: failed (SEEN: as it is)"},
	} {
		s, w := records(c.state, c.off, c.heard...), watch{heard: map[string]time.Time{}}
		w.look(s, noon)
		change, seen, ok := w.end(s, s.Operations["op"], noon.Add(c.after))
		if ok != (c.want != "") || seen != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, seen, ok, c.want)
		}
		if ok && (len(change.Deletes) != 1 || change.Deletes[0] != store.InUseKey("vm/v")) {
			t.Errorf("%s: it frees %v", c.name, change.Deletes)
		}
	}
}

func TestTheReturnIsOverWhenNothingIsWaitedFor(t *testing.T) {
	w := watch{heard: map[string]time.Time{}}
	busy := records(task.Running, false, "a", "b")
	if w.over(busy, noon) || w.over(busy, noon.Add(time.Hour)) {
		t.Error("over while an operation of the backup is open")
	}
	d := busy.Draft()
	d.Operations.Delete("op")
	quiet := d.Snapshot(10)
	if w.over(quiet, noon) || w.over(quiet, noon.Add(settleTime-1)) {
		t.Error("over before a conflict could be seen")
	}
	if w.over(busy, noon.Add(settleTime)) || w.over(quiet, noon.Add(settleTime)) {
		t.Error("what was waited for in between does not begin the time anew")
	}
	if !w.over(quiet, noon.Add(2*settleTime)) {
		t.Error("never over")
	}
	unconfirmed := quiet.Draft()
	unconfirmed.SetRestore(&storev1.Restore{Epoch: 9, HeardNodes: []string{"a", "b"}}, 2)
	if s := unconfirmed.Snapshot(11); w.over(s, noon.Add(time.Hour)) || w.over(s, noon.Add(2*time.Hour)) {
		t.Error("over though no operator has confirmed it")
	}
	if s := cluster.Empty(); w.over(s, noon.Add(3*time.Hour)) || w.over(s, noon.Add(4*time.Hour)) {
		t.Error("a cluster that was never restored has returned")
	}
}

// TestLead has a leader end what the backup left open, with a real etcd.
func TestLead(t *testing.T) {
	client := storetest.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	v := store.NewView(client, hclog.NewNullLogger())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	run := func(f func(context.Context) error) {
		running.Go(func() { _ = f(ctx) }) // it ends with ctx
	}
	run(v.Run)
	<-v.Ready()
	s := store.New(client)
	revision, err := s.Commit(ctx, store.Change{Puts: []store.Put{
		store.PutProto(store.RestoreKey(), &storev1.Restore{Epoch: 9, ConfirmedAt: timestamppb.New(noon)}),
		store.PutProto(store.OperationKey("op"), &storev1.Operation{Id: "op", Kind: "vm.start", State: task.OpRunning, Restored: true}),
		store.PutProto(store.TaskKey("op/1/k"), &storev1.Task{Id: "op/1/k", OperationId: "op", Node: "gone", State: task.Recorded(task.Assigned)}),
		store.PutString(store.InUseKey("vm/v"), "op"),
	}})
	if err != nil || v.Await(ctx, revision) != nil {
		t.Fatal(err)
	}
	e := election.New(election.Config{Client: client, Self: &storev1.Leader{Name: "r1"}, Log: hclog.NewNullLogger()})
	run(func(ctx context.Context) error { return e.Run(ctx, New(v, s, hclog.NewNullLogger()).Lead) })
	for v.Current().Restore.Value.GetReconciledAt() == nil {
		changed := v.Changed()
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the return is never over: %v", v.Current().Restore)
		}
	}
	now := v.Current()
	if op := now.Operations["op"].Value; op.GetState() != task.OpFailed || op.GetErrorCode() != codeRestored || len(now.InUse) > 0 {
		t.Errorf("the operation is %v, in use %v", op, now.InUse)
	}
	if open := now.OpenTasksOn("gone"); len(open) > 0 {
		t.Errorf("open tasks: %v", open)
	}
}
