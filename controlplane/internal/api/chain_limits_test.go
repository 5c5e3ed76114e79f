package api_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// listOn lists the nodes and gives the refusal; nil: none.
func listOn(t *testing.T, conn *grpc.ClientConn) *errdefs.Error {
	t.Helper()
	_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(t.Context(), &debvisorv1.Empty{})
	return errdefs.FromStatus(err)
}

func limited(perMinute uint32, roles ...string) *storev1.Principal {
	return &storev1.Principal{Type: "service", Roles: roles, Limit: &storev1.RateLimit{PerMinute: perMinute}}
}

func TestRefusalsOfOneWhoWasToldToWait(t *testing.T) {
	r := start(t, 1<<30)
	r.put(store.PutJSON(store.PrincipalKey("greedy"), limited(1, "viewer")))
	conn := r.principal("greedy")
	if e := listOn(t, conn); e != nil {
		t.Fatal(e)
	}
	const calls = 60
	for range calls { // the first by the limiter, the others by the tap
		e := listOn(t, conn)
		if e == nil || e.Kind != errdefs.ResourceExhausted || e.Code != "RATE_LIMIT_EXCEEDED" || e.Context["trace_id"] == "" ||
			e.Context["principal"] != "greedy" || e.RetryAfter <= 0 || e.RetryAfter > time.Minute {
			t.Fatalf("refused with %+v", e)
		}
	}
	if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("its health check: %v", err)
	}
	if e := listOn(t, r.principal("operator")); e != nil {
		t.Errorf("another's call: %v", e)
	}
	// Every refusal is in the audit log, though not each in a line of its own.
	told, lines := 0, 0
	for deadline := time.Now().Add(10 * time.Second); told < calls && time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		told, lines = 0, 0
		for _, event := range r.events("rate_limit_exceeded", 1) {
			more, reason := 0, event["reason"].(string)
			if _, err := fmt.Sscanf(reason, "%d more calls", &more); err != nil {
				more = 1
			}
			if event["principal"] != "greedy" || event["error"] != "RATE_LIMIT_EXCEEDED" || event["code"] != "RESOURCE_EXHAUSTED" {
				t.Fatalf("event %v", event)
			}
			told, lines = told+more, lines+1
		}
	}
	if told != calls || lines > 10 {
		t.Errorf("%d refusals are told in %d lines as %d", calls, lines, told)
	}
	// A higher limit acts within a second, on the same connection.
	r.put(store.PutJSON(store.PrincipalKey("greedy"), limited(1000, "viewer")))
	for began := time.Now(); listOn(t, conn) != nil; <-time.After(20 * time.Millisecond) {
		if time.Since(began) > 1500*time.Millisecond {
			t.Fatal("a higher limit does not act")
		}
	}
}

func TestWhatIsDeniedOrNotDeliveredCounts(t *testing.T) {
	large := &debvisorv1.VMRef{VmId: strings.Repeat("x", rpc.MaxRequestBytes)}
	for name, call := range map[string]func(*grpc.ClientConn) error{
		"denied": func(conn *grpc.ClientConn) error {
			_, err := debvisorv1.NewMigrationServiceClient(conn).FailoverVM(t.Context(), &debvisorv1.VMRef{VmId: "x"})
			return err
		},
		"too large": func(conn *grpc.ClientConn) error {
			_, err := debvisorv1.NewVMServiceClient(conn).GetVM(t.Context(), large, grpc.MaxCallSendMsgSize(2*rpc.MaxRequestBytes))
			return err
		},
		"no method": func(conn *grpc.ClientConn) error {
			return conn.Invoke(t.Context(), "/debvisor.v1.NodeService/Nothing", &debvisorv1.Empty{}, &debvisorv1.Empty{})
		},
		"no service": func(conn *grpc.ClientConn) error {
			return conn.Invoke(t.Context(), "/debvisor.v1.Nothing/Nothing", &debvisorv1.Empty{}, &debvisorv1.Empty{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 1<<30)
			r.put(store.PutJSON(store.PrincipalKey("ada"), limited(3, "viewer")))
			conn := r.principal("ada")
			for range 3 {
				e := errdefs.FromStatus(call(conn))
				want := map[string]errdefs.Kind{
					"denied": errdefs.PermissionDenied, "too large": errdefs.ResourceExhausted, "no method": errdefs.Unimplemented, "no service": errdefs.Unimplemented,
				}[name]
				if e == nil || e.Kind != want {
					t.Fatalf("refused with %+v", e)
				}
				if name != "too large" && e.Context["trace_id"] == "" { // that one grpc-go answers by itself
					t.Errorf("refused without details: %v", e)
				}
			}
			if e := listOn(t, conn); e == nil || e.Code != "RATE_LIMIT_EXCEEDED" {
				t.Errorf("the fourth call: %v", e)
			}
			kind := "permission_denied"
			if name == "too large" {
				kind = "rpc_result"
			}
			for _, event := range r.events(kind, 3)[:3] {
				if event["principal"] != "ada" || event["code"] == "OK" || event["trace_id"] == nil {
					t.Errorf("event %v", event)
				}
			}
		})
	}
}

