package obs_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/obs/obstest"
)

// socket serves a collector on a unix socket.
func socket(t *testing.T, c *obstest.Collector) (endpoint string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "otlp.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Serve(listener))
	return "unix://" + path
}

func open(t *testing.T, cfg obs.TraceConfig) *obs.Tracing {
	t.Helper()
	cfg.Wait, cfg.Log = time.Millisecond, hclog.NewNullLogger()
	tracing, err := obs.OpenTracing(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tracing
}

func closed(t *testing.T, all ...*obs.Tracing) {
	t.Helper()
	for _, tracing := range all {
		if err := tracing.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	w3c    = "4bf92f3577b34da6a3ce929d0e0e4736"
	parent = "00-" + w3c + "-00f067aa0ba902b7-01"
)

// TestOperationsTraceIsOneTree has three programs make the spans of a call, its operation and its task, in an order in which none
// knows of the later ones.
func TestOperationsTraceIsOneTree(t *testing.T) {
	var c obstest.Collector
	endpoint := socket(t, &c)
	client := open(t, obs.TraceConfig{Service: "client", Endpoint: endpoint, Sample: 1})
	leader := open(t, obs.TraceConfig{Service: "leader", Instance: "r1", Endpoint: endpoint})
	agent := open(t, obs.TraceConfig{Service: "agent", Instance: "n1", Endpoint: endpoint})

	ctx, root := client.Begin(t.Context(), "command", w3c)
	ctx, call := obs.Start(ctx, "call")
	call.Set("debvisor.node", "n1")
	asked := obs.CallTraceparent(ctx, "")
	of := obs.Below(asked, "op-1")

	running, do := agent.Below(t.Context(), obs.Below(of, "op-1/1/kind"), "do kind")
	_, inner := obs.Start(running, "zfs send")
	inner.End(errdefs.New(errdefs.Unavailable, "POOL_SUSPENDED", "tank does not answer"))
	do.EndAs("FAILED_INSIDE")
	call.End(nil)
	root.End(errors.New("plain"))

	begun := time.Now().Add(-time.Minute)
	for range 2 { // as when another leader goes on
		leader.Open(t.Context(), obs.Piece{Of: "op-1", Traceparent: asked, Name: "operation", Begun: begun}).EndAt(begun.Add(time.Second), "")
		leader.Open(t.Context(), obs.Piece{Of: "op-1/1/kind", Traceparent: of, Name: "task", Begun: begun}).EndAt(begun.Add(time.Second), "GONE")
	}
	closed(t, client, leader, agent)

	tree, err := c.Tree(w3c)
	if err != nil {
		t.Fatal(err)
	}
	if root, err := tree.Root(); err != nil || root.GetName() != "command" {
		t.Fatalf("root %v: %v\n%s", root, err, tree)
	}
	sent, err := tree.Named("zfs send", "agent of n1")
	if err != nil {
		t.Fatal(err)
	}
	if above, want := tree.Above(sent), []string{"command", "call", "operation", "task", "do kind"}; !slices.Equal(above, want) {
		t.Errorf("above zfs is %q, want %q", above, want)
	}
	if len(tree) != 6 {
		t.Errorf("%d spans:\n%s", len(tree), tree)
	}
	if sent.GetStatus().GetMessage() != "POOL_SUSPENDED" || strings.Contains(string(c.All()), "tank") {
		t.Errorf("of an error came %q", sent.GetStatus())
	}
}

// TestOwnOperationBeginsItsTrace is of what the cluster orders by itself.
func TestOwnOperationBeginsItsTrace(t *testing.T) {
	var c obstest.Collector
	tracing := open(t, obs.TraceConfig{Service: "leader", Endpoint: socket(t, &c), Sample: 1})
	id, own := tracing.Root("op-7")
	if id != obs.TraceOf(own) || obs.Below(own, "op-7") != own {
		t.Fatalf("trace %s, traceparent %s", id, own)
	}
	tracing.Open(t.Context(), obs.Piece{Of: "op-7", Traceparent: own, Name: "operation", Begun: time.Now()}).EndAt(time.Now(), "")
	_, do := tracing.Below(t.Context(), own, "do")
	do.EndAs("")
	closed(t, tracing)
	tree, err := c.Tree(id)
	if err != nil {
		t.Fatal(err)
	}
	if root, err := tree.Root(); err != nil || root.GetName() != "operation" || len(tree) != 2 {
		t.Errorf("root %v: %v\n%s", root, err, tree)
	}

	for name, none := range map[string]*obs.Tracing{"off": nil, "not sampled": open(t, obs.TraceConfig{Service: "x", Endpoint: "unix:///nowhere"})} {
		again, unrecorded := none.Root("op-7")
		if again != id || obs.TraceOf(unrecorded) != id || none.Recorded(unrecorded) {
			t.Errorf("%s: trace %s, traceparent %s", name, again, unrecorded)
		}
		closed(t, none)
	}
}

// TestOffCostsNothing is of programs without a collector.
func TestOffCostsNothing(t *testing.T) {
	off, err := obs.OpenTracing(t.Context(), obs.TraceConfig{Service: "x"})
	if err != nil || off != nil || off.Server(nil) != nil || off.Dial() != nil {
		t.Fatalf("without an endpoint: %v, %v", off, err)
	}
	ctx := t.Context()
	spans := testing.AllocsPerRun(1000, func() {
		ctx, span := obs.Start(ctx, "work")
		span.Set("debvisor.node", "n1")
		_, task := off.Below(ctx, parent, "task")
		task.EndAs("X")
		span.End(nil)
		if obs.CallTraceparent(ctx, "") != "" || off.Recorded(parent) {
			t.Error("recorded")
		}
	})
	if spans != 0 {
		t.Errorf("%v allocations", spans)
	}
}

func BenchmarkOff(b *testing.B) {
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_, span := obs.Start(ctx, "work")
		span.Set("debvisor.node", "n1")
		span.End(nil)
	}
}

func TestEndpoints(t *testing.T) {
	for endpoint, good := range map[string]bool{
		"https://collector:4317": true, "https://collector": true, "https://[2001:db8::1]:4317/": true, "unix:///run/otlp.sock": true, "": true,
		"http://collector:4317": false, "collector:4317": false, "https://": false, "https://collector:0x": false, "https://u:p@collector": false,
		"https://collector/v1/traces": false, "unix://run/otlp.sock": false, "unix://": false, "grpc://collector": false,
	} {
		if err := (obs.TraceConfig{Endpoint: endpoint}).Check(); (err == nil) != good {
			t.Errorf("%q: %v", endpoint, err)
		} else if err != nil && (!strings.Contains(err.Error(), "trace-endpoint") || !strings.Contains(err.Error(), "unix:///path")) {
			t.Errorf("%q is refused with %v", endpoint, err)
		}
	}
	if err := (obs.TraceConfig{Endpoint: "https://u:hunter2@collector"}).Check(); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a password in the endpoint: %v", err)
	}
	for _, bad := range []obs.TraceConfig{
		{CA: "x"}, {Endpoint: "https://c", Sample: 1.1}, {Sample: -1}, {Endpoint: "https://c", Cert: "x"}, {Endpoint: "https://c", Key: "x"},
	} {
		if bad.Check() == nil {
			t.Errorf("accepted: %+v", bad)
		}
	}
}

