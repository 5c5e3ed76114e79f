package plans

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	patience = 20 * time.Second
	gib      = 1 << 30
	web      = "11111111-1111-1111-1111-111111111111"
)

// replica is one replica's part of the state, on a real etcd; many share one.
type replica struct {
	t      *testing.T
	client *clientv3.Client
	view   *store.View
	store  *store.Store
	desk   *Desk
}

func newReplica(t *testing.T, client *clientv3.Client) *replica {
	t.Helper()
	r := &replica{t: t, client: client, view: store.NewView(client, hclog.NewNullLogger()), store: store.New(client)}
	if err := r.store.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	background(t, r.view.Run)
	<-r.view.Ready()
	r.desk = NewDesk(r.view, r.store)
	return r
}

// start is a replica over two nodes with 16 GiB each and the running VM web on
// the first.
func start(t *testing.T) *replica {
	t.Helper()
	r := newReplica(t, storetest.Client(t))
	r.node("a", nil)
	r.node("b", nil)
	r.vm(web, "web", "a", nil)
	return r
}

// background runs a component until the test ends, or stop.
func background(t *testing.T, run func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

// put writes records and waits until the replica sees them.
func (r *replica) put(puts ...store.Put) int64 {
	r.t.Helper()
	revision, err := r.store.Commit(r.t.Context(), store.Change{Puts: puts})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.view.Await(r.t.Context(), revision); err != nil {
		r.t.Fatal(err)
	}
	return revision
}

func (r *replica) node(id string, change func(*storev1.Node, *storev1.NodeStatus)) {
	r.t.Helper()
	n, s := &storev1.Node{Id: id}, &storev1.NodeStatus{
		Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE,
		Capacity: encode(r.t, &debvisorv1.NodeCapacity{MemoryBytes: 16 * gib, MemoryAvailableBytes: 12 * gib, Cpus: 8}),
	}
	if change != nil {
		change(n, s)
	}
	r.put(store.PutProto(store.NodeKey(id), n), store.PutProto(store.StatusKey(id), s))
}

// vm writes a running VM of 2 GiB without disks.
func (r *replica) vm(uuid, name, node string, change func(*storev1.VM, *agentv1.Domain)) {
	r.t.Helper()
	d := &agentv1.Domain{
		Uuid: uuid, Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: 2 * gib, Vcpus: 1, Persistent: true,
	}
	vm := &storev1.VM{Uuid: uuid, Name: name, Node: node, Generation: 1}
	if change != nil {
		change(vm, d)
	}
	vm.Domain = encode(r.t, d)
	r.put(store.PutProto(store.VMKey(uuid), vm))
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// elect makes the replica lead, as package election would, without doing
// anything of a leader's work.
func (r *replica) elect() election.Leadership {
	r.t.Helper()
	key := store.ElectionPrefix() + "/test"
	if _, err := r.client.Delete(r.t.Context(), key); err != nil {
		r.t.Fatal(err)
	}
	put, err := r.client.Put(r.t.Context(), key, "")
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.view.Await(r.t.Context(), put.Header.Revision); err != nil {
		r.t.Fatal(err)
	}
	term := task.Term{Epoch: r.view.Current().Epoch, Revision: put.Header.Revision}
	return election.Leadership{Term: term, Fence: &store.Fence{Key: key, Term: term}, Fresh: func() bool { return true }}
}

// lead computes plans in a term, until the test ends or stop.
func (r *replica) lead(l election.Leadership, facts Facts) (stop func() error) {
	r.t.Helper()
	c := New(r.view, r.store, facts, hclog.NewNullLogger())
	return background(r.t, func(ctx context.Context) error { return c.Lead(ctx, l) })
}

// eventually waits for a condition of the snapshot.
func (r *replica) eventually(what string, holds func(*cluster.Snapshot) bool) {
	r.t.Helper()
	late := time.After(patience)
	for {
		changed := r.view.Changed()
		if holds(r.view.Current()) {
			return
		}
		select {
		case <-changed:
		case <-late:
			r.t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// migrate asks for the plan of a migration.
func (r *replica) migrate(vm, target string) (*storev1.Plan, error) {
	return r.desk.Ask(r.t.Context(), Request{Kind: KindMigrate, Principal: "ada", Message: &debvisorv1.VMMigratePlan{
		Vm: &debvisorv1.VMRef{VmId: vm}, Target: nodeRef(target),
	}})
}

func (r *replica) must(p *storev1.Plan, err error) (*storev1.Plan, *debvisorv1.Plan) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
	result, err := Result(p)
	if err != nil {
		r.t.Fatal(err)
	}
	return p, result
}

// libvirt is what stands for all agents: which guests run where, by the hashes
// "guest host". Learn brings the answers in; gate, if any, holds it up.
type libvirt struct {
	says map[string]bool
	gate chan struct{}

	mu    sync.Mutex
	known map[string]bool
	asked int
}

func (l *libvirt) CompareCPU(q planner.Question) (bool, string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := q.Guest + " " + q.Host
	return l.says[key], "libvirt says no", l.known[key]
}

func (l *libvirt) Learn(ctx context.Context, questions []planner.Question) bool {
	if l.gate != nil {
		select {
		case <-l.gate:
		case <-ctx.Done():
			return false
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	learned := false
	for _, q := range questions {
		l.asked++
		key := q.Guest + " " + q.Host
		if _, ok := l.says[key]; !ok {
			continue // its agent does not answer
		}
		if l.known == nil {
			l.known = map[string]bool{}
		}
		learned = learned || !l.known[key]
		l.known[key] = true
	}
	return learned
}

func (r *replica) log() hclog.Logger { return hclog.NewNullLogger() }

// codes are those of changes, sorted as found.
func codes(changes []Change) string {
	text := ""
	for _, c := range changes {
		text += fmt.Sprintf("%s:%s ", c.Name, c.Code)
	}
	return text
}
