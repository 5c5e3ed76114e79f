package relay_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/dispatch"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	"github.com/debvisor/debvisor/controlplane/internal/relay"
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

// rig is a cluster of replicas on one real etcd, each with an agents' listener
// of its own behind TLS and the real chain.
type rig struct {
	t      *testing.T
	client *clientv3.Client
	ca     *certs.Authority
	dir    string
	names  atomic.Int32
	all    []*replica
}

func newRig(t *testing.T, replicas ...string) *rig {
	t.Helper()
	ca, err := certs.NewAuthority(clusterName, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, client: storetest.Client(t), ca: ca, dir: t.TempDir()}
	if err := certs.WriteFile(filepath.Join(r.dir, "ca.pem"), ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{store.EpochKey(): "1"} {
		if _, err := r.client.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.New(r.client).Commit(t.Context(), store.Change{Puts: []store.Put{store.PutProto(store.NodeKey("n1"), &storev1.Node{Id: "n1"})}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range replicas {
		r.all = append(r.all, r.replica(name))
	}
	return r
}

// certificate issues a leaf and gives what shows it.
func (r *rig) certificate(leaf certs.Leaf) *certs.Reloader {
	r.t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		r.t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := r.ca.Issue(key.Public(), leaf, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	name := filepath.Join(r.dir, fmt.Sprint(r.names.Add(1)))
	files := certs.Files{CA: filepath.Join(r.dir, "ca.pem"), Cert: name + ".pem", Key: name + "-key.pem"}
	for path, content := range map[string][]byte{files.Cert: cert, files.Key: keyPEM} {
		if err := certs.WriteFile(path, content, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	reloader, err := certs.NewReloader(files, hclog.NewNullLogger())
	if err != nil {
		r.t.Fatal(err)
	}
	return reloader
}

// background runs a component until the test ends.
func (r *rig) background(component func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := component(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrFenced) {
			r.t.Errorf("component: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(stop)
	return stop
}

// replica is one replica: what of it has to do with questions.
type replica struct {
	*relay.Relay
	rig      *rig
	name     string
	address  string
	view     *store.View
	sessions *dispatch.Dispatch
	shows    *certs.Reloader
	resign   func()
}

func (r *rig) replica(name string) *replica {
	t := r.t
	t.Helper()
	log := hclog.New(&hclog.LoggerOptions{Output: t.Output()})
	p := &replica{rig: r, name: name, view: store.NewView(r.client, log), resign: func() {}}
	r.background(p.view.Run)
	<-p.view.Ready()
	st := store.New(r.client)
	inv := inventory.New(inventory.Config{View: p.view, Store: st, Interval: time.Second, Log: log})
	p.sessions = dispatch.New(dispatch.Config{
		Replica: name, Cluster: clusterName, View: p.view, Store: st, Inventory: inv, Interval: time.Second, Log: log,
	})
	p.shows = r.certificate(certs.ServerLeaf(clusterName, name, []string{"127.0.0.1"}, time.Hour))
	lines := relay.NewLines(p.shows.ReplicaClient)
	r.background(lines.Run)
	p.Relay = relay.New(relay.Config{Replica: name, View: p.view, Sessions: p.sessions, Leader: lines})

	events, err := audit.Open(audit.Config{Path: filepath.Join(storetest.Dir(t), "audit.log"), Replica: name, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r.background(events.Run)
	check, err := api.NewValidator()
	if err != nil {
		t.Fatal(err)
	}
	chain := api.NewChain(api.ChainConfig{
		View: p.view, Authn: authn.New(authn.Config{Cluster: clusterName, Replicas: true}), Authz: authz.New(authz.Config{}),
		Strangers: api.NewStrangers(), Audit: events, Check: check, Log: log,
	})
	r.background(chain.Run)
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: p.shows.AgentsServer(clusterName), Unary: chain.Unary, Stream: chain.Stream, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	agentv1.RegisterSessionServiceServer(server, p.sessions)
	agentv1.RegisterRelayServiceServer(server, p)
	lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = lis.Addr().String()
	r.background(func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, server.Stop)
		defer stop()
		return server.Serve(lis)
	})
	return p
}

// lead elects the replica, as package election would, and waits until all know.
func (p *replica) lead() {
	t := p.rig.t
	t.Helper()
	record, err := proto.Marshal(&storev1.Leader{Name: p.name, AgentsAddress: p.address})
	if err != nil {
		t.Fatal(err)
	}
	key := store.ElectionPrefix() + "/" + p.name
	resp, err := p.rig.client.Put(t.Context(), key, string(record))
	if err != nil {
		t.Fatal(err)
	}
	term := task.Term{Epoch: 1, Revision: resp.Header.Revision}
	l := election.Leadership{Term: term, Fence: &store.Fence{Key: key, Term: term}, Fresh: func() bool { return true }}
	stop := p.rig.background(func(ctx context.Context) error { return p.sessions.Lead(ctx, l) })
	p.resign = func() {
		if _, err := p.rig.client.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
		stop()
	}
	for _, other := range p.rig.all {
		if err := other.view.Await(t.Context(), resp.Header.Revision); err != nil {
			t.Fatal(err)
		}
	}
}

// agent keeps a session as a node's agent does: with whoever leads, answering
// questions at the pace that it is asked to.
type agent struct {
	rig   *rig
	shows *certs.Reloader
	// answers makes the nth part of an answer; nil: it was the last one before.
	answers func(ctx context.Context, q *agentv1.Ask, n int) *agentv1.Answer
	// open tells that a session is open; stopped, that a search was told to stop.
	open, stopped chan struct{}
}

func (r *rig) agent(answers func(ctx context.Context, q *agentv1.Ask, n int) *agentv1.Answer) *agent {
	a := &agent{
		rig: r, shows: r.certificate(certs.AgentLeaf(clusterName, "n1", time.Hour)), answers: answers,
		open: make(chan struct{}, 1), stopped: make(chan struct{}, 1),
	}
	r.background(func(ctx context.Context) error {
		for ctx.Err() == nil {
			for _, p := range r.all {
				a.session(ctx, p)
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond): // as agents wait between attempts
			}
		}
		return nil
	})
	return a
}

// session keeps a session with a replica for as long as that leads.
func (a *agent) session(ctx context.Context, p *replica) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := rpc.Dial("passthrough:///"+p.address, a.shows.ReplicaClient("127.0.0.1"))
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	stream, err := agentv1.NewSessionServiceClient(conn).Connect(ctx)
	if err != nil {
		return
	}
	var sending sync.Mutex
	say := func(m *agentv1.AgentMessage) {
		sending.Lock()
		defer sending.Unlock()
		_ = stream.Send(m) // Recv tells why not
	}
	say(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Hello{Hello: &agentv1.Hello{NodeId: "n1", JournalId: "j", BootId: "b"}}})
	if m, err := stream.Recv(); err != nil || m.GetWelcome() == nil {
		return
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() {
		for seq := uint64(1); ctx.Err() == nil; seq++ {
			say(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Heartbeat{Heartbeat: &agentv1.Heartbeat{
				Seq: seq, Health: &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: "n1"}, Overall: debvisorv1.StatusCode_STATUS_OK},
			}}})
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // between heartbeats
			}
		}
	})
	ring(a.open)
	rooms := map[uint64]chan struct{}{}
	stops := map[uint64]context.CancelFunc{}
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		if q := m.GetAsk(); q != nil {
			room := make(chan struct{}, 1000)
			room <- struct{}{}
			room <- struct{}{}
			asking, stop := context.WithCancel(ctx)
			rooms[q.GetId()], stops[q.GetId()] = room, stop
			group.Go(func() { a.answer(asking, q, room, say) })
		}
		if n := m.GetAskNext(); n.GetStop() {
			stops[n.GetId()]()
			ring(a.stopped)
		} else if n != nil {
			rooms[n.GetId()] <- struct{}{}
		}
	}
}

func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

func (a *agent) answer(ctx context.Context, q *agentv1.Ask, room <-chan struct{}, say func(*agentv1.AgentMessage)) {
	part := a.answers(ctx, q, 0)
	for n := 1; part != nil; n++ {
		next := a.answers(ctx, q, n)
		part.Id, part.More = q.GetId(), next != nil
		if part.GetMore() {
			select {
			case <-room:
			case <-ctx.Done():
				return
			}
		}
		say(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Answer{Answer: part}})
		part = next
	}
}

// ready waits until a session is open and in etcd, and all replicas know.
func (a *agent) ready() {
	a.rig.t.Helper()
	within(a.rig.t, "session", a.open)
	for _, p := range a.rig.all {
		deadline := time.After(patience)
		for {
			changed := p.view.Changed()
			if p.view.Current().Statuses["n1"].Value.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
				break
			}
			select {
			case <-changed:
			case <-deadline:
				a.rig.t.Fatalf("%s knows of no session within %s", p.name, patience)
			}
		}
	}
}

func list() *agentv1.Ask {
	return &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{Snapshots: true}}}
}

// within receives, or fails the test.
func within[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: not within %s", what, patience)
		panic("unreachable")
	}
}

func codeOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
