package storage

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
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
	hosts  *hosts
	lines  lines
}

// lines are what came into the audit log.
type lines struct {
	mu  sync.Mutex
	all []*audit.Event
}

func (l *lines) Add(e *audit.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
	return true
}

func (l *lines) codes() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var codes []string
	for _, e := range l.all {
		codes = append(codes, e.Error)
	}
	return strings.Join(codes, " ")
}

func newBench(t *testing.T) *bench {
	t.Helper()
	client := storetest.Client(t)
	b := &bench{t: t, client: client, store: store.New(client), view: store.NewView(client, hclog.NewNullLogger())}
	b.hosts = newHosts(b)
	if err := b.store.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.during(func(ctx context.Context) { _ = b.view.Run(ctx) })
	<-b.view.Ready()
	for _, id := range []string{"a", "b"} {
		b.put(store.PutProto(store.NodeKey(id), &storev1.Node{Id: id, ParallelReplications: 100}),
			store.PutProto(store.StatusKey(id), &storev1.NodeStatus{Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, BootId: "1"}))
	}
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

func (b *bench) controller(c Committer) *Controller {
	made := New(b.view, c, b.hosts.ask, &b.lines, hclog.NewNullLogger())
	made.pace = pace{shortest: time.Millisecond, longest: 5 * time.Millisecond, absent: time.Millisecond, askAgain: time.Millisecond, look: 20 * time.Millisecond}
	return made
}

// lead has a leader at work until the test ends.
func (b *bench) lead() {
	b.t.Helper()
	l, c := b.elect("r1"), b.controller(b.store)
	b.during(func(ctx context.Context) {
		if err := c.Lead(ctx, l); err != nil {
			b.t.Errorf("leading: %v", err)
		}
	})
}

// submit writes an operation as the API does.
func (b *bench) submit(op *storev1.Operation, also ...store.Put) {
	b.t.Helper()
	op.State, op.CreatedAt = task.OpPending, timestamppb.Now()
	puts := append(also, store.PutProto(store.OperationKey(op.GetId()), op))
	for _, r := range op.GetResources() {
		puts = append(puts, store.PutString(store.InUseKey(r), op.GetId()))
	}
	b.put(puts...)
	b.await("it in the snapshot", func(s *cluster.Snapshot) bool { _, ok := s.Operations[op.GetId()]; return ok })
}

// job makes a dataset on a and a job that copies it to b.
func (b *bench) job(id string, options *debvisorv1.ReplicationOptions) *storev1.ReplicationJob {
	b.t.Helper()
	b.hosts.make("a", "tank/"+id)
	job := &storev1.ReplicationJob{
		Id: id, Source: "a", Target: "b", Dataset: "tank/" + id, TargetDataset: "backup/" + id, Options: encoded(options), CreatedAt: timestamppb.Now(),
	}
	b.put(store.PutProto(store.ReplicationKey(id), job))
	return job
}

func (b *bench) run(op string, job string) {
	b.t.Helper()
	b.submit(&storev1.Operation{
		Id: op, Kind: KindRun, Resources: []string{"replication/" + job},
		Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{JobId: job, Snapshot: "dv-20261122T120000Z-" + op}},
	})
}

func (b *bench) end(op string, job string) {
	b.t.Helper()
	next := proto.CloneOf(b.view.Current().Replications[job].Value)
	next.Deleting = true
	b.submit(&storev1.Operation{
		Id: op, Kind: KindEnd, Resources: []string{"replication/" + job}, Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{JobId: job}},
	}, store.PutProto(store.ReplicationKey(job), next))
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

// ended waits for an operation's end, and sees to what is so of every end.
func (b *bench) ended(id string) *storev1.Operation {
	b.t.Helper()
	s := b.await("the end of "+id, func(s *cluster.Snapshot) bool { return task.OpEnded(s.Operations[id].Value.GetState()) })
	op := s.Operations[id].Value
	for _, t := range s.TasksOf(id) {
		if !task.Ended(task.State(t.Value.GetState())) {
			b.t.Errorf("%s has ended, and %s has not", id, t.Value.GetId())
		}
	}
	for _, r := range op.GetResources() {
		if holder, held := s.InUse[r]; held && holder.Value == id {
			b.t.Errorf("%s has ended, and holds %s", id, r)
		}
	}
	b.hosts.mu.Lock()
	defer b.hosts.mu.Unlock()
	if len(b.hosts.faults) > 0 {
		b.t.Fatalf("after %s: %v", id, b.hosts.faults)
	}
	return op
}

func (b *bench) succeeded(id string) *storev1.Operation {
	b.t.Helper()
	op := b.ended(id)
	if op.GetState() != task.OpSucceeded {
		b.t.Fatalf("%s: %s %s: %s", id, op.GetState(), op.GetErrorCode(), op.GetErrorMessage())
	}
	return op
}

// alike checks that a job's copy is its source, and that its marks are at rest.
func (b *bench) alike(job string) {
	b.t.Helper()
	h := b.hosts
	h.mu.Lock()
	defer h.mu.Unlock()
	source, target := h.datasets["a:tank/"+job], h.datasets["b:backup/"+job]
	if target == nil {
		b.t.Fatalf("%s has no copy", job)
	}
	have := func(d *dataset) (all string, held int) {
		for _, s := range d.snapshots {
			all += fmt.Sprintf(" %d", s.GetGuid())
			held += len(s.GetHolds())
		}
		return all, held
	}
	from, heldFrom := have(source)
	to, heldTo := have(target)
	last := source.snapshots[len(source.snapshots)-1].GetGuid()
	if from != to || heldFrom != 1 || heldTo != 1 || len(source.bookmarks) != 1 || source.bookmarks[0].GetGuid() != last {
		b.t.Errorf("%s: source%s with %d holds and %v, copy%s with %d", job, from, heldFrom, source.bookmarks, to, heldTo)
	}
	if at := b.view.Current().Replications[job].Value; at.GetCursorGuid() != last || at.GetCursorCreated() == nil {
		b.t.Errorf("%s: the cursor is %v, not %d", job, at, last)
	}
}
