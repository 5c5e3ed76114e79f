package rpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// vms is a service that does what its test wants.
type vms struct {
	debvisorv1.UnimplementedVMServiceServer
	get func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error)
}

func (s *vms) GetVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
	return s.get(ctx, ref)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// pair issues a certificate and gives both what presents and what trusts it.
func pair(t *testing.T, ca *certs.Authority, leaf certs.Leaf) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := certs.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.Issue(key.Public(), leaf, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := certs.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	return cert, pool
}

type rig struct {
	conn *grpc.ClientConn
	vms  debvisorv1.VMServiceClient
	log  *logBuffer
}

// serve runs a server with Edge and connects a client that presents "ada".
func serve(t *testing.T, get func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error)) rig {
	t.Helper()
	ca, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, pool := pair(t, ca, certs.ServerLeaf("test", "r1", nil, 0))
	client, _ := pair(t, ca, certs.ClientLeaf("ada", 0))
	log := &logBuffer{}
	server, err := rpc.NewServer(rpc.ServerConfig{
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool},
		Age: true, Log: hclog.New(&hclog.LoggerOptions{Output: log}),
	})
	if err != nil {
		t.Fatal(err)
	}
	debvisorv1.RegisterVMServiceServer(server, &vms{get: get})
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	conn, err := rpc.Dial(listener.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{client}, RootCAs: pool})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return rig{conn, debvisorv1.NewVMServiceClient(conn), log}
}

func TestOnlyTLS13(t *testing.T) {
	for name, cfg := range map[string]*tls.Config{"none": nil, "1.2": {MinVersion: tls.VersionTLS12}} {
		if _, err := rpc.NewServer(rpc.ServerConfig{TLS: cfg, Log: hclog.NewNullLogger()}); err == nil {
			t.Errorf("%s: a server was made", name)
		}
		if _, err := rpc.Dial("127.0.0.1:1", cfg); err == nil {
			t.Errorf("%s: a client was made", name)
		}
	}
}

func TestErrorsMakeTheJourney(t *testing.T) {
	var raise error
	r := serve(t, func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error) { return nil, raise })
	for kind := errdefs.Internal; kind <= errdefs.Unimplemented; kind++ {
		raise = errdefs.New(kind, "SOME_CODE", "text %d", kind).With("key", "value").WithRetry(1500 * time.Millisecond)
		_, err := r.vms.GetVM(t.Context(), &debvisorv1.VMRef{})
		got := errdefs.FromStatus(err)
		if got.Kind != kind || got.Code != "SOME_CODE" || got.Message != raise.Error() || got.Context["key"] != "value" || got.RetryAfter != 1500*time.Millisecond {
			t.Errorf("kind %d arrives as %+v", kind, got)
		}
		if got.Context["trace_id"] == "" {
			t.Errorf("kind %d arrives without a trace id", kind)
		}
	}
}

func TestPanicLeavesNothingOfTheInside(t *testing.T) {
	r := serve(t, func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error) { panic("the secret inside") })
	_, err := r.vms.GetVM(t.Context(), &debvisorv1.VMRef{})
	got := errdefs.FromStatus(err)
	if got.Kind != errdefs.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("the caller gets %v", err)
	}
	logged := r.log.String()
	if strings.Count(logged, "the secret inside") != 1 || !strings.Contains(logged, got.Context["trace_id"]) || !strings.Contains(logged, "rpc_test.go") {
		t.Errorf("the log has %s", logged)
	}
}

