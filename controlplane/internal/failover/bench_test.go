package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	"github.com/debvisor/debvisor/shared/task"
)

// patience is the longest that a test waits for anything.
const patience = 60 * time.Second

// bench is a real etcd with a snapshot of it, and hosts whose agents do what the
// tasks say.
type bench struct {
	t      *testing.T
	client *clientv3.Client
	store  *store.Store
	view   *store.View
	hosts
}

// hosts is what is so on the machines, whatever the records say.
type hosts struct {
	mu sync.Mutex
	// here, there: a QEMU of the VM runs on a, or on b; fenced: a's cannot write.
	here, there, fenced bool
	done                map[string]bool
	faults              []string
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
	b.during(b.work)
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

// begin puts the records of what was said in etcd, and nothing else.
func (b *bench) begin(said string) {
	b.t.Helper()
	for _, under := range []string{"operations", "tasks", "inuse", "vms", "lostcopies", "nodestatus", "nodes", "definitions", "replication", "ceph", "zfs"} {
		if _, err := b.client.Delete(b.t.Context(), "/debvisor/rpc/"+under+"/", clientv3.WithPrefix()); err != nil {
			b.t.Fatal(err)
		}
	}
	b.mu.Lock()
	b.here, b.there, b.fenced, b.done = true, false, false, map[string]bool{}
	b.mu.Unlock()
	s, x := records(b.t, said)
	puts := []store.Put{
		store.PutProto(store.VMKey(vmID), x.vm), store.PutProto(store.DefinitionKey(vmID), x.def), store.PutString(store.InUseKey("vm/"+vmID), opID),
		store.PutProto(store.OperationKey(opID), x.op), store.PutProto(store.NodeZFSKey("b"), s.ZFS["b"].Value),
	}
	for _, id := range []string{"a", "b", "c"} {
		puts = append(puts, store.PutProto(store.NodeKey(id), x.nodes[id]), store.PutProto(store.StatusKey(id), x.state[id]), store.PutProto(store.NodeCephKey(id), s.Ceph[id].Value))
	}
	for id, job := range s.Replications {
		puts = append(puts, store.PutProto(store.ReplicationKey(id), job.Value))
	}
	revision, err := b.store.Commit(b.t.Context(), store.Change{Puts: puts})
	if err == nil {
		err = b.view.Await(b.t.Context(), revision)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// back has the lost node heard again, as its inventory notes it.
func (b *bench) back() {
	status := proto.CloneOf(b.view.Current().Statuses["a"].Value)
	status.Liveness, status.LastSeen = storev1.NodeLiveness_NODE_LIVENESS_ONLINE, timestamppb.Now()
	revision, err := b.store.Commit(context.Background(), store.Change{Puts: []store.Put{store.PutProto(store.StatusKey("a"), status)}})
	if err == nil {
		err = b.view.Await(context.Background(), revision)
	}
	if err != nil {
		b.t.Error(err)
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
			b.t.Fatalf("not within %v: %s; at work are %v, lost are %v", patience, what, s.ActiveOperations(), s.LostCopies)
		}
	}
}

// work does what the tasks of nodes that are heard say, each once.
func (b *bench) work(ctx context.Context) {
	for {
		changed := b.view.Changed()
		s := b.view.Current()
		for _, node := range []string{"a", "b", "c"} {
			if !heard(s, node) {
				continue
			}
			for _, t := range s.OpenTasksOn(node) {
				b.do(ctx, s, t)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// do does one task, and says so.
func (b *bench) do(ctx context.Context, s *cluster.Snapshot, entry cluster.Entry[*storev1.Task]) {
	t := proto.CloneOf(entry.Value)
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(t.GetSpec(), &spec); err != nil {
		b.t.Error(err)
		return
	}
	out := b.happen(s, t, &spec)
	t.State, t.Outcome, t.EndedAt = task.Recorded(task.Succeeded), encoded(out), timestamppb.Now()
	_, err := b.store.Commit(ctx, store.Change{
		Require: []store.Condition{store.Unchanged(store.TaskKey(t.GetId()), entry.ModRevision)}, Puts: []store.Put{store.PutProto(store.TaskKey(t.GetId()), t)},
	})
	var conflict *store.ConflictError
	if err != nil && ctx.Err() == nil && !errors.As(err, &conflict) {
		b.t.Error(err)
	}
}

// happen changes the machines as a task says, and notes what must never be.
func (b *bench) happen(s *cluster.Snapshot, t *storev1.Task, spec *agentv1.TaskSpec) *agentv1.TaskOutcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := !b.done[t.GetId()]
	b.done[t.GetId()] = true
	out := &agentv1.TaskOutcome{}
	switch k := spec.GetKind().(type) {
	case *agentv1.TaskSpec_RbdFence:
		b.fenced = b.fenced || first
		out.Rbd = &agentv1.RbdOutcome{Evidence: &agentv1.FenceEvidence{Fsid: fsid, Blocklisted: []string{client}}}
		for _, image := range k.RbdFence.GetImages() {
			out.Rbd.Evidence.Images = append(out.Rbd.Evidence.Images, &agentv1.FencedImage{Image: image, Watchers: []*agentv1.CephClient{{Address: client}}})
		}
	case *agentv1.TaskSpec_RbdUnfence:
		if b.here && s.VMs[vmID].Value.GetNode() != "a" || !slices.Equal(k.RbdUnfence.GetEntries(), []string{client}) {
			b.faults = append(b.faults, fmt.Sprintf("%s takes %v away while the lost copy lives", t.GetId(), k.RbdUnfence.GetEntries()))
		}
		b.fenced = false
	case *agentv1.TaskSpec_FailoverStart:
		if b.here && !b.fenced {
			b.faults = append(b.faults, t.GetId()+" lets two write")
		}
		b.there = true
		out.Failover = &agentv1.FailoverOutcome{Running: true}
	case *agentv1.TaskSpec_FailoverDiscard:
		if s.VMs[vmID].Value.GetNode() == "a" {
			b.faults = append(b.faults, t.GetId()+" destroys a VM that is nowhere else")
		}
		out.Failover = &agentv1.FailoverOutcome{WasRunning: b.here}
		b.here = false
	}
	return out
}

// ended waits until the operation has, and until the lost node, if it is heard, has
// no copy; then all must be well.
func (b *bench) ended() *storev1.Operation {
	b.t.Helper()
	s := b.await("its end", func(s *cluster.Snapshot) bool {
		c, lost := s.LostCopies[vmID+"/a"]
		return task.OpEnded(s.Operations[opID].Value.GetState()) && (!lost || !heard(s, "a") || c.Value.GetState() == gone)
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	op, vm := s.Operations[opID].Value, s.VMs[vmID].Value
	_, held := s.InUse["vm/"+vmID]
	c, lost := s.LostCopies[vmID+"/a"]
	is := fmt.Sprintf("%s %s: on %s %d, runs here %t there %t, fenced %t, lost %s", op.GetState(), op.GetErrorCode(), vm.GetNode(), vm.GetGeneration(), b.here, b.there, b.fenced, c.Value.GetState())
	switch {
	case held || len(b.faults) > 0:
		b.t.Fatalf("%s; held %t; %s", is, held, strings.Join(b.faults, "; "))
	case op.GetState() == task.OpSucceeded && heard(s, "a"):
		if vm.GetNode() != "b" || vm.GetGeneration() != 5 || b.here || !b.there || b.fenced || !lost {
			b.t.Fatal(is)
		}
	case op.GetState() == task.OpSucceeded:
		if vm.GetNode() != "b" || !b.here || !b.there || !b.fenced || c.Value.GetState() != awaited {
			b.t.Fatal(is)
		}
	case vm.GetNode() != "a" || vm.GetGeneration() != 4 || !b.here || b.there || b.fenced || lost:
		b.t.Fatal(is)
	}
	for _, t := range s.TasksOf(opID) {
		if !task.Ended(task.State(t.Value.GetState())) {
			b.t.Errorf("%s has ended, and %s has not", opID, t.Value.GetId())
		}
	}
	return op
}

// cancel asks for the operation's end, as the API does; false: it was too late.
func (b *bench) cancel() bool {
	entry := b.view.Current().Operations[opID]
	if task.OpEnded(entry.Value.GetState()) {
		return false
	}
	op := proto.CloneOf(entry.Value)
	op.CancelRequested = true
	revision, err := b.store.Commit(context.Background(), store.Change{
		Require: []store.Condition{store.Unchanged(store.OperationKey(opID), entry.ModRevision)}, Puts: []store.Put{store.PutProto(store.OperationKey(opID), op)},
	})
	return err == nil && b.view.Await(context.Background(), revision) == nil
}
