package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

const patience = 60 * time.Second

// seen is what a handler saw of one call.
type seen struct {
	name, address string
	metadata      metadata.MD
	request       any
}

// rig is a gateway before a server whose handlers tell what they see.
type rig struct {
	*Gateway
	t        testing.TB
	ca       *certs.Authority
	clients  *x509.CertPool
	vms      *vms
	ops      *ops
	met      *met
	deadline context.Context
	stop     func()
	health   *health.Server
	files    certs.Files
	own      *certs.Reloader

	mu    sync.Mutex
	calls []seen
}

type vms struct {
	debvisorv1.UnimplementedVMServiceServer
	get func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error)
}

func (s *vms) GetVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
	return s.get(ctx, ref)
}

func (s *vms) ListVMs(context.Context, *debvisorv1.VMFilter) (*debvisorv1.VMList, error) {
	return &debvisorv1.VMList{}, nil
}

type migrations struct {
	debvisorv1.UnimplementedMigrationServiceServer
}

func (migrations) MigrateVM(ctx context.Context, _ *debvisorv1.VMMigrateSpec) (*debvisorv1.MigrationResult, error) {
	if err := grpc.SendHeader(ctx, metadata.Pairs(operationHeader, "op-1", "other", "x")); err != nil {
		return nil, err
	}
	return &debvisorv1.MigrationResult{OperationId: "op-1", DowntimeMs: 1 << 60}, nil
}

func (migrations) PrepareMigration(context.Context, *debvisorv1.VMMigratePlan) (*debvisorv1.MigrationPlanResult, error) {
	return &debvisorv1.MigrationPlanResult{}, nil
}

type nodes struct {
	debvisorv1.UnimplementedNodeServiceServer
}

func (nodes) ListNodes(context.Context, *debvisorv1.Empty) (*debvisorv1.NodeList, error) {
	return &debvisorv1.NodeList{}, nil
}

type audits struct {
	debvisorv1.UnimplementedAuditServiceServer
}

func (audits) SearchAudit(*debvisorv1.AuditQuery, grpc.ServerStreamingServer[debvisorv1.AuditLine]) error {
	return nil
}

type ops struct {
	debvisorv1.UnimplementedOperationServiceServer
	watch func(*debvisorv1.OperationRef, grpc.ServerStreamingServer[debvisorv1.Operation]) error
}

func (s *ops) WatchOperation(ref *debvisorv1.OperationRef, stream grpc.ServerStreamingServer[debvisorv1.Operation]) error {
	return s.watch(ref, stream)
}

// met counts what is no call, and refuses after limit.
type met struct {
	mu    sync.Mutex
	count map[string]int
	limit int
}

func (m *met) Met(address string, _ time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.count[address]++; m.count[address] > m.limit {
		return errdefs.New(errdefs.ResourceExhausted, "MANY", "too many").WithRetry(1500 * time.Millisecond)
	}
	return nil
}

func newRig(t testing.TB, change ...func(*Gateway)) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	r := &rig{t: t, deadline: ctx, vms: &vms{}, ops: &ops{}, met: &met{count: map[string]int{}, limit: 1000}, health: health.NewServer()}
	r.vms.get = func(_ context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		return &debvisorv1.VM{Id: ref.GetVmId()}, nil
	}
	var err error
	if r.ca, err = certs.NewAuthority("test", time.Now()); err != nil {
		t.Fatal(err)
	}
	r.clients = x509.NewCertPool()
	r.clients.AddCert(r.ca.Certificate())
	r.own = r.reloader()
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: r.own.CallersServer(), Unary: r.unary, Stream: r.stream, Age: true, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	debvisorv1.RegisterVMServiceServer(server, r.vms)
	debvisorv1.RegisterOperationServiceServer(server, r.ops)
	debvisorv1.RegisterMigrationServiceServer(server, migrations{})
	debvisorv1.RegisterNodeServiceServer(server, nodes{})
	debvisorv1.RegisterAuditServiceServer(server, audits{})
	healthv1.RegisterHealthServer(server, r.health)
	r.Gateway, err = Listen(ctx, Config{Address: "127.0.0.1:0", TLS: r.own.CallersServer(), Server: server, Strangers: r.met, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(r.Gateway)
	}
	running, end := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(running) }()
	r.stop = sync.OnceFunc(func() {
		end()
		if err := <-done; err != nil {
			t.Error(err)
		}
		server.Stop()
		if held := r.bodies.held.Load(); held != 0 {
			t.Errorf("%d bytes of bodies are held by nobody", held)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *rig) door() *door { return doorOf(r.Gateway) }

func doorOf(g *Gateway) *door { return g.lis.(*door) }

// reloader is the server's own certificate, from files as a replica has them.
func (r *rig) reloader() *certs.Reloader {
	r.t.Helper()
	dir := r.t.TempDir()
	r.files = certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	r.renew()
	own, err := certs.NewReloader(r.files, hclog.NewNullLogger())
	if err != nil {
		r.t.Fatal(err)
	}
	return own
}

// renew writes another certificate of the server's.
func (r *rig) renew() {
	r.t.Helper()
	certPEM, keyPEM := r.issue(r.ca, certs.ServerLeaf("test", "r1", nil, 0))
	for path, content := range map[string][]byte{r.files.CA: r.ca.PEM(), r.files.Cert: certPEM, r.files.Key: keyPEM} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) issue(ca *certs.Authority, leaf certs.Leaf) (certPEM, keyPEM []byte) {
	r.t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		r.t.Fatal(err)
	}
	if certPEM, err = ca.Issue(key.Public(), leaf, time.Now()); err != nil {
		r.t.Fatal(err)
	}
	if keyPEM, err = certs.EncodeKey(key); err != nil {
		r.t.Fatal(err)
	}
	return certPEM, keyPEM
}

// note is in the place of a replica's chain.
func (r *rig) note(ctx context.Context, req any) error {
	s := seen{address: rpc.Address(ctx), request: req}
	if leaf := rpc.Certificate(ctx); leaf != nil {
		s.name = leaf.Subject.CommonName
	}
	s.metadata, _ = metadata.FromIncomingContext(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, s)
	return rpc.Decoded(req)
}

func (r *rig) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	unary, _ := rpc.Edge(hclog.NewNullLogger()) //nolint:contextcheck // each call brings its own
	return unary(ctx, req, info, func(ctx context.Context, req any) (any, error) {
		if err := r.note(ctx, req); err != nil {
			return nil, err
		}
		return handler(ctx, req)
	})
}

