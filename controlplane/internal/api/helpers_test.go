package api_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/events"
	"github.com/debvisor/debvisor/controlplane/internal/health"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/plans"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

const clusterName = "testing"

// replica is a replica's front door over a real etcd and TLS, with the parts
// behind it left out.
type replica struct {
	t       testing.TB
	ca      *certs.Authority
	dir     string
	client  *clientv3.Client
	view    *store.View
	store   *store.Store
	authz   *authz.Authorizer
	server  *grpc.Server
	front   *api.Server
	address string
	log     *buffer
	// disk is etcd's, as changes find it.
	disk fullDisk
	// auditLog is its audit log's path; empty: dir/audit.log.
	auditLog string
	// zfs are the agents that answer questions about ZFS.
	zfs *zfsNodes
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

// background runs a component until the test ends.
func background(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func start(t testing.TB, perMinute int) *replica {
	t.Helper()
	return startWith(t, perMinute, "")
}

// startOn starts one whose audit log is at a path.
func startOn(t testing.TB, auditLog string) *replica {
	t.Helper()
	return startWith(t, 0, auditLog)
}

func startWith(t testing.TB, perMinute int, auditLog string) *replica {
	t.Helper()
	ca, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{t: t, ca: ca, dir: storetest.Dir(t), client: storetest.Client(t), log: &buffer{}, auditLog: auditLog, zfs: newZFSNodes()}
	r.store = store.New(r.client)
	if err := r.store.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.serve(perMinute)
	return r
}

// beside starts another replica over the same etcd and CA.
func (r *replica) beside() *replica {
	r.t.Helper()
	other := &replica{t: r.t, ca: r.ca, dir: storetest.Dir(r.t), client: r.client, store: r.store, log: &buffer{}, zfs: r.zfs}
	other.serve(0)
	return other
}

func (r *replica) serve(perMinute int) {
	t := r.t
	t.Helper()
	log := hclog.New(&hclog.LoggerOptions{Output: r.log})
	r.view = store.NewView(r.client, hclog.NewNullLogger())
	background(t, r.view.Run)
	<-r.view.Ready()
	trail, err := audit.Open(audit.Config{Path: cmp.Or(r.auditLog, filepath.Join(r.dir, "audit.log")), Replica: "r1", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	background(t, trail.Run)
	check, err := api.NewValidator()
	if err != nil {
		t.Fatal(err)
	}
	r.authz = authz.New(authz.Config{Founders: []string{"operator"}, DefaultPerMinute: perMinute})
	chain := api.NewChain(api.ChainConfig{
		View: r.view, Authn: authn.New(authn.Config{Cluster: clusterName, Bearers: authn.NewBearers(authn.BearersConfig{})}), Authz: r.authz, Limit: limit.New(),
		Strangers: api.NewStrangers(), Audit: trail, Check: check, Disk: &r.disk, Log: log,
	})
	background(t, chain.Run)
	codec := rpc.NewCodec()
	own, err := certs.NewReloader(r.issue("server", certs.ServerLeaf(clusterName, "r1", nil, 0)), log)
	if err != nil {
		t.Fatal(err)
	}
	r.server, err = rpc.NewServer(rpc.ServerConfig{TLS: own.CallersServer(), Unary: chain.Unary, Stream: chain.Stream, Tap: chain.Tap, Codec: codec, Age: true})
	if err != nil {
		t.Fatal(err)
	}
	ready := health.New(log, health.Check{Name: "snapshot", Why: r.view.Fresh}, health.Check{Name: "audit", Why: trail.Healthy})
	background(t, ready.Run)
	feed := events.New(store.NewHistory(r.client), log)
	background(t, feed.Run)
	front := api.New(api.Config{
		Cluster: clusterName, Replica: "r1", Ring: func() *certs.Ring { return certs.NewRing(r.ca, nil) }, View: r.view, Store: r.store,
		Operations: operations.New(r.view, r.store), Authz: r.authz, Health: ready, Audit: trail, Events: feed, Codec: codec, Asker: r.zfs, Log: log,
	})
	services := rpc.Registrar{Server: r.server, Undelivered: chain.Undelivered}
	front.Register(services)
	r.front = front
	agentv1.RegisterEnrollServiceServer(services, enrolment{})
	front.TellOf(r.server.GetServiceInfo())
	background(t, front.Run)
	r.listen()
}

func (r *replica) listen() {
	r.t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(r.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.address = listener.Addr().String()
	background(r.t, func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, r.server.Stop)
		defer stop()
		return r.server.Serve(listener)
	})
}

// issue writes a certificate of the test's CA.
func (r *replica) issue(name string, leaf certs.Leaf) certs.Files {
	r.t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		r.t.Fatal(err)
	}
	certPEM, err := r.ca.Issue(key.Public(), leaf, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		r.t.Fatal(err)
	}
	path := func(suffix string, content []byte) string {
		p := filepath.Join(r.dir, name+suffix)
		if err := os.WriteFile(p, content, 0o600); err != nil {
			r.t.Fatal(err)
		}
		return p
	}
	return certs.Files{CA: path("-ca.pem", r.ca.PEM()), Cert: path(".pem", certPEM), Key: path("-key.pem", keyPEM)}
}

// callWithin is how long any call of a test may take: one that would wait for
// ever says so.
const callWithin = time.Minute

// bounded ends every call after callWithin.
func bounded() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			ctx, cancel := context.WithTimeout(ctx, callWithin)
			defer cancel()
			return call(ctx, method, req, reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, call grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			ctx, cancel := context.WithTimeout(ctx, callWithin)
			time.AfterFunc(callWithin, cancel)
			return call(ctx, desc, cc, method, opts...)
		}),
	}
}