func TestAMethodThatDoesNotExistNeedsAnIdentity(t *testing.T) {
	r := start(t, 0)
	err := r.anonymous().Invoke(t.Context(), "/debvisor.v1.Nothing/Nothing", &debvisorv1.Empty{}, &debvisorv1.Empty{})
	if e := errdefs.FromStatus(err); e.Kind != errdefs.Unauthenticated || e.Context["trace_id"] == "" {
		t.Errorf("refused with %v", err)
	}
}

func TestFailedKeysAreCountedByAddress(t *testing.T) {
	r := start(t, 1<<30)
	r.put(store.PutJSON(store.PrincipalKey("ci"), limited(1000, "viewer")))
	id, good := r.key("ci", time.Now().Add(time.Hour))
	other, bad := r.key("ci", time.Now().Add(time.Hour))
	r.change(store.Change{Deletes: []string{store.APIKeyKey(other)}})
	var last *errdefs.Error
	for range 40 {
		last = listOn(t, bad)
	}
	if last == nil || last.Code != "TOO_MANY_FAILURES" || last.RetryAfter <= 0 {
		t.Errorf("the last of 40 calls with a key that is gone: %v", last)
	}
	if e := listOn(t, good); e != nil {
		t.Errorf("a good key of the same principal from the same address: %v", e)
	}
	if event := r.events("rpc_result", 1)[0]; event["principal"] != "ci" || !strings.Contains(event["credential"].(string), id) {
		t.Errorf("event %v", event)
	}
}

// TestLimitsOnTheWire are those that no client of grpc-go's would exceed.
func TestLimitsOnTheWire(t *testing.T) {
	r := start(t, 0)
	w := r.wire("operator")
	open := func(block []byte) (status <-chan string) {
		t.Helper()
		answered := make(chan string, 1)
		w.mu.Lock()
		w.answers[w.next] = answered
		w.mu.Unlock()
		if err := w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: w.next, BlockFragment: block, EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		w.next += 2
		return answered
	}
	padded := bytes.NewBuffer(headers(debvisorv1.NodeService_ListNodes_FullMethodName))
	if err := hpack.NewEncoder(padded).WriteField(hpack.HeaderField{Name: "padding", Value: strings.Repeat("x", rpc.MaxHeaderBytes)}); err != nil {
		t.Fatal(err)
	}
	if got := <-open(padded.Bytes()); got != "reset" {
		t.Errorf("a call with more than 8 KiB of headers comes to %q", got)
	}
	// Their messages never come, so that they stay open.
	var last <-chan string
	for range rpc.MaxStreams {
		last = open(headers(debvisorv1.NodeService_ListNodes_FullMethodName))
	}
	if got := <-open(headers(debvisorv1.NodeService_ListNodes_FullMethodName)); got != "reset" {
		t.Errorf("the 129th call at once comes to %q", got)
	}
	select {
	case got := <-last:
		t.Errorf("the 128th call at once comes to %q", got)
	default:
	}
}
