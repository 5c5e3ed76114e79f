package schedule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// patience is the longest that a test waits for anything.
const patience = 60 * time.Second

// bench is a real etcd with a snapshot of it, and a clock that stands at noon
// until it is set.
type bench struct {
	t      *testing.T
	client *clientv3.Client
	store  *store.Store
	view   *store.View
	clock  atomic.Int64
}

func newBench(t *testing.T) *bench {
	t.Helper()
	client := storetest.Client(t)
	b := &bench{t: t, client: client, store: store.New(client), view: store.NewView(client, hclog.NewNullLogger())}
	b.clock.Store(noon.Unix())
	if err := b.store.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.during(func(ctx context.Context) { _ = b.view.Run(ctx) })
	<-b.view.Ready()
	inventory := &agentv1.ZfsInventory{Datasets: []*agentv1.ZfsDataset{{Name: "tank/x", Guid: 7}, {Name: "tank/y", Guid: 8}}}
	b.put(
		store.PutProto(store.NodeKey("a"), &storev1.Node{Id: "a"}), store.PutProto(store.NodeKey("b"), &storev1.Node{Id: "b"}),
		store.PutProto(store.NodeZFSKey("a"), &storev1.NodeZFS{Node: "a", Inventory: encode(t, inventory)}),
	)
	return b
}