// TestTLSOnly has spans go over TLS, to whom the CA vouches for and to nobody else; that nobody takes them holds up nothing.
func TestTLSOnly(t *testing.T) {
	pair, ca := selfSigned(t)
	_, other := selfSigned(t)
	var c obstest.Collector
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Serve(listener, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}))))
	for name, files := range map[string]string{"good": ca, "wrong": other} {
		tracing := open(t, obs.TraceConfig{Service: name, Endpoint: "https://" + listener.Addr().String(), CA: files, Sample: 1})
		_, span := tracing.Begin(t.Context(), name, "")
		id := span.TraceID()
		span.End(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		begun := time.Now()
		err := tracing.Close(ctx)
		cancel()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: it took %v to end (%v)", name, took, err)
		}
		if tree, err := c.Tree(id); err != nil || (len(tree) == 1) != (name == "good") {
			t.Errorf("%s: %d spans, %v", name, len(tree), err)
		}
	}
	if _, err := obs.OpenTracing(t.Context(), obs.TraceConfig{Endpoint: "https://c", CA: filepath.Join(t.TempDir(), "none.pem")}); err == nil {
		t.Error("a CA file that is not there is accepted")
	}
}

// selfSigned makes a certificate for 127.0.0.1 and the file of the CA that it is of: itself.
func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

func TestTraceparents(t *testing.T) {
	for text, want := range map[string]string{
		parent: w3c, "00-" + w3c + "-00f067aa0ba902b7-00": w3c, "01-" + w3c + "-00f067aa0ba902b7-01-more": w3c,
		"00-" + w3c + "-00f067aa0ba902b7-01-more": "", "ff-" + w3c + "-00f067aa0ba902b7-01": "", "00-" + w3c + "-0000000000000000-01": "",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": "", "00-" + strings.ToUpper(w3c) + "-00f067aa0ba902b7-01": "",
		"00-" + w3c + "-00f067aa0ba902b7-0": "", "00-" + w3c + "-00f067aa0ba902b7-zz": "", "": "", "00": "",
	} {
		if got := obs.TraceOf(text); got != want {
			t.Errorf("%q is of trace %q, want %q", text, got, want)
		}
	}
	if got := obs.CallTraceparent(t.Context(), parent); got != parent {
		t.Errorf("what the caller sent becomes %q", got)
	}
	if below := obs.Below(parent, "op-1"); below == parent || obs.TraceOf(below) != w3c || below != obs.Below(below, "op-1") {
		t.Errorf("below it is %q", below)
	}
	for id, want := range map[string]string{w3c: w3c, "a-caller's-own": "", "": ""} {
		if got := obs.TraceOf(obs.Unrecorded(id, "op-1")); got != want {
			t.Errorf("the trace %q is told as %q", id, got)
		}
	}
}

func TestIDsAreTold(t *testing.T) {
	var out strings.Builder
	log := hclog.New(&hclog.LoggerOptions{Output: &out})
	ctx := obs.WithIDs(t.Context(), obs.IDs{Trace: w3c, Operation: "op-1"})
	obs.Logger(ctx, log).Info("said", "more", 1)
	obs.Logger(t.Context(), log).Info("plain")
	lines := strings.Split(out.String(), "\n")
	if !strings.Contains(lines[0], "operation_id=op-1 trace_id="+w3c+" more=1") || strings.Contains(lines[0], "task_id") || strings.Contains(lines[1], "_id") {
		t.Errorf("%q", lines)
	}
}
