package dispatch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/dispatch"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	clusterName = "test"
	patience    = 20 * time.Second
)

// replica is a replica's dispatch on a real etcd, with TLS in front.
type replica struct {
	*dispatch.Dispatch
	client    *clientv3.Client
	view      *store.View
	store     *store.Store
	inventory *inventory.Inventory
	log       *syncBuffer
	address   string
	pki       pki
	later     atomic.Int64 // by how many nanoseconds its clock is ahead
}

func newReplica(t *testing.T) *replica {
	t.Helper()
	r := &replica{client: storetest.Client(t), log: &syncBuffer{}, pki: newPKI(t)}
	logger := hclog.New(&hclog.LoggerOptions{Output: r.log})
	if _, err := r.client.Put(t.Context(), store.EpochKey(), "1"); err != nil {
		t.Fatal(err)
	}
	r.view, r.store = store.NewView(r.client, hclog.NewNullLogger()), store.New(r.client)
	run(t, r.view.Run)
	<-r.view.Ready()
	r.inventory = inventory.New(inventory.Config{View: r.view, Store: r.store, Interval: 2 * time.Second, Log: logger})
	r.Dispatch = dispatch.New(dispatch.Config{
		Replica: "r1", Cluster: clusterName, View: r.view, Store: r.store, Inventory: r.inventory, Interval: 2 * time.Second, Log: logger,
		Now: func() time.Time { return time.Now().Add(time.Duration(r.later.Load())) },
	})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = listener.Addr().String()
	tlsConfig := r.pki.reloader(t, "r1", certs.ServerLeaf(clusterName, "r1", []string{"127.0.0.1"}, time.Hour)).AgentsServer(clusterName)
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: tlsConfig, Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	agentv1.RegisterSessionServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	for _, node := range []string{"node-1", "node-2"} {
		r.put(t, store.PutProto(store.NodeKey(node), &storev1.Node{Id: node}))
	}
	return r
}

// run runs a component until the test ends.
func run(t *testing.T, component func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := component(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, store.ErrFenced) {
			t.Errorf("component: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// put writes records and waits until the view has them.
func (r *replica) put(t *testing.T, puts ...store.Put) {
	t.Helper()
	revision, err := r.store.Commit(t.Context(), store.Change{Puts: puts})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.view.Await(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
}

// term is one leadership of the replica.
type term struct {
	election.Leadership
	fresh *atomic.Bool
	stop  func()
}

// lead elects the replica, as package election would.
func (r *replica) lead(t *testing.T) term {
	t.Helper()
	key := store.ElectionPrefix() + "/test"
	if _, err := r.client.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Put(t.Context(), key, "")
	if err != nil {
		t.Fatal(err)
	}
	l := term{fresh: &atomic.Bool{}}
	l.fresh.Store(true)
	l.Term = task.Term{Epoch: 1, Revision: resp.Header.Revision}
	l.Fence = &store.Fence{Key: key, Term: l.Term}
	l.Fresh = l.fresh.Load
	l.stop = run(t, func(ctx context.Context) error { return r.Lead(ctx, l.Leadership) })
	r.eventually(t, "leads", func() bool { _, leads := r.Sessions(); return leads }) // else who calls hears of no leader
	return l
}

// assign writes a task as a controller would.
func (r *replica) assign(t *testing.T, l term, id, node string, change ...func(*storev1.Task)) {
	t.Helper()
	spec, err := proto.Marshal(&agentv1.TaskSpec{Kind: &agentv1.TaskSpec_MigrateSend{MigrateSend: &agentv1.MigrateSend{TunnelAddress: id}}})
	if err != nil {
		t.Fatal(err)
	}
	record := &storev1.Task{
		Id: id, OperationId: "op", Node: node, Resource: "vm/x", Spec: spec,
		State: storev1.TaskState_TASK_STATE_ASSIGNED, Term: l.Term.Record(),
	}
	for _, c := range change {
		c(record)
	}
	r.put(t, store.PutProto(store.TaskKey(id), record))
}

func (r *replica) task(id string) *storev1.Task { return r.view.Current().Tasks[id].Value }

// eventually waits for a condition of the snapshot.
func (r *replica) eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		changed := r.view.Changed()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond): // conditions outside the snapshot
		case <-deadline:
			t.Fatalf("%s: not within %s; log:\n%s", what, patience, r.log)
		}
	}
}

// agent speaks an agent's side of the protocol, as the test wants.
type agent struct {
	stream agentv1.SessionService_ConnectClient
	leave  func()
	got    chan *agentv1.LeaderMessage
	ended  chan error
}

