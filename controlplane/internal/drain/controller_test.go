package drain

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/debvisor/debvisor/controlplane/internal/planner"
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

// bench is a real etcd with a snapshot of it.
type bench struct {
	t      *testing.T
	client *clientv3.Client
	store  *store.Store
	view   *store.View
}

func newBench(t *testing.T) *bench {
	t.Helper()
	client := storetest.Client(t)
	b := &bench{t: t, client: client, store: store.New(client), view: store.NewView(client, hclog.NewNullLogger())}
	if err := b.store.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.during(func(ctx context.Context) { _ = b.view.Run(ctx) })
	<-b.view.Ready()
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

// put writes records.
func (b *bench) put(puts ...store.Put) {
	b.t.Helper()
	if _, err := b.store.Commit(b.t.Context(), store.Change{Puts: puts}); err != nil {
		b.t.Fatal(err)
	}
}

// elect makes a new leader; the one before it leads no more.
func (b *bench) elect(name string) election.Leadership {
	b.t.Helper()
	value, err := proto.Marshal(&storev1.Leader{Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.client.Delete(b.t.Context(), store.ElectionPrefix(), clientv3.WithPrefix()); err != nil {
		b.t.Fatal(err)
	}
	key := store.ElectionPrefix() + "/" + name
	put, err := b.client.Put(b.t.Context(), key, string(value))
	if err != nil {
		b.t.Fatal(err)
	}
	term := task.Term{Revision: put.Header.Revision}
	return election.Leadership{Term: term, Fence: &store.Fence{Key: key, Term: term}}
}

// world writes nodes and VMs on a, and an evacuation of a.
func (b *bench) world(vms int) {
	b.t.Helper()
	var puts []store.Put
	for _, id := range []string{"a", "b", "c"} {
		node, status := newNode(b.t, id)
		puts = append(puts, store.PutProto(store.NodeKey(id), node), store.PutProto(store.StatusKey(id), status))
	}
	for i := range vms {
		vm := newVM(b.t, fmt.Sprintf("vm%d", i), "a")
		puts = append(puts, store.PutProto(store.VMKey(vm.GetUuid()), vm))
	}
	b.put(puts...)
}

func (b *bench) submit(kind string) {
	b.t.Helper()
	b.put(
		store.PutProto(store.OperationKey("op-"+kind), &storev1.Operation{
			Id: "op-" + kind, Kind: kind, State: task.OpPending, Resources: []string{"evacuation/a"},
			Detail: &storev1.Operation_Evacuate{Evacuate: &storev1.Evacuate{Node: "a"}},
		}),
		store.PutString(store.InUseKey("evacuation/a"), "op-"+kind),
	)
}

// movers carry out the moves' operations, as migrate and the agents do.
func (b *bench) movers(ctx context.Context) {
	for {
		changed := b.view.Changed()
		s := b.view.Current()
		for _, e := range s.ActiveOperations() {
			if e.Value.GetMigrate() != nil {
				b.step(ctx, s, e)
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (b *bench) step(ctx context.Context, s *cluster.Snapshot, e cluster.Entry[*storev1.Operation]) {
	op := proto.CloneOf(e.Value)
	change := store.Change{Require: []store.Condition{store.Unchanged(store.OperationKey(op.GetId()), e.ModRevision)}}
	if op.GetState() == task.OpPending {
		op.State = task.OpRunning
	} else {
		vm := proto.CloneOf(s.VMs[op.GetMigrate().GetVmUuid()].Value)
		vm.Node = op.GetMigrate().GetTarget()
		op.State, op.EndedAt = task.OpSucceeded, timestamppb.Now()
		change.Puts = append(change.Puts, store.PutProto(store.VMKey(vm.GetUuid()), vm))
		change.Deletes = append(change.Deletes, store.InUseKey(op.GetResources()[0]))
	}
	change.Puts = append(change.Puts, store.PutProto(store.OperationKey(op.GetId()), op))
	_, err := b.store.Commit(ctx, change)
	var conflict *store.ConflictError
	if err != nil && !errors.As(err, &conflict) && ctx.Err() == nil {
		b.t.Error(err)
	}
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
			b.t.Fatalf("not within %v: %s; at work are %v", patience, what, s.ActiveOperations())
		}
	}
}

func (b *bench) awaitEnd(kind string) *storev1.Operation {
	b.t.Helper()
	s := b.await("the end of "+kind, func(s *cluster.Snapshot) bool { return task.OpEnded(s.Operations["op-"+kind].Value.GetState()) })
	return s.Operations["op-"+kind].Value
}

// doubtful is an etcd whose every third answer is lost: what it wrote is
// written, and nobody was told.
type doubtful struct {
	*store.Store
	n atomic.Int64
}

func (d *doubtful) Commit(ctx context.Context, c store.Change) (int64, error) {
	revision, err := d.Store.Commit(ctx, c)
	if err == nil && d.n.Add(1)%3 == 0 {
		return 0, errdefs.New(errdefs.Unavailable, "UNAVAILABLE", "the answer was lost")
	}
	return revision, err
}

func TestANewLeaderGoesOnWhereTheOldOneWasCutOff(t *testing.T) {
	b := newBench(t)
	b.world(7)
	etcd := &doubtful{Store: b.store}
	first := make(chan error, 1)
	l := b.elect("r1")
	b.during(func(ctx context.Context) { first <- New(b.view, etcd, nil, hclog.NewNullLogger()).Lead(ctx, l) })
	b.submit(Evacuate)
	b.await("two moves at work", func(s *cluster.Snapshot) bool {
		return len(s.ActiveOperations()) == 3
	})

	l = b.elect("r2")
	b.during(b.movers)
	if err := <-first; !errors.Is(err, store.ErrFenced) {
		t.Errorf("the leader that was deposed ended with %v", err)
	}
	b.during(func(ctx context.Context) {
		if err := New(b.view, etcd, nil, hclog.NewNullLogger()).Lead(ctx, l); err != nil {
			t.Errorf("the new leader ended with %v", err)
		}
	})
	op := b.awaitEnd(Evacuate)
	if op.GetState() != task.OpSucceeded || !op.GetEvacuate().GetSafeToReboot() {
		t.Fatalf("it ended as %v", op)
	}
	s := b.view.Current()
	begun := map[string]int{}
	for _, e := range s.Operations {
		if m := e.Value.GetMigrate(); m != nil {
			begun[m.GetVmUuid()]++
		}
	}
	for i := range 7 {
		vm := fmt.Sprintf("vm%d", i)
		if begun[vm] != 1 || s.VMs[vm].Value.GetNode() == "a" {
			t.Errorf("%s was begun %d times and is on %s", vm, begun[vm], s.VMs[vm].Value.GetNode())
		}
	}
	if !s.Nodes["a"].Value.GetCordoned() || len(s.InUse) > 0 {
		t.Errorf("cordoned %v, in use %v", s.Nodes["a"].Value.GetCordoned(), s.InUse)
	}

	b.submit(Restore)
	if op := b.awaitEnd(Restore); op.GetState() != task.OpSucceeded || len(b.view.Current().VMsOn("a")) != 7 {
		t.Errorf("restored %d VMs: %v", len(b.view.Current().VMsOn("a")), op)
	}
}

// student knows nothing of CPUs until it has asked.
type student struct{ asked atomic.Int64 }

func (s *student) CompareCPU(planner.Question) (compatible bool, detail string, known bool) {
	return true, "", s.asked.Load() > 0
}

func (s *student) Learn(context.Context, []planner.Question) bool { return s.asked.Add(1) == 1 }

func TestWhatThePlannerDoesNotKnowOfCPUsIsAsked(t *testing.T) {
	b := newBench(t)
	b.world(0)
	vm := newVM(t, "vm0", "a")
	domain := &agentv1.Domain{}
	if err := proto.Unmarshal(vm.GetDomain(), domain); err != nil {
		t.Fatal(err)
	}
	domain.CpuHash = "guest"
	vm.Domain = encode(t, domain)
	_, status := newNode(t, "b")
	status.Capabilities = encode(t, &debvisorv1.NodeCapabilities{CpuHash: "host"})
	b.put(store.PutProto(store.VMKey("vm0"), vm), store.PutProto(store.StatusKey("b"), status))
	facts := &student{}
	l := b.elect("r1")
	b.during(b.movers)
	b.during(func(ctx context.Context) {
		if err := New(b.view, b.store, facts, hclog.NewNullLogger()).Lead(ctx, l); err != nil {
			t.Error(err)
		}
	})
	b.submit(Evacuate)
	if op := b.awaitEnd(Evacuate); op.GetState() != task.OpSucceeded || facts.asked.Load() == 0 {
		t.Errorf("asked %d times; it ended as %v", facts.asked.Load(), op)
	}
}

// broken is an etcd that refuses one operation.
type broken struct {
	*store.Store
	refused atomic.Int64
}

func (k *broken) Commit(ctx context.Context, c store.Change) (int64, error) {
	if strings.Contains(fmt.Sprint(c.Puts[0]), store.OperationKey("op-0broken")) {
		k.refused.Add(1)
		return 0, errdefs.New(errdefs.ResourceExhausted, "TOO_LARGE", "etcd does not take it")
	}
	return k.Store.Commit(ctx, c)
}

func TestOneOperationThatCannotBeWrittenHoldsUpNoOther(t *testing.T) {
	b := newBench(t)
	b.world(2)
	b.put(store.PutProto(store.OperationKey("op-0broken"), &storev1.Operation{
		Id: "op-0broken", Kind: Rebalance, State: task.OpPending,
		Detail: &storev1.Operation_Evacuate{Evacuate: &storev1.Evacuate{}},
	}))
	etcd := &broken{Store: b.store}
	l := b.elect("r1")
	b.during(b.movers)
	b.during(func(ctx context.Context) {
		if err := New(b.view, etcd, nil, hclog.NewNullLogger()).Lead(ctx, l); err != nil {
			t.Error(err)
		}
	})
	b.submit(Evacuate)
	if op := b.awaitEnd(Evacuate); op.GetState() != task.OpSucceeded || etcd.refused.Load() == 0 {
		t.Errorf("%d refused; the other ended as %v", etcd.refused.Load(), op)
	}
}
