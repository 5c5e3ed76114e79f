package session_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/session"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

const (
	clusterName = "test"
	patience    = 20 * time.Second
)

// pki makes certificates of one CA.
type pki struct {
	ca  *certs.Authority
	dir string
}

func newPKI(t *testing.T) pki {
	t.Helper()
	ca, err := certs.NewAuthority(clusterName, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := pki{ca, t.TempDir()}
	write(t, filepath.Join(p.dir, "ca.pem"), ca.PEM())
	return p
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
	cert, err := p.ca.Issue(key.Public(), leaf, time.Now())
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

// replica is a server whose sessions the test conducts.
type replica struct {
	agentv1.UnimplementedSessionServiceServer
	address  string
	sessions chan *conducted
}

// conducted is one stream, kept until the test ends it with an error or nil.
type conducted struct {
	agentv1.SessionService_ConnectServer
	hello *agentv1.Hello
	end   chan error
}

func (r *replica) Connect(st agentv1.SessionService_ConnectServer) error {
	m, err := st.Recv()
	if err != nil {
		return err
	}
	c := &conducted{SessionService_ConnectServer: st, hello: m.GetHello(), end: make(chan error, 1)}
	select {
	case r.sessions <- c:
	case <-st.Context().Done():
		return nil
	}
	select {
	case err := <-c.end:
		return err
	case <-st.Context().Done():
		return nil
	}
}

func (p pki) replica(t *testing.T, name string) *replica {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig := p.reloader(t, name, certs.ServerLeaf(clusterName, name, []string{"127.0.0.1"}, time.Hour)).AgentsServer(clusterName)
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: tlsConfig, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{address: listener.Addr().String(), sessions: make(chan *conducted)}
	agentv1.RegisterSessionServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return r
}

// next is the replica's next session.
func (r *replica) next(t *testing.T) *conducted {
	t.Helper()
	select {
	case c := <-r.sessions:
		return c
	case <-time.After(patience):
		t.Fatal("no session came")
		return nil
	}
}

// welcome says that this replica leads in a term.
func (c *conducted) welcome(t *testing.T, term *agentv1.Term, replicas ...string) {
	t.Helper()
	c.say(t, &agentv1.LeaderMessage{Term: term, Kind: &agentv1.LeaderMessage_Welcome{Welcome: &agentv1.Welcome{
		Leader: "r", HeartbeatIntervalMs: 20, Replicas: replicas,
	}}})
}

func (c *conducted) say(t *testing.T, m *agentv1.LeaderMessage) {
	t.Helper()
	if err := c.Send(m); err != nil {
		t.Fatal(err)
	}
}

// until receives, answering heartbeats, until one message satisfies.
func (c *conducted) until(t *testing.T, term *agentv1.Term, want func(*agentv1.AgentMessage) bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		m, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if h := m.GetHeartbeat(); h != nil && term != nil {
			c.say(t, &agentv1.LeaderMessage{Term: term, Kind: &agentv1.LeaderMessage_HeartbeatAck{HeartbeatAck: &agentv1.HeartbeatAck{Seq: h.GetSeq()}}})
		}
		if want(m) {
			return
		}
	}
	t.Fatal("what was waited for did not come")
}

// calm is a host without events but those the test makes.
type calm struct {
	changed chan struct{}
	mu      sync.Mutex
	news    *agentv1.Inventory
	rtt     time.Duration
}

func newCalm() *calm { return &calm{changed: make(chan struct{}, 1)} }

func (h *calm) Health(rtt time.Duration) *debvisorv1.Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rtt = rtt
	return &debvisorv1.Health{Overall: debvisorv1.StatusCode_STATUS_OK}
}

func (h *calm) Inventory(complete bool) *agentv1.Inventory {
	h.mu.Lock()
	defer h.mu.Unlock()
	if complete {
		return &agentv1.Inventory{Complete: true}
	}
	n := h.news
	h.news = nil
	return n
}

func (h *calm) Changed() <-chan struct{} { return h.changed }

func (h *calm) tell(n *agentv1.Inventory) {
	h.mu.Lock()
	h.news = n
	h.mu.Unlock()
	h.changed <- struct{}{}
}

// agent is one agent: a worker and a session.
type agent struct {
	dir     string
	tls     *certs.Reloader
	host    *calm
	servers []string
	kinds   []worker.Kind
	answers session.Answerer
	log     hclog.Logger
	// says is told of the session's begin and end, where it is set.
	says func(what string)
}

func (p pki) agent(t *testing.T, servers ...*replica) *agent {
	t.Helper()
	a := &agent{
		dir: t.TempDir(), tls: p.reloader(t, "agent", certs.AgentLeaf(clusterName, "node-1", time.Hour)),
		host: newCalm(), log: hclog.NewNullLogger(),
	}
	for _, r := range servers {
		a.servers = append(a.servers, r.address)
	}
	return a
}

// start runs the agent; stop ends it as SIGTERM does and waits.
func (a *agent) start(t *testing.T) (s *session.Session, stop func()) {
	t.Helper()
	w, err := worker.Open(worker.Config{Path: filepath.Join(a.dir, "journal.db"), Kinds: a.kinds, Log: a.log})
	if err != nil {
		t.Fatal(err)
	}
	said := func(what string) {
		if a.says != nil {
			a.says(what)
		}
	}
	s = session.New(session.Config{
		Up: func(leader string) { said("up " + leader) }, Down: func() { said("down") },
		Node: "node-1", Version: "v", BootID: "boot", PeerAddress: "127.0.0.1:7445", Servers: a.servers,
		ServersFile: filepath.Join(a.dir, "servers.json"), TLS: a.tls.ReplicaClient, Leaf: a.tls.Leaf, Work: w, Host: a.host, Answers: a.answers, Log: a.log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("worker: %v", err)
		}
	})
	group.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("session: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		group.Wait()
		if err := w.Close(); err != nil {
			t.Errorf("closing the worker: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func term(revision int64) *agentv1.Term { return &agentv1.Term{Epoch: 1, Revision: revision} }