// dial opens a stream with a node's certificate and says Hello.
func (r *replica) dial(t *testing.T, certificate string, hello *agentv1.Hello) *agent {
	t.Helper()
	conn, err := rpc.Dial("passthrough:///"+r.address, r.pki.agent(t, certificate).ReplicaClient("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); _ = conn.Close() })
	st, err := agentv1.NewSessionServiceClient(conn).Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{stream: st, leave: cancel, got: make(chan *agentv1.LeaderMessage, 100), ended: make(chan error, 1)}
	a.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Hello{Hello: hello}})
	go func() {
		for {
			m, err := st.Recv()
			if err != nil {
				a.ended <- errdefs.FromStatus(err)
				return
			}
			a.got <- m
		}
	}()
	return a
}

// session opens a session and beats once, which makes it complete. Like an
// agent it dials again where nobody leads yet.
func (r *replica) session(t *testing.T, node, journal string, tasks ...*agentv1.TaskReport) *agent {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		a := r.dial(t, node, &agentv1.Hello{NodeId: node, JournalId: journal, BootId: "boot", PeerAddress: "127.0.0.1:7445", Tasks: tasks})
		m := a.await(t, "Welcome", func(m *agentv1.LeaderMessage) bool { return m.GetWelcome() != nil || m.GetNotLeader() != nil })
		if m.GetWelcome() != nil || time.Now().After(deadline) {
			a.beat(t, 1)
			return a
		}
		a.leave()
	}
}

// say sends a message. That the stream has ended meanwhile, which a Send tells
// as io.EOF, is for awaitEnd to tell why.
func (a *agent) say(t *testing.T, m *agentv1.AgentMessage) {
	t.Helper()
	if err := a.stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func (a *agent) beat(t *testing.T, seq uint64) {
	t.Helper()
	a.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Heartbeat{Heartbeat: &agentv1.Heartbeat{
		Seq: seq, Health: &debvisorv1.Health{Overall: debvisorv1.StatusCode_STATUS_OK},
	}}})
}

func (a *agent) report(t *testing.T, r *agentv1.TaskReport) {
	t.Helper()
	a.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Report{Report: r}})
}

// await gives the first message that satisfies; what comes before is dropped.
func (a *agent) await(t *testing.T, what string, want func(*agentv1.LeaderMessage) bool) *agentv1.LeaderMessage {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-a.got:
			if want(m) {
				return m
			}
		case <-deadline:
			t.Fatalf("no %s within %s", what, patience)
		}
	}
}

func (a *agent) awaitTask(t *testing.T, id string) *agentv1.Task {
	t.Helper()
	return a.await(t, "task "+id, func(m *agentv1.LeaderMessage) bool { return m.GetTask().GetId() == id }).GetTask()
}

func (a *agent) awaitAck(t *testing.T, id string) {
	t.Helper()
	a.await(t, "acknowledgement of "+id, func(m *agentv1.LeaderMessage) bool { return m.GetReportAck().GetTaskId() == id })
}

// awaitEnd gives the error that ended the stream.
func (a *agent) awaitEnd(t *testing.T) error {
	t.Helper()
	select {
	case err := <-a.ended:
		return err
	case <-time.After(patience):
		t.Fatal("the stream goes on")
		return nil
	}
}

// pki makes certificates of one CA.
type pki struct {
	ca  *certs.Authority
	dir string
	age time.Duration // of the certificates that it issues
}

func newPKI(t *testing.T) pki {
	t.Helper()
	ca, err := certs.NewAuthority(clusterName, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := pki{ca: ca, dir: t.TempDir()}
	write(t, filepath.Join(p.dir, "ca.pem"), ca.PEM())
	return p
}

func (p pki) agent(t *testing.T, node string) *certs.Reloader {
	t.Helper()
	return p.reloader(t, node, certs.AgentLeaf(clusterName, node, time.Hour))
}

func (p pki) reloader(t *testing.T, name string, leaf certs.Leaf) *certs.Reloader {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := p.ca.Issue(key.Public(), leaf, time.Now().Add(-p.age))
	if err != nil {
		t.Fatal(err)
	}
	files := certs.Files{CA: filepath.Join(p.dir, "ca.pem"), Cert: filepath.Join(p.dir, name+".pem"), Key: filepath.Join(p.dir, name+"-key.pem")}
	write(t, files.Cert, cert)
	write(t, files.Key, keyPEM)
	r, err := certs.NewReloader(files, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// syncBuffer is a log that a test can read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
