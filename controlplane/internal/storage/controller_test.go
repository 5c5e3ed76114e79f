package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

func TestFromSnapshotToTheEndOfAJob(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.lead()
	b.job("web", &debvisorv1.ReplicationOptions{})
	for i := range 4 {
		b.submit(&storev1.Operation{Id: fmt.Sprint("op-take-", i), Kind: KindCreate, Resources: []string{"zfs/a/tank/web"}, Detail: &storev1.Operation_TakeSnapshots{
			TakeSnapshots: &storev1.TakeSnapshots{Node: "a", Datasets: []string{"tank/web"}, Name: fmt.Sprintf("dv-20261122T12000%dZ-00000000", i)},
		}})
		if made := b.succeeded(fmt.Sprint("op-take-", i)).GetTakeSnapshots().GetMade(); len(made) != 1 {
			t.Errorf("made %v", made)
		}
	}
	b.run("op-first", "web")
	b.succeeded("op-first")
	b.alike("web")
	b.run("op-second", "web")
	b.succeeded("op-second")
	b.alike("web")

	prune := func(id, node, dataset string) *storev1.RemoveSnapshots {
		b.submit(&storev1.Operation{Id: id, Kind: KindPrune, Resources: []string{"zfs/" + node + "/" + dataset}, Detail: &storev1.Operation_RemoveSnapshots{
			RemoveSnapshots: &storev1.RemoveSnapshots{Node: node, Datasets: []string{dataset}, Retention: encoded(&debvisorv1.RetentionPolicy{KeepPattern: "none"})},
		}})
		return b.succeeded(id).GetRemoveSnapshots()
	}
	if r := prune("op-prune-a", "a", "tank/web"); r.GetRemoved() != 5 || r.GetKept() != 1 {
		t.Errorf("the source has lost %d and kept %d, want 5 and the cursor", r.GetRemoved(), r.GetKept())
	}
	b.run("op-third", "web")
	b.succeeded("op-third")
	b.end("op-end", "web")
	b.succeeded("op-end")
	b.hosts.mu.Lock()
	defer b.hosts.mu.Unlock()
	source, target := b.hosts.datasets["a:tank/web"], b.hosts.datasets["b:backup/web"]
	for _, s := range append(source.snapshots, target.snapshots...) {
		if len(s.GetHolds()) > 0 {
			t.Errorf("%v is still held", s)
		}
	}
	if _, still := b.view.Current().Replications["web"]; still || len(source.bookmarks) > 0 || target.job != "" {
		t.Errorf("the job is left in the records (%v), or on its nodes: %v, %q", still, source.bookmarks, target.job)
	}
}

// mortal is an etcd whose n-th write is the last of the leader that makes it: it
// dies before it, or right after it.
type mortal struct {
	*store.Store
	die   context.CancelFunc
	left  int
	after bool
	died  bool
}

func (m *mortal) Commit(ctx context.Context, c store.Change) (int64, error) {
	if m.left--; m.left != 0 {
		return m.Store.Commit(ctx, c)
	}
	m.died = true
	if m.after {
		_, _ = m.Store.Commit(ctx, c)
	}
	m.die()
	return 0, ctx.Err()
}

// narrow is an etcd that one task is too large for.
type narrow struct {
	*store.Store
	task    string
	refused atomic.Int64
}

func (k *narrow) Commit(ctx context.Context, c store.Change) (int64, error) {
	if slices.Contains(c.Require, store.Absent(store.TaskKey(k.task))) {
		k.refused.Add(1)
		c.Puts = append(c.Puts, store.PutString(store.TaskKey(k.task)+"/more", strings.Repeat("x", store.MaxRecordBytes+1)))
	}
	return k.Store.Commit(ctx, c)
}

