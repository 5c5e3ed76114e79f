package controlplane

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

const patience = 30 * time.Second

// replicaUnderTest is a replica of its own cluster on the loopback.
type replicaUnderTest struct {
	t    *testing.T
	home members.Home
	cfg  Config
	log  *buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newReplica(t *testing.T) *replicaUnderTest {
	t.Helper()
	dir := storetest.Dir(t)
	r := &replicaUnderTest{t: t, home: members.Home{Dir: filepath.Join(dir, "d")}, log: &buffer{}}
	if _, err := members.Init(r.home, members.Options{Name: "r1", Cluster: "testing", PeerListen: storetest.FreeAddress(t)}); err != nil {
		t.Fatal(err)
	}
	r.cfg = Config{
		DataDir: r.home.Dir, Listen: storetest.FreeAddress(t), AgentsListen: storetest.FreeAddress(t), AuditLog: filepath.Join(dir, "audit.log"),
		PerMinute: 100_000, LeaderTTL: time.Second, Log: hclog.New(&hclog.LoggerOptions{Output: r.log}),
	}
	return r
}

// start runs the replica; stop ends it and gives what Run returned.
func (r *replicaUnderTest) start() (stop func() error) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, r.cfg) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	r.t.Cleanup(func() { _ = stop() })
	return stop
}

// within bounds a call.
func (r *replicaUnderTest) within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