// as connects with a certificate.
func (r *replica) as(leaf certs.Leaf, name string) *grpc.ClientConn {
	r.t.Helper()
	own, err := certs.NewReloader(r.issue(name, leaf), hclog.NewNullLogger())
	if err != nil {
		r.t.Fatal(err)
	}
	conn, err := rpc.Dial(r.address, own.ReplicaClient("127.0.0.1"), bounded()...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return conn
}

func (r *replica) principal(name string) *grpc.ClientConn {
	r.t.Helper()
	return r.as(certs.ClientLeaf(name, 0), name)
}

func (r *replica) agent(node string) *grpc.ClientConn {
	r.t.Helper()
	return r.as(certs.AgentLeaf(clusterName, node, 0), "agent-"+node)
}

// anonymous connects without a certificate.
func (r *replica) anonymous() *grpc.ClientConn {
	r.t.Helper()
	cfg := certs.BootstrapClient("127.0.0.1", certs.Fingerprint(r.ca.Certificate()))
	conn, err := rpc.Dial(r.address, cfg, bounded()...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return conn
}

// put writes records and waits until the replica sees them.
func (r *replica) put(puts ...store.Put) {
	r.t.Helper()
	r.commit(store.Change{Puts: puts})
}

// remove takes records away.
func (r *replica) remove(keys ...string) {
	r.t.Helper()
	r.commit(store.Change{Deletes: keys})
}

// commit changes records; the replica has seen it when it returns.
func (r *replica) commit(c store.Change) {
	r.t.Helper()
	revision, err := r.store.Commit(r.t.Context(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.view.Await(r.t.Context(), revision); err != nil {
		r.t.Fatal(err)
	}
}

// lead makes somebody lead, as far as the snapshot tells.
func (r *replica) lead() {
	r.t.Helper()
	r.put(store.PutProto(store.ElectionPrefix()+"/1", &storev1.Leader{Name: "r1"}))
}

// computePlans does what the leader does for plans, without agents to ask.
func (r *replica) computePlans() {
	r.t.Helper()
	term := r.view.Current().Leader.Term
	c := plans.New(r.view, r.store, mute{}, hclog.NewNullLogger())
	background(r.t, func(ctx context.Context) error {
		return c.Lead(ctx, election.Leadership{Term: term, Fence: &store.Fence{Key: store.ElectionPrefix() + "/1", Term: term}})
	})
}

// mute are agents that answer no question.
type mute struct{}

func (mute) CompareCPU(planner.Question) (compatible bool, detail string, known bool) {
	return false, "", false
}
func (mute) Learn(context.Context, []planner.Question) (learned bool) { return false }

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const gib = 1 << 30

// node adds a node that is heard, with 16 GiB of which 8 are free.
func (r *replica) node(id string, change func(*storev1.Node, *storev1.NodeStatus)) {
	r.t.Helper()
	node := &storev1.Node{Id: id, Hostname: id + ".example", RegisteredAt: timestamppb.Now()}
	status := &storev1.NodeStatus{
		Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, LastSeen: timestamppb.Now(), AgentVersion: "1.0",
		Health: encode(r.t, &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: id}, Overall: debvisorv1.StatusCode_STATUS_OK, CpuLoad: 0.25}),
		Capacity: encode(r.t, &debvisorv1.NodeCapacity{MemoryBytes: 16 * gib, MemoryAvailableBytes: 8 * gib, FileSystems: []*debvisorv1.FileSystem{
			{MountPoint: "/shared", Type: "nfs4", StorageId: "nfs4:server:/vms", Shared: true},
		}}),
	}
	if change != nil {
		change(node, status)
	}
	r.put(store.PutProto(store.NodeKey(id), node), store.PutProto(store.StatusKey(id), status))
}

// vm adds a running VM of 2 GiB.
func (r *replica) vm(uuid, name, node string) {
	r.t.Helper()
	domain := &agentv1.Domain{
		Uuid: uuid, Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: 2 * gib, Persistent: true,
		Disks: []*debvisorv1.VMDisk{{Target: "vda", Type: "file", Source: "/shared/x", Cache: "none", Shared: true, StorageId: "nfs4:server:/vms"}},
	}
	r.put(store.PutProto(store.VMKey(uuid), &storev1.VM{Uuid: uuid, Name: name, Node: node, Generation: 1, Domain: encode(r.t, domain)}))
}

// events gives what the audit log has of a kind, once it has at least n.
func (r *replica) events(kind string, n int) []map[string]any {
	r.t.Helper()
	var found []map[string]any
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(r.dir, "audit.log"))
		if err != nil {
			r.t.Fatal(err)
		}
		found = nil
		for line := range strings.Lines(string(b)) {
			var event map[string]any
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				break // the end of a line is not there yet
			}
			if event["event"] == kind {
				found = append(found, event)
			}
		}
		if len(found) >= n {
			return found
		}
	}
	r.t.Fatalf("the audit log has %d events %s, want %d", len(found), kind, n)
	return nil
}

// serialOf gives the serial number of the certificate in a file.
func serialOf(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := certs.ParseCertificates(b)
	if err != nil {
		t.Fatal(err)
	}
	return certs.Serial(list[0])
}