// TestAStepThatNoTransactionHolds ends its operation, once, and frees what it held.
func TestAStepThatNoTransactionHolds(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.job("big", &debvisorv1.ReplicationOptions{})
	etcd := &narrow{Store: b.store, task: "op/1/" + taskReceive}
	l, c := b.elect("r1"), b.controller(etcd)
	b.during(func(ctx context.Context) { _ = c.Lead(ctx, l) })
	b.run("op", "big")
	if op := b.ended("op"); op.GetState() != task.OpFailed || op.GetErrorCode() != "CHANGE_TOO_LARGE" {
		t.Errorf("it ended as %v", op)
	}
	if job := b.view.Current().Replications["big"].Value; job.GetLastErrorCode() != "CHANGE_TOO_LARGE" || etcd.refused.Load() != 1 {
		t.Errorf("after %d refusals the job is %v", etcd.refused.Load(), job)
	}
}

// TestTheLeaderDiesAtEveryStep: wherever a leader is cut off, the next one brings
// the operation to the same end, and nothing is done twice.
func TestTheLeaderDiesAtEveryStep(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			id := fmt.Sprintf("job-%d-%v", n, after)
			b.job(id, &debvisorv1.ReplicationOptions{})
			run, end := "run-"+id, "end-"+id
			died := b.life(n, after, func() { b.run(run, id) }, run)
			b.succeeded(run)
			b.alike(id)
			b.hosts.mu.Lock()
			if taken := b.hosts.made[run+" tank/"+id]; taken != 1 {
				t.Errorf("%s: %d snapshots were taken", id, taken)
			}
			b.hosts.mu.Unlock()
			diedToo := b.life(n, after, func() { b.end(end, id) }, end)
			b.succeeded(end)
			if _, still := b.view.Current().Replications[id]; still {
				t.Errorf("%s is still there", id)
			}
			if t.Failed() || !died && !diedToo {
				if n < 8 {
					t.Errorf("only %d steps were died at", n)
				}
				break
			}
		}
	}
}

// life has a leader live to its n-th write, then another to the operation's end.
func (b *bench) life(n int, after bool, begin func(), op string) (died bool) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	etcd := &mortal{Store: b.store, die: cancel, left: n, after: after}
	first := b.elect("first")
	begin()
	over := make(chan error, 1)
	go func() { over <- b.controller(etcd).Lead(ctx, first) }()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for {
			changed := b.view.Changed()
			if task.OpEnded(b.view.Current().Operations[op].Value.GetState()) {
				cancel()
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	if err := <-over; err != nil {
		b.t.Fatalf("the first leader: %v", err)
	}
	<-finished
	if !etcd.died {
		return false
	}
	// The dead one's word does not count any more.
	second := b.elect("second")
	if _, err := b.store.Commit(b.t.Context(), store.Change{Fence: first.Fence, Puts: []store.Put{store.PutString("/debvisor/rpc/inuse/x", "y")}}); !errors.Is(err, store.ErrFenced) {
		b.t.Fatalf("the first leader still writes: %v", err)
	}
	living, stop := context.WithCancel(b.t.Context())
	go func() { over <- b.controller(b.store).Lead(living, second) }()
	b.ended(op)
	stop()
	if err := <-over; err != nil {
		b.t.Fatalf("the second leader: %v", err)
	}
	return true
}

// TestWithAgentsThatDieAllTheTime: runs, prunings and cancellations of several
// jobs at once, whose agents die at every turn: in the end every copy is alike.
func TestWithAgentsThatDieAllTheTime(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.hosts.mu.Lock()
	b.hosts.worse = 15
	b.hosts.mu.Unlock()
	b.lead()
	const jobs, rounds = 4, 3
	for j := range jobs {
		b.job(fmt.Sprint("job-", j), &debvisorv1.ReplicationOptions{NewestOnly: j == 3})
	}
	for round := range rounds {
		for j := range jobs {
			job := fmt.Sprint("job-", j)
			b.run(fmt.Sprintf("run-%d-%d", j, round), job)
			b.submit(&storev1.Operation{Id: fmt.Sprintf("prune-%d-%d", j, round), Kind: KindPrune, Resources: []string{"zfs/a/" + job}, Detail: &storev1.Operation_RemoveSnapshots{
				RemoveSnapshots: &storev1.RemoveSnapshots{Node: "a", Datasets: []string{"tank/" + job}, Retention: encoded(&debvisorv1.RetentionPolicy{KeepLast: 2})},
			}})
		}
		for j := range jobs {
			id := fmt.Sprintf("run-%d-%d", j, round)
			if round == 1 && j == 1 {
				b.cancel(id)
				b.ended(id)
			} else {
				b.succeeded(id)
			}
			b.succeeded(fmt.Sprintf("prune-%d-%d", j, round))
		}
	}
	for j := range jobs {
		id, job := fmt.Sprintf("last-%d", j), fmt.Sprint("job-", j)
		b.run(id, job)
		b.succeeded(id)
		b.hosts.mu.Lock()
		source, target := b.hosts.datasets["a:tank/"+job], b.hosts.datasets["b:backup/"+job]
		from, to := source.snapshots[len(source.snapshots)-1], target.snapshots[len(target.snapshots)-1]
		if from.GetGuid() != to.GetGuid() || len(from.GetHolds()) != 1 || len(to.GetHolds()) != 1 || len(source.bookmarks) != 1 {
			t.Errorf("%s: the newest of the source is %v, of the copy %v; %v", job, from, to, source.bookmarks)
		}
		for _, s := range b.hosts.datasets {
			if strings.Contains(s.name, "diverged") {
				t.Errorf("%s was set aside for nothing", s.name)
			}
		}
		b.hosts.mu.Unlock()
	}
}

// cancel asks for an operation's end, as the API does.
func (b *bench) cancel(id string) {
	b.t.Helper()
	for {
		entry := b.view.Current().Operations[id]
		if entry.Value.GetCancelRequested() || task.OpEnded(entry.Value.GetState()) {
			return
		}
		op := proto.CloneOf(entry.Value)
		op.CancelRequested = true
		revision, err := b.store.Commit(b.t.Context(), store.Change{
			Require: []store.Condition{store.Unchanged(store.OperationKey(id), entry.ModRevision)}, Puts: []store.Put{store.PutProto(store.OperationKey(id), op)},
		})
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			if err := b.view.Await(b.t.Context(), entry.ModRevision+1); err != nil {
				b.t.Fatal(err)
			}
			continue
		}
		if err != nil {
			b.t.Fatal(err)
		}
		if err := b.view.Await(b.t.Context(), revision); err != nil {
			b.t.Fatal(err)
		}
		return
	}
}