func (r *rig) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	_, stream := rpc.Edge(hclog.NewNullLogger())
	return stream(srv, ss, info, func(srv any, ss grpc.ServerStream) error {
		if err := r.note(ss.Context(), nil); err != nil {
			return err
		}
		return handler(srv, ss)
	})
}

// last is what the last call that reached the server looked like.
func (r *rig) last() seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls) == 0 {
		return seen{}
	}
	return r.calls[len(r.calls)-1]
}

func (r *rig) reached() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.calls)
}

// client is an HTTP client with a certificate of that name; "": without one.
func (r *rig) client(name string, http2 bool) *http.Client {
	r.t.Helper()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.clients}
	if name != "" {
		cfg.Certificates = []tls.Certificate{r.certificate(r.ca, name)}
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: http2}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (r *rig) certificate(ca *certs.Authority, name string) tls.Certificate {
	r.t.Helper()
	cert, err := tls.X509KeyPair(r.issue(ca, certs.ClientLeaf(name, 0)))
	if err != nil {
		r.t.Fatal(err)
	}
	return cert
}

// request makes one; headers are "Name: value".
func (r *rig) request(method, path, body string, headers ...string) *http.Request {
	r.t.Helper()
	var from io.Reader
	if body != "" {
		from = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(r.deadline, method, "https://"+r.Addr().String()+path, from)
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if value == "" {
			req.Header.Del(name)
			continue
		}
		req.Header.Add(name, value)
	}
	return req
}

// reply is an answer whose body has been read.
type reply struct {
	Status     string
	StatusCode int
	ProtoMajor int
	Header     http.Header
}

// do sends a request and gives the answer with its whole body.
func (r *rig) do(c *http.Client, req *http.Request) (reply, []byte) {
	r.t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return reply{resp.Status, resp.StatusCode, resp.ProtoMajor, resp.Header}, body
}

// problemOf checks that an answer is a problem in the right form, and gives its
// members.
func problemOf(resp reply, body []byte) (map[string]any, error) {
	var p map[string]any
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&p); err != nil {
		return nil, fmt.Errorf("%s with %q: %w", resp.Status, body, err)
	}
	if kind := resp.Header.Get("Content-Type"); kind != problemType {
		return nil, fmt.Errorf("%s is a %s", resp.Status, kind)
	}
	for _, member := range []string{"type", "title", "detail", "code", "grpc_code", "trace_id"} {
		if text, ok := p[member].(string); !ok || text == "" {
			return nil, fmt.Errorf("%s has no %s: %s", resp.Status, member, body)
		}
	}
	switch {
	case p["type"] != "urn:debvisor:error:"+p["code"].(string),
		p["status"] != float64(resp.StatusCode),
		p["trace_id"] != resp.Header.Get(traceHeader):
		return nil, fmt.Errorf("%s (trace %s) contradicts itself: %s", resp.Status, resp.Header.Get(traceHeader), body)
	case (p["retry_after"] == nil) != (resp.Header.Get("Retry-After") == ""):
		return nil, fmt.Errorf("%s says when to retry in one place only: %s", resp.Status, body)
	}
	return p, nil
}