// dial connects to a listener with a pair of files.
func (r *replicaUnderTest) dial(address string, pair certs.Pair) *grpc.ClientConn {
	r.t.Helper()
	own, err := certs.NewReloader(certs.Files{CA: r.home.Authority().Cert, Cert: pair.Cert, Key: pair.Key}, hclog.NewNullLogger())
	if err != nil {
		r.t.Fatal(err)
	}
	conn, err := rpc.Dial(address, own.ReplicaClient("127.0.0.1"), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// enrol gives the pair of a node's new agent, by a token and through the front
// door, as the agent does it.
func (r *replicaUnderTest) enrol(nodes debvisorv1.NodeServiceClient, node string) certs.Pair {
	r.t.Helper()
	token, err := nodes.CreateJoinToken(r.within(), &debvisorv1.JoinTokenRequest{
		Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, NodeId: node,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	pair := certs.Pair{Cert: filepath.Join(r.home.Dir, node+".pem"), Key: filepath.Join(r.home.Dir, node+"-key.pem")}
	key, err := pair.NextKey()
	if err != nil {
		r.t.Fatal(err)
	}
	csr, err := certs.NewRequest(key, node)
	if err != nil {
		r.t.Fatal(err)
	}
	conn, err := rpc.Dial(r.cfg.Listen, certs.BootstrapClient("127.0.0.1", fingerprint(r.t, r.home)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answer, err := agentv1.NewEnrollServiceClient(conn).Enroll(r.within(), &agentv1.EnrollRequest{Token: token.GetToken(), NodeId: node, Csr: csr})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := pair.Install(answer.GetCertificate()); err != nil {
		r.t.Fatal(err)
	}
	if strings.Contains(r.log.String(), token.GetToken()) || strings.Contains(r.audit(), token.GetToken()) {
		r.t.Error("a token is in a log")
	}
	return pair
}

func (r *replicaUnderTest) audit() string {
	r.t.Helper()
	b, err := os.ReadFile(r.cfg.AuditLog)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func fingerprint(t *testing.T, home members.Home) string {
	t.Helper()
	b, err := os.ReadFile(home.Authority().Cert)
	if err != nil {
		t.Fatal(err)
	}
	list, err := certs.ParseCertificates(b)
	if err != nil {
		t.Fatal(err)
	}
	return certs.Fingerprint(list[0])
}

func TestAReplicaFromItsStartToItsEnd(t *testing.T) {
	r := newReplica(t)
	stop := r.start()
	operator := r.dial(r.cfg.Listen, r.home.Operator())
	r.awaitLeader(operator)
	nodes := debvisorv1.NewNodeServiceClient(operator)
	one := &debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: "n1"}, Hostname: "n1.example", Ip: "192.0.2.1"}
	if _, err := nodes.RegisterNode(r.within(), one); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.RegisterNode(r.within(), one); !errdefs.Is(errdefs.FromStatus(err), errdefs.AlreadyExists) {
		t.Errorf("registered again: %v", err)
	}
	agent := r.dial(r.cfg.AgentsListen, r.enrol(nodes, "n1"))
	health := &debvisorv1.Health{NodeId: one.GetId(), Overall: debvisorv1.StatusCode_STATUS_OK, CpuLoad: 0.5}
	if _, err := debvisorv1.NewNodeServiceClient(agent).Heartbeat(r.within(), health); err != nil {
		t.Errorf("the agent's heartbeat: %v", err)
	}
	if _, err := nodes.Heartbeat(r.within(), &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: "n2"}}); !errdefs.Is(errdefs.FromStatus(err), errdefs.NotFound) {
		t.Errorf("the heartbeat of a node that is not registered: %v", err)
	}
	if _, err := nodes.CordonNode(r.within(), &debvisorv1.CordonRequest{Node: &debvisorv1.NodeRef{NodeId: one.GetId()}, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	list, err := nodes.ListNodes(r.within(), &debvisorv1.Empty{})
	if err != nil || len(list.GetNodes()) != 1 {
		t.Fatalf("the nodes: %v, %v", list, err)
	}
	if n := list.GetNodes()[0]; !n.GetCordoned() || n.GetHealth().GetCpuLoad() != 0.5 {
		t.Errorf("node %v", n)
	}
	for who, conn := range map[string]*grpc.ClientConn{
		"an agent on its own listener":      agent,
		"an agent at the callers' listener": r.dial(r.cfg.Listen, certs.Pair{Cert: r.home.Dir + "/n1.pem", Key: r.home.Dir + "/n1-key.pem"}),
	} {
		if _, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(r.within(), &debvisorv1.Empty{}); !errdefs.Is(errdefs.FromStatus(err), errdefs.PermissionDenied) {
			t.Errorf("%s lists the nodes: %v", who, err)
		}
	}
	r.refusesPrincipalsAmongAgents()

	// What stands open must not hold up the end.
	if _, err := healthv1.NewHealthClient(operator).Watch(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	session := r.session(agent, "n1")
	began := time.Now()
	if err := stop(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if took := time.Since(began); took > graceful-time.Second {
		t.Errorf("it took %s to stop", took)
	}
	if m, err := session.Recv(); m.GetLeaving() == nil {
		t.Errorf("the session's last message: %v, %v", m, err)
	}
	if _, err := session.Recv(); !errdefs.Is(errdefs.FromStatus(err), errdefs.Unavailable) {
		t.Errorf("the session ended with %v", err)
	}
	if log := r.audit(); !strings.Contains(log, `"method":"/debvisor.v1.NodeService/CordonNode"`) || !strings.HasSuffix(log, "}\n") {
		t.Errorf("the audit log:\n%s", log)
	}
}

// awaitLeader waits until the replica leads.
func (r *replicaUnderTest) awaitLeader(conn *grpc.ClientConn) {
	r.t.Helper()
	ctx := r.within()
	for {
		c, err := debvisorv1.NewClusterServiceClient(conn).GetCluster(ctx, &debvisorv1.Empty{})
		if err == nil && c.GetLeader() == "r1" {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			r.t.Fatalf("nobody leads: %v, %v; log:\n%s", c, err, r.log)
		}
	}
}

// refusesPrincipalsAmongAgents dials the agents' listener as the operator.
func (r *replicaUnderTest) refusesPrincipalsAmongAgents() {
	r.t.Helper()
	conn := r.dial(r.cfg.AgentsListen, r.home.Operator())
	_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(r.within(), &debvisorv1.Empty{}, grpc.WaitForReady(false))
	if !errdefs.Is(errdefs.FromStatus(err), errdefs.Unavailable) {
		r.t.Errorf("a principal at the agents' listener: %v", err)
	}
	for deadline := time.Now().Add(patience); !strings.Contains(r.log.String(), "is not an agent's"); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("the log says nothing of it:\n%s", r.log)
		}
	}
}

// session opens an agent's session, once the replica takes any.
func (r *replicaUnderTest) session(conn *grpc.ClientConn, node string) agentv1.SessionService_ConnectClient {
	r.t.Helper()
	ctx := r.within()
	for ctx.Err() == nil {
		st, err := agentv1.NewSessionServiceClient(conn).Connect(ctx)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := st.Send(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Hello{Hello: &agentv1.Hello{NodeId: node, JournalId: "j", BootId: "b"}}}); err != nil {
			r.t.Fatal(err)
		}
		m, err := st.Recv()
		if err != nil {
			r.t.Fatal(err)
		}
		if m.GetWelcome() != nil {
			return st
		}
	}
	r.t.Fatal("the leader takes no session")
	return nil
}

func TestAStartThatCannotBe(t *testing.T) {
	r := newReplica(t)
	pki := newForeignPKI(t)
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for name, c := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"all addresses":               {func(c *Config) { c.Listen = "0.0.0.0:7443" }, []string{"--listen", "--advertise"}},
		"all addresses, in short":     {func(c *Config) { c.AgentsListen = ":7444" }, []string{"--agents-listen", "--agents-advertise"}},
		"no port":                     {func(c *Config) { c.Listen = "127.0.0.1" }, []string{"--listen", "host:port"}},
		"advertised without a port":   {func(c *Config) { c.Advertise = "rpc.example.org" }, []string{"--advertise", "host:port"}},
		"advertised on all addresses": {func(c *Config) { c.AgentsAdvertise = "[::]:7444" }, []string{"--agents-advertise", "can reach"}},
		"a long TTL":                  {func(c *Config) { c.LeaderTTL = 6 * time.Second }, []string{"--leader-ttl", "5s"}},
		"half of RPC_TLS":             {func(c *Config) { c.TLSCert = pki.files("fine", 0).Cert }, []string{"RPC_TLS_CERT", "RPC_TLS_KEY", "RPC_TLS_CA"}},
		"two thirds of RPC_TLS":       {func(c *Config) { pki.use(c, "fine"); c.TLSCA = "" }, []string{"RPC_TLS_CA"}},
		"an expired certificate":      {func(c *Config) { pki.use(c, "expired") }, []string{"expired.pem", "expired on"}},
		"another's key":               {func(c *Config) { pki.use(c, "fine"); c.TLSKey = pki.files("other", 0).Key }, []string{"other-key.pem", "does not match"}},
		"another CA":                  {func(c *Config) { pki.use(c, "fine"); c.TLSCA = r.home.Authority().Cert }, []string{"does not come from the CA"}},
		"a missing file":              {func(c *Config) { pki.use(c, "fine"); c.TLSKey = "/nowhere/key.pem" }, []string{"/nowhere/key.pem", "missing"}},
		"no data directory":           {func(c *Config) { c.DataDir = filepath.Join(r.home.Dir, "none") }, []string{"none"}},
		"an address in use":           {func(c *Config) { c.AgentsListen = taken.Addr().String() }, []string{"--agents-listen", "in use"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := r.cfg
			c.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := Run(ctx, cfg)
			if err == nil {
				t.Fatal("it started")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
		})
	}
	// None of it has left anything behind: the same directory starts.
	stop := r.start()
	r.awaitLeader(r.dial(r.cfg.Listen, r.home.Operator()))
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestAStartThatIsInterrupted(t *testing.T) {
	r := newReplica(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, r.cfg); err != nil {
		t.Errorf("stopped while it started: %v", err)
	}
}

// foreignPKI is one that the operator of the cluster brings along.
type foreignPKI struct {
	t   *testing.T
	ca  *certs.Authority
	dir string
}

func newForeignPKI(t *testing.T) *foreignPKI {
	t.Helper()
	ca, err := certs.NewAuthority("foreign", time.Now().Add(-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	p := &foreignPKI{t: t, ca: ca, dir: t.TempDir()}
	p.files("fine", 0)
	p.files("other", 0)
	p.files("expired", 2*time.Hour)
	return p
}

// files makes a server's certificate of an hour, issued so long ago.
func (p *foreignPKI) files(name string, ago time.Duration) certs.Files {
	p.t.Helper()
	f := certs.Files{
		CA: filepath.Join(p.dir, "ca.pem"), Cert: filepath.Join(p.dir, name+".pem"), Key: filepath.Join(p.dir, name+"-key.pem"),
	}
	if _, err := os.Stat(f.Cert); err == nil {
		return f
	}
	key, err := certs.NewKey()
	if err != nil {
		p.t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	leaf, err := p.ca.Issue(key.Public(), certs.ServerLeaf("testing", "r1", nil, time.Hour), time.Now().Add(-ago))
	if err != nil {
		p.t.Fatal(err)
	}
	for path, content := range map[string][]byte{f.CA: p.ca.PEM(), f.Cert: leaf, f.Key: keyPEM} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	return f
}

func (p *foreignPKI) use(c *Config, name string) {
	f := p.files(name, 0)
	c.TLSCert, c.TLSKey, c.TLSCA = f.Cert, f.Key, f.CA
}