// TestCancelledAtEveryStep: however far a run is, its cancellation ends it with
// nothing left at work, and the next one is complete.
func TestCancelledAtEveryStep(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.lead()
	for i, at := range []func(op *storev1.Operation) bool{
		func(*storev1.Operation) bool { return true },
		func(op *storev1.Operation) bool { return op.GetReplicate().GetPhase() >= phaseSnapshot },
		func(op *storev1.Operation) bool { return op.GetReplicate().GetPhase() >= phasePlan },
		func(op *storev1.Operation) bool { return op.GetReplicate().GetPhase() >= phaseReceive },
		func(op *storev1.Operation) bool { return op.GetReplicate().GetPhase() >= phaseSend },
	} {
		job, run := fmt.Sprint("job-", i), fmt.Sprint("run-", i)
		b.job(job, &debvisorv1.ReplicationOptions{})
		b.run(run, job)
		b.await("the step", func(s *cluster.Snapshot) bool { return at(s.Operations[run].Value) })
		b.cancel(run)
		if op := b.ended(run); op.GetState() == task.OpFailed {
			t.Errorf("%s: %s: %s", run, op.GetErrorCode(), op.GetErrorMessage())
		}
		b.run(run+"-again", job)
		b.succeeded(run + "-again")
		b.alike(job)
	}
}