func TestTraceID(t *testing.T) {
	var inside string
	r := serve(t, func(ctx context.Context, _ *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		inside = rpc.TraceID(ctx)
		return &debvisorv1.VM{}, nil
	})
	const w3c = "4bf92f3577b34da6a3ce929d0e0e4736"
	for name, c := range map[string]struct {
		ctx  context.Context
		want string // empty: a new one
	}{
		"none":        {t.Context(), ""},
		"own":         {metadata.AppendToOutgoingContext(t.Context(), rpc.TraceHeader, "abc-1"), "abc-1"},
		"context":     {rpc.WithTraceID(t.Context(), "from-context"), "from-context"},
		"w3c":         {metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+w3c+"-00f067aa0ba902b7-01"), w3c},
		"w3c zero":    {metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"), ""},
		"log forging": {metadata.AppendToOutgoingContext(t.Context(), rpc.TraceHeader, "a b\" c"), ""},
		"too long":    {metadata.AppendToOutgoingContext(t.Context(), rpc.TraceHeader, strings.Repeat("a", 65)), ""},
	} {
		var header metadata.MD
		if _, err := r.vms.GetVM(c.ctx, &debvisorv1.VMRef{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		told := header.Get(rpc.TraceHeader)
		if len(told) != 1 || told[0] != inside || c.want != "" && inside != c.want || c.want == "" && len(inside) != 32 {
			t.Errorf("%s: the handler has %q, the answer %q, want %q", name, inside, told, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	r := serve(t, func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		return &debvisorv1.VM{Name: strings.Repeat("x", rpc.MaxResponseBytes)}, nil
	})
	_, err := r.vms.GetVM(t.Context(), &debvisorv1.VMRef{VmId: strings.Repeat("x", rpc.MaxRequestBytes)}, grpc.MaxCallSendMsgSize(10<<20))
	if !errdefs.Is(errdefs.FromStatus(err), errdefs.ResourceExhausted) {
		t.Errorf("a request of more than 1 MiB: %v", err)
	}
	_, err = r.vms.GetVM(t.Context(), &debvisorv1.VMRef{}, grpc.MaxCallRecvMsgSize(20<<20))
	if !errdefs.Is(errdefs.FromStatus(err), errdefs.ResourceExhausted) {
		t.Errorf("an answer of more than 10 MiB: %v", err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "padding", strings.Repeat("x", rpc.MaxHeaderBytes))
	if _, err = r.vms.GetVM(ctx, &debvisorv1.VMRef{}); err == nil {
		t.Error("more than 8 KiB of headers are accepted")
	}
}

func TestPeer(t *testing.T) {
	var made, first int
	r := serve(t, func(ctx context.Context, _ *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		value, isFirst := rpc.PeerOf(ctx).Once(func(leaf *x509.Certificate) any {
			made++
			return leaf.Subject.CommonName
		})
		if isFirst {
			first++
		}
		if value != "ada" || rpc.Certificate(ctx).Subject.CommonName != "ada" || rpc.Address(ctx) != "127.0.0.1" {
			t.Errorf("peer %v from %s", value, rpc.Address(ctx))
		}
		return &debvisorv1.VM{}, nil
	})
	for range 3 {
		if _, err := r.vms.GetVM(t.Context(), &debvisorv1.VMRef{}); err != nil {
			t.Fatal(err)
		}
	}
	if made != 1 || first != 1 {
		t.Errorf("made %d times, first %d times", made, first)
	}
}

func TestCodec(t *testing.T) {
	codec := rpc.NewCodec()
	list := &debvisorv1.NodeList{Nodes: []*debvisorv1.NodeSummary{{AgeMs: 7}}}
	plain, err := codec.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := codec.Keep(list); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*debvisorv1.NodeList{list, proto.CloneOf(list)} {
		got, err := codec.Marshal(m)
		if err != nil || !bytes.Equal(got.Materialize(), plain.Materialize()) {
			t.Errorf("encodes to %x, %v", got.Materialize(), err)
		}
		got.Free()
	}
	var back debvisorv1.NodeList
	if err := codec.Unmarshal(plain, &back); err != nil || !proto.Equal(&back, list) || rpc.Decoded(&back) != nil {
		t.Errorf("decodes to %v, %v", &back, err)
	}
}

func TestMalformed(t *testing.T) {
	codec := rpc.NewCodec()
	bad, err := codec.Marshal(&debvisorv1.VMRef{VmId: "abc"})
	if err != nil {
		t.Fatal(err)
	}
	raw := bad.Materialize()
	raw[1] = 0x7f // the string's length is beyond the end
	var ref debvisorv1.VMRef
	if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, &ref); err != nil || !errdefs.Is(rpc.Decoded(&ref), errdefs.InvalidArgument) || ref.GetVmId() != "" {
		t.Errorf("a truncated message: %v, %v", err, rpc.Decoded(&ref))
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal([]byte, any) error   { return nil }
func (rawCodec) Name() string                  { return "proto" }

func TestEdgeRefusesGarbage(t *testing.T) {
	r := serve(t, func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		t.Error("the handler is called")
		return &debvisorv1.VM{}, nil
	})
	err := r.conn.Invoke(t.Context(), debvisorv1.VMService_GetVM_FullMethodName, &[]byte{0x0a, 0x7f}, &debvisorv1.VM{}, grpc.ForceCodec(rawCodec{}))
	if e := errdefs.FromStatus(err); e == nil || e.Kind != errdefs.InvalidArgument {
		t.Errorf("garbage: %v", err)
	}
}