// during runs something until the test ends.
func (b *bench) during(run func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func (b *bench) put(puts ...store.Put) {
	b.t.Helper()
	revision, err := b.store.Commit(b.t.Context(), store.Change{Puts: puts})
	if err == nil {
		err = b.view.Await(b.t.Context(), revision)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// elect makes a new leader; the one before it leads no more.
func (b *bench) elect(name string) election.Leadership {
	b.t.Helper()
	if _, err := b.client.Delete(b.t.Context(), store.ElectionPrefix(), clientv3.WithPrefix()); err != nil {
		b.t.Fatal(err)
	}
	key := store.ElectionPrefix() + "/" + name
	put, err := b.client.Put(b.t.Context(), key, string(encode(b.t, &storev1.Leader{Name: name})))
	if err != nil {
		b.t.Fatal(err)
	}
	term := task.Term{Revision: put.Header.Revision}
	return election.Leadership{Term: term, Fence: &store.Fence{Key: key, Term: term}}
}

// lead has a controller lead; the channel gives what it ended with.
func (b *bench) lead(l election.Leadership, committer Committer) <-chan error {
	ended := make(chan error, 1)
	nobody := func(*cluster.Snapshot, string, string, string) string { return "" }
	clock := func() time.Time { return time.Unix(b.clock.Load(), 0) }
	b.during(func(ctx context.Context) {
		ended <- New(b.view, committer, nobody, clock, hclog.NewNullLogger()).Lead(ctx, l)
	})
	return ended
}

// pass sets the clock on.
func (b *bench) pass(d time.Duration) { b.clock.Add(int64(d / time.Second)) }

// carryOut ends operations as their controllers do, unless of a kind that is to
// stay as it is.
func (b *bench) carryOut(except string) {
	b.during(func(ctx context.Context) {
		for {
			changed := b.view.Changed()
			for _, e := range b.view.Current().ActiveOperations() {
				if e.Value.GetKind() == except {
					continue
				}
				op := proto.CloneOf(e.Value)
				op.State, op.EndedAt = task.OpSucceeded, timestamppb.Now()
				key := store.OperationKey(op.GetId())
				change := store.Change{Require: []store.Condition{store.Unchanged(key, e.ModRevision)}, Puts: []store.Put{store.PutProto(key, op)}}
				for _, r := range op.GetResources() {
					change.Deletes = append(change.Deletes, store.InUseKey(r))
				}
				_, err := b.store.Commit(ctx, change)
				var conflict *store.ConflictError
				if err != nil && !errors.As(err, &conflict) && ctx.Err() == nil {
					b.t.Error(err)
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
}

// await waits until the snapshot is as wanted.
func (b *bench) await(what string, is func(s *cluster.Snapshot) bool) *cluster.Snapshot {
	b.t.Helper()
	deadline := time.After(patience)
	for {
		changed := b.view.Changed()
		s := b.view.Current()
		if is(s) {
			return s
		}
		select {
		case <-changed:
		case <-deadline:
			b.t.Fatalf("not within %v: %s; policies are %v, %v", patience, what, s.RetentionPolicies, s.ReplicationPolicies)
		}
	}
}

// retention waits for a state of the retention policy p.
func (b *bench) retention(what string, is func(run *storev1.StoragePolicyRun) bool) *storev1.StoragePolicyRun {
	b.t.Helper()
	s := b.await(what, func(s *cluster.Snapshot) bool { return is(s.RetentionPolicies["p"].Value.GetRun()) })
	return s.RetentionPolicies["p"].Value.GetRun()
}

// count counts the operations of a kind.
func count(s *cluster.Snapshot, kind string) int {
	n := 0
	for _, e := range s.Operations {
		if e.Value.GetKind() == kind {
			n++
		}
	}
	return n
}

// everyTen is a policy that is due every ten minutes; its first time is 12:10.
func everyTen(t *testing.T, label string) store.Put {
	spec := &debvisorv1.RetentionPolicySpec{Schedule: "every 10m", Datasets: refs("tank/x"), SnapshotLabel: label}
	return store.PutProto(store.RetentionPolicyKey("p"), retentionRecord(t, spec, &storev1.StoragePolicyRun{LastDue: timestamppb.New(noon)}))
}

// doubtful is an etcd whose every second answer is lost: what it wrote is
// written, and nobody was told.
type doubtful struct {
	*store.Store
	n atomic.Int64
}

func (d *doubtful) Commit(ctx context.Context, c store.Change) (int64, error) {
	revision, err := d.Store.Commit(ctx, c)
	if err == nil && d.n.Add(1)%2 == 1 {
		return 0, errdefs.New(errdefs.Unavailable, "UNAVAILABLE", "the answer was lost")
	}
	return revision, err
}

// TestEachTimeComesOnceWhoeverLeads: leaders follow each other, those that were
// deposed do not know it and go on, and of every second answer nobody hears.
func TestEachTimeComesOnceWhoeverLeads(t *testing.T) {
	b := newBench(t)
	b.put(everyTen(t, ""))
	b.carryOut("")
	etcd := &doubtful{Store: b.store}
	var leaders []<-chan error
	const times = 9
	for n := range times {
		if n%3 == 0 {
			leaders = append(leaders, b.lead(b.elect(fmt.Sprintf("r%d", n)), etcd))
		}
		b.pass(10 * time.Minute)
		if n%3 == 2 {
			leaders = append(leaders, b.lead(b.elect(fmt.Sprintf("late%d", n)), etcd))
		}
		b.await("the next time, carried out", func(s *cluster.Snapshot) bool {
			return s.RetentionPolicies["p"].Value.GetRun().GetFired() == uint64(n+1) && len(s.ActiveOperations()) == 0
		})
	}
	for _, ended := range leaders[:len(leaders)-1] {
		select {
		case err := <-ended:
			if !errors.Is(err, store.ErrFenced) {
				t.Errorf("a leader that was deposed ended with %v", err)
			}
		default: // it has had nothing to write since
		}
	}
	s := b.view.Current()
	if run := s.RetentionPolicies["p"].Value.GetRun(); count(s, PruneKind) != times || run.GetSkipped() != 0 || !run.GetLastDue().AsTime().Equal(noon.Add(times*10*time.Minute)) {
		t.Errorf("%d operations; %v", count(s, PruneKind), run)
	}
}

func TestAfterHoursWithoutALeaderItRunsOnce(t *testing.T) {
	b := newBench(t)
	b.put(everyTen(t, ""))
	b.carryOut("")
	b.pass(5*time.Hour + time.Minute)
	b.lead(b.elect("r1"), b.store)
	run := b.retention("a run", func(run *storev1.StoragePolicyRun) bool { return run.GetFired() > 0 })
	if !run.GetLastDue().AsTime().Equal(noon.Add(5*time.Hour)) || run.GetFired() != 1 || run.GetSkipped() != 29 || !strings.Contains(run.GetLastSkip(), "29 times while nobody led") {
		t.Errorf("%v", run)
	}
	b.await("the end of its operation", func(s *cluster.Snapshot) bool { return len(s.ActiveOperations()) == 0 })
	b.pass(9 * time.Minute)
	run = b.retention("the next", func(run *storev1.StoragePolicyRun) bool { return run.GetFired() > 1 })
	if s := b.view.Current(); count(s, PruneKind) != 2 || !run.GetLastDue().AsTime().Equal(noon.Add(5*time.Hour+10*time.Minute)) {
		t.Errorf("%d operations; %v", count(s, PruneKind), run)
	}
}

func TestWhatIsInUseIsLeftOutAndNothingQueues(t *testing.T) {
	b := newBench(t)
	b.put(everyTen(t, ""), store.PutString(store.InUseKey(cluster.ZFSResource("a", "tank/x")), "op-mine"))
	b.lead(b.elect("r1"), b.store)
	for n := uint64(1); n <= 5; n++ {
		b.pass(10 * time.Minute)
		run := b.retention("a time that is left out", func(run *storev1.StoragePolicyRun) bool { return run.GetSkipped() == n })
		if run.GetFired() != 0 || !strings.Contains(run.GetLastSkip(), "op-mine") || !strings.Contains(run.GetLastSkip(), "tank/x") {
			t.Errorf("%v", run)
		}
	}
	if _, err := b.store.Commit(t.Context(), store.Change{Deletes: []string{store.InUseKey(cluster.ZFSResource("a", "tank/x"))}}); err != nil {
		t.Fatal(err)
	}
	b.pass(10 * time.Minute)
	b.retention("a run", func(run *storev1.StoragePolicyRun) bool { return run.GetFired() == 1 })
	// It is never carried out: the times that follow wait for nothing.
	for n := uint64(6); n <= 8; n++ {
		b.pass(10 * time.Minute)
		b.retention("a time that is left out", func(run *storev1.StoragePolicyRun) bool { return run.GetSkipped() == n })
	}
	if s := b.view.Current(); count(s, PruneKind) != 1 {
		t.Errorf("%d operations", count(s, PruneKind))
	}
}

// TestPruningComesAfterTheSnapshots: also where the leader changes in between.
func TestPruningComesAfterTheSnapshots(t *testing.T) {
	b := newBench(t)
	b.put(everyTen(t, "hourly"))
	b.lead(b.elect("r1"), &doubtful{Store: b.store})
	b.pass(10 * time.Minute)
	b.retention("the snapshots' operation", func(run *storev1.StoragePolicyRun) bool { return len(run.GetAwaited()) == 1 })
	b.lead(b.elect("r2"), &doubtful{Store: b.store})
	if s := b.view.Current(); count(s, PruneKind) != 0 {
		t.Fatal("it prunes what no snapshot was taken of")
	}
	b.carryOut(PruneKind)
	run := b.retention("the pruning", func(run *storev1.StoragePolicyRun) bool {
		return run != nil && len(run.GetAwaited()) == 0 && run.GetFired() > 0
	})
	s := b.view.Current()
	if count(s, TakeKind) != 1 || count(s, PruneKind) != 1 || len(run.GetLastOperations()) != 2 || run.GetFired() != 1 {
		t.Errorf("%v", run)
	}
	take, prune := s.Operations[run.GetLastOperations()[0]].Value, s.Operations[run.GetLastOperations()[1]].Value
	if take.GetTakeSnapshots().GetLabel() != "hourly" || prune.GetRemoveSnapshots().GetPolicy() != "p" || prune.GetRemoveSnapshots().GetDatasets()[0] != "tank/x" {
		t.Errorf("%v, then %v", take, prune)
	}
	rules := &debvisorv1.RetentionPolicy{}
	if err := proto.Unmarshal(prune.GetRemoveSnapshots().GetRetention(), rules); err != nil || rules.GetKeepLast() != 3 {
		t.Errorf("by the rules %v: %v", rules, err)
	}
}

func TestReplicationIsRunByThePolicysJobs(t *testing.T) {
	b := newBench(t)
	b.put(
		store.PutProto(store.ReplicationPolicyKey("p"), replicationRecord(t, &storev1.StoragePolicyRun{LastDue: timestamppb.New(noon)})),
		store.PutProto(store.ReplicationKey("j1"), &storev1.ReplicationJob{Id: "j1", Policy: "p", Source: "a", Dataset: "tank/x", Target: "b", TargetDataset: "tank/x"}),
		store.PutProto(store.ReplicationKey("j2"), &storev1.ReplicationJob{Id: "j2", Policy: "p", Source: "a", Dataset: "tank/y", Target: "b", TargetDataset: "tank/y"}),
		store.PutProto(store.ReplicationKey("j3"), &storev1.ReplicationJob{Id: "j3", Source: "a", Dataset: "tank/z", Target: "b", TargetDataset: "tank/z"}),
	)
	b.carryOut("")
	b.lead(b.elect("r1"), b.store)
	for n := range 3 {
		b.pass(10 * time.Minute)
		s := b.await("two runs", func(s *cluster.Snapshot) bool {
			return s.ReplicationPolicies["p"].Value.GetRun().GetFired() == uint64(n+1) && len(s.ActiveOperations()) == 0
		})
		runs := map[string]int{}
		for _, e := range s.Operations {
			runs[e.Value.GetReplicate().GetJobId()]++
		}
		if runs["j1"] != n+1 || runs["j2"] != n+1 || len(runs) != 2 {
			t.Fatalf("after %d times the runs are %v", n+1, runs)
		}
	}
}

// broken is an etcd that refuses the changes of one policy.
type broken struct {
	*store.Store
	policy  store.Condition
	refused atomic.Int64
}

func (k *broken) Commit(ctx context.Context, c store.Change) (int64, error) {
	if slices.Contains(c.Require, k.policy) {
		k.refused.Add(1)
		return 0, errdefs.New(errdefs.InvalidArgument, "CHANGE_TOO_LARGE", "etcd does not take it")
	}
	return k.Store.Commit(ctx, c)
}

func TestOnePolicyThatCannotBeWrittenHoldsUpNoOther(t *testing.T) {
	b := newBench(t)
	record := retentionRecord(t, &debvisorv1.RetentionPolicySpec{Schedule: "every 10m", Datasets: refs("tank/y")}, &storev1.StoragePolicyRun{LastDue: timestamppb.New(noon)})
	record.Name = "0broken"
	b.put(everyTen(t, ""), store.PutProto(store.RetentionPolicyKey("0broken"), record))
	etcd := &broken{Store: b.store, policy: store.Unchanged(store.RetentionPolicyKey("0broken"), b.view.Current().RetentionPolicies["0broken"].ModRevision)}
	b.carryOut("")
	b.lead(b.elect("r1"), etcd)
	for n := uint64(1); n <= 3; n++ {
		b.pass(10 * time.Minute)
		b.await("a run of the other", func(s *cluster.Snapshot) bool {
			return s.RetentionPolicies["p"].Value.GetRun().GetFired() == n && len(s.ActiveOperations()) == 0
		})
	}
	if n := etcd.refused.Load(); n < 1 || n > 3 {
		t.Errorf("it was tried %d times", n)
	}
}