// TestNothingGoesOnWithoutLeadership: a leader that ends waits for what it has
// asked, and asks no more.
func TestNothingGoesOnWithoutLeadership(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.hosts.mu.Lock()
	b.hosts.stuck = true
	b.hosts.mu.Unlock()
	for i := range 6 {
		b.job(fmt.Sprint("job-", i), &debvisorv1.ReplicationOptions{})
		b.run(fmt.Sprint("run-", i), fmt.Sprint("job-", i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	l := b.elect("r1")
	go func() { over <- b.controller(b.store).Lead(ctx, l) }()
	b.await("all to ask", func(s *cluster.Snapshot) bool {
		for i := range 6 {
			if s.Operations[fmt.Sprint("run-", i)].Value.GetStep() != "asking a and b what they have" {
				return false
			}
		}
		return true
	})
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	b.hosts.mu.Lock()
	if b.hosts.asked != 0 {
		t.Errorf("%d questions are still asked", b.hosts.asked)
	}
	b.hosts.stuck = false
	b.hosts.mu.Unlock()
	b.lead()
	for i := range 6 {
		b.succeeded(fmt.Sprint("run-", i))
	}
}

// TestWhatAgentsRefuseToAnswer: once is no reason to fail, again and again is.
func TestWhatAgentsRefuseToAnswer(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.hosts.mu.Lock()
	b.hosts.refuse = maxRefused - 1
	b.hosts.mu.Unlock()
	b.lead()
	b.job("web", &debvisorv1.ReplicationOptions{})
	b.run("op-once", "web")
	b.succeeded("op-once")
	b.hosts.mu.Lock()
	b.hosts.refuse = 1000
	b.hosts.mu.Unlock()
	b.run("op-ever", "web")
	if op := b.ended("op-ever"); op.GetErrorCode() != "ZFS_ERROR" || b.view.Current().Replications["web"].Value.GetLastErrorCode() != "ZFS_ERROR" {
		t.Errorf("it is %v", op)
	}
}

func TestTheRPOIsWatched(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	job := b.job("web", &debvisorv1.ReplicationOptions{RpoSeconds: 3600})
	job = proto.CloneOf(job)
	job.CreatedAt = timestamppb.New(time.Now().Add(-2 * time.Hour))
	b.put(store.PutProto(store.ReplicationKey("web"), job))
	b.lead()
	b.await("the RPO to be missed", func(s *cluster.Snapshot) bool { return s.Replications["web"].Value.GetRpoMissedSince() != nil })
	b.run("op-run", "web")
	b.succeeded("op-run")
	b.await("the RPO to be kept", func(s *cluster.Snapshot) bool { return s.Replications["web"].Value.GetRpoMissedSince() == nil })
	if got := b.lines.codes(); got != "RPO_MISSED RPO_KEPT" {
		t.Errorf("the audit log has %q", got)
	}
}

// TestARemovedNodeKeepsNoJobAlive: a job whose target is gone for good can be
// deleted once the node is out of the records.
func TestARemovedNodeKeepsNoJobAlive(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.lead()
	b.job("web", &debvisorv1.ReplicationOptions{})
	b.run("op-run", "web")
	b.succeeded("op-run")
	b.put(store.PutProto(store.StatusKey("b"), &storev1.NodeStatus{Id: "b", Liveness: storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, BootId: "1"}))
	b.end("op-wait", "web")
	b.await("it to wait for b", func(s *cluster.Snapshot) bool {
		return strings.HasPrefix(s.Operations["op-wait"].Value.GetStep(), "waiting for the agent of b, which is not heard")
	})
	b.cancel("op-wait")
	if op := b.ended("op-wait"); op.GetState() != task.OpCancelled || !b.view.Current().Replications["web"].Value.GetDeleting() {
		t.Errorf("cancelled, it is %v", op)
	}
	if _, err := b.store.Commit(t.Context(), store.Change{Deletes: []string{store.NodeKey("b"), store.StatusKey("b")}}); err != nil {
		t.Fatal(err)
	}
	b.end("op-end", "web")
	b.succeeded("op-end")
	if _, still := b.view.Current().Replications["web"]; still {
		t.Error("the job is still there")
	}
	b.hosts.mu.Lock()
	defer b.hosts.mu.Unlock()
	if d := b.hosts.datasets["a:tank/web"]; len(d.bookmarks) > 0 || len(d.snapshots[0].GetHolds()) > 0 {
		t.Errorf("the source keeps %v", d)
	}
}
