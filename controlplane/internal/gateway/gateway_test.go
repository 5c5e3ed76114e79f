package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

func TestTheServerSeesTheCallerItself(t *testing.T) {
	r := newRig(t)
	for _, http2 := range []bool{false, true} {
		ada, bob, nobody := r.client("ada", http2), r.client("bob", http2), r.client("", http2)
		for _, c := range []struct {
			client *http.Client
			name   string
			bearer string
		}{{ada, "ada", ""}, {bob, "bob", ""}, {nobody, "", "one"}, {ada, "ada", "two"}, {nobody, "", ""}, {nobody, "", "three"}} {
			req := r.request(http.MethodGet, "/v1/vms/web", "")
			if c.bearer != "" {
				req.Header.Set("Authorization", "Bearer "+c.bearer)
			}
			resp, body := r.do(c.client, req)
			if resp.StatusCode != http.StatusOK || resp.ProtoMajor == 2 != http2 {
				t.Fatalf("HTTP/%d %s: %s", resp.ProtoMajor, resp.Status, body)
			}
			got := r.last()
			if got.name != c.name || got.address != "127.0.0.1" {
				t.Errorf("the server sees %q from %q, want %q", got.name, got.address, c.name)
			}
			var want []string
			if c.bearer != "" {
				want = []string{"Bearer " + c.bearer}
			}
			if have := got.metadata.Get("authorization"); strings.Join(have, ",") != strings.Join(want, ",") {
				t.Errorf("the server sees the authorization %q, want %q", have, want)
			}
		}
	}
}

// traced is a trace context as another program sends it.
const traced = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestNothingElseIsPassedOn(t *testing.T) {
	r := newRig(t)
	resp, body := r.do(r.client("ada", true), r.request(http.MethodPost, "/v1/vms/web:migrate", `{"target":{"node_id":{"id":"b"}}}`,
		"Debvisor-Request-Id: r-1", "Debvisor-Wait: none", "Debvisor-Trace-Id: t-1", "Traceparent: "+traced, "Cookie: a=b", "X-Forwarded-For: 203.0.113.1",
		"Grpc-Metadata-Authorization: Bearer stolen", "Grpc-Timeout: 1n", "X-Http-Method-Override: DELETE", "Te: trailers"))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	got := r.last()
	if have := got.metadata.Get("traceparent"); len(have) != 1 || have[0] != traced {
		t.Errorf("the trace context arrives as %q", have)
	}
	for name, values := range got.metadata {
		switch name {
		case "debvisor-request-id", "debvisor-wait", "debvisor-trace-id", "traceparent":
			if len(values) != 1 {
				t.Errorf("%s: %q", name, values)
			}
		case ":authority", "content-type", "user-agent", "grpc-accept-encoding": // gRPC's own
		default:
			t.Errorf("passed on: %s: %q", name, values)
		}
	}
	want := &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: "web"}, Target: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: "b"}}}
	if !proto.Equal(got.request.(proto.Message), want) {
		t.Errorf("the server got %v", got.request)
	}
	for name, want := range map[string]string{
		"Debvisor-Operation": "op-1", "Debvisor-Trace-Id": "t-1", "Other": "", "Cache-Control": "no-store",
		"X-Content-Type-Options": "nosniff", "Content-Type": "application/json", "Set-Cookie": "", "Access-Control-Allow-Origin": "",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	// Names as in the .proto, 64 bits as text, what is not set is there.
	if answer["operation_id"] != "op-1" || answer["downtime_ms"] != "1152921504606846976" || answer["message"] != "" || answer["status"] != "STATUS_UNKNOWN" {
		t.Errorf("the answer is %s", body)
	}
}

func TestAnotherCAIsRefused(t *testing.T) {
	r := newRig(t)
	other, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]*tls.Config{
		"another CA": {MinVersion: tls.VersionTLS13, RootCAs: r.clients, Certificates: []tls.Certificate{r.certificate(other, "ada")}},
		"TLS 1.2":    {MaxVersion: tls.VersionTLS12, RootCAs: r.clients}, //nolint:gosec // that it is refused is what is shown
	} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
		if resp, err := client.Do(r.request(http.MethodGet, "/v1/vms/web", "")); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	if n := r.reached(); n != 0 {
		t.Errorf("%d calls reached the server", n)
	}
}

func TestPathValues(t *testing.T) {
	r := newRig(t)
	c := r.client("ada", true)
	for path, want := range map[string]string{
		"/v1/vms/web":              "web",
		"/v1/vms/a%2Fb":            "a/b",
		"/v1/vms/a%2541":           "a%41",
		"/v1/vms/a%25zz":           "a%zz",
		"/v1/vms/50%25":            "50%",
		"/v1/vms/a%3Amigrate":      "a:migrate",
		"/v1/vms/a:migrate":        "a:migrate",
		"/v1/vms/%C3%BC%20x":       "ü x",
		"/v1/vms/..%2f..%2fnodes":  "../../nodes",
		"/v1/vms/a?":               "a",
		"/v1/vms/web%3Fvm_id%3Dno": "web?vm_id=no",
	} {
		resp, body := r.do(c, r.request(http.MethodGet, path, ""))
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s: %s", path, resp.Status, body)
			continue
		}
		if got := r.last().request.(*debvisorv1.VMRef).GetVmId(); got != want {
			t.Errorf("%s is read as %q, want %q", path, got, want)
		}
	}
}

// TestEveryRefusal holds what the gateway answers to what it does not do.
func TestEveryRefusal(t *testing.T) {
	r := newRig(t)
	r.vms.get = func(_ context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		kinds := map[string]errdefs.Kind{
			"internal": errdefs.Internal, "invalid": errdefs.InvalidArgument, "missing": errdefs.NotFound, "exists": errdefs.AlreadyExists,
			"denied": errdefs.PermissionDenied, "unknown": errdefs.Unauthenticated, "limit": errdefs.ResourceExhausted,
			"state": errdefs.FailedPrecondition, "aborted": errdefs.Aborted, "away": errdefs.Unavailable, "later": errdefs.Unimplemented,
			"deadline": errdefs.DeadlineExceeded,
		}
		if ref.GetVmId() == "panic" {
			panic("the secret inside")
		}
		return nil, errdefs.New(kinds[ref.GetVmId()], "SOME_CODE", "text").With("vm", ref.GetVmId()).With("status", "RUNNING").WithRetry(1500 * time.Millisecond)
	}
	clients := map[bool]*http.Client{false: r.client("ada", false), true: r.client("ada", true)}
	big := `{"target":{"node_id":{"id":"` + strings.Repeat("x", rpc.MaxRequestBytes) + `"}}}`
	for _, c := range []struct {
		method, path, body string
		headers            []string
		status             int
		code, detail       string // detail: a part of it
	}{
		{"GET", "/v1/vms/internal", "", nil, 500, "SOME_CODE", "text"},
		{"GET", "/v1/vms/invalid", "", nil, 400, "SOME_CODE", "text"},
		{"GET", "/v1/vms/missing", "", nil, 404, "SOME_CODE", "text"},
		{"GET", "/v1/vms/exists", "", nil, 409, "SOME_CODE", "text"},
		{"GET", "/v1/vms/denied", "", nil, 403, "SOME_CODE", "text"},
		{"GET", "/v1/vms/unknown", "", nil, 401, "SOME_CODE", "text"},
		{"GET", "/v1/vms/limit", "", nil, 429, "SOME_CODE", "text"},
		{"GET", "/v1/vms/state", "", nil, 409, "SOME_CODE", "text"},
		{"GET", "/v1/vms/aborted", "", nil, 409, "SOME_CODE", "text"},
		{"GET", "/v1/vms/away", "", nil, 503, "SOME_CODE", "text"},
		{"GET", "/v1/vms/later", "", nil, 501, "SOME_CODE", "text"},
		{"GET", "/v1/vms/deadline", "", nil, 504, "SOME_CODE", "text"},
		{"GET", "/v1/vms/panic", "", nil, 500, "INTERNAL", "trace id"},
		{"POST", "/v1/vms/x:start", "", nil, 501, "UNIMPLEMENTED", "not implemented"},

		{"GET", "/v2/vms", "", nil, 404, "PATH_NOT_FOUND", "/v2/vms"},
		{"GET", "/v1//vms", "", nil, 404, "PATH_NOT_FOUND", "openapi.json"},
		{"POST", "/v1/vms/:start", "", nil, 405, "METHOD_NOT_ALLOWED", "expected GET"},
		{"GET", "/debvisor.v1.VMService/GetVM", "", nil, 404, "PATH_NOT_FOUND", ""},
		{"POST", "/debvisor.agent.v1.SessionService/Open", "", nil, 404, "PATH_NOT_FOUND", ""},
		{"PATCH", "/v1/vms/web", "", nil, 405, "METHOD_NOT_ALLOWED", "expected GET"},
		{"DELETE", "/v1/principals", "", nil, 405, "METHOD_NOT_ALLOWED", "expected GET"},
		{"POST", "/v1/roles/x", "", nil, 405, "METHOD_NOT_ALLOWED", "expected DELETE, GET, PUT"},
		{"OPTIONS", "/v1/vms", "", nil, 405, "METHOD_NOT_ALLOWED", "expected GET"},
		{"POST", "/openapi.json", "", nil, 405, "METHOD_NOT_ALLOWED", "expected GET"},
		{"GET", "/v1/vms/a%FF", "", nil, 400, "INVALID_PATH", "UTF-8"},
		{"GET", "/v1/vms?name=%zz", "", nil, 400, "INVALID_QUERY", ""},
		{"GET", "/v1/vms?name=a;b", "", nil, 400, "INVALID_QUERY", ""},

		{"GET", "/v1/vms?nam=a", "", nil, 400, "MALFORMED_REQUEST", "parameter nam is not known"},
		{"GET", "/v1/vms?node=a", "", nil, 400, "MALFORMED_REQUEST", "parameter node is not known"},
		{"GET", "/v1/vms?name[x]=a", "", nil, 400, "MALFORMED_REQUEST", "parameter name[x] is not known"},
		{"GET", "/v1/vms?name=a&name=b", "", nil, 400, "MALFORMED_REQUEST", "parameter name: too many values"},
		{"GET", "/v1/vms?name=%FF", "", nil, 400, "MALFORMED_REQUEST", "parameter name: not UTF-8"},
		{"GET", "/v1/vms/web?vm_id=other", "", nil, 400, "MALFORMED_REQUEST", "parameter vm_id is not known"},
		{"GET", "/v1/nodes?x=1", "", nil, 400, "MALFORMED_REQUEST", "parameter x is not known"},
		{"POST", "/v1/vms/x:migrate?allow_downtime=true", "", nil, 400, "MALFORMED_REQUEST", "parameter allow_downtime is not known"},
		{"GET", "/healthz?service=x", "", nil, 400, "MALFORMED_REQUEST", "parameter service is not known"},
		{"GET", "/v1/operations?limit=-1", "", nil, 400, "MALFORMED_REQUEST", "parameter limit"},
		{"GET", "/v1/operations/x:watch?y=z", "", nil, 400, "MALFORMED_REQUEST", "parameter y is not known"},

		{"POST", "/v1/vms/x:migrate", `{"nonsense":1}`, nil, 400, "MALFORMED_REQUEST", `unknown field "nonsense"`},
		{"POST", "/v1/vms/x:migrate", `{"target":{"node_id":{"name":"b"}}}`, nil, 400, "MALFORMED_REQUEST", `unknown field "name"`},
		{"POST", "/v1/vms/x:migrate", `{"allow_downtime":"yes"}`, nil, 400, "MALFORMED_REQUEST", "allowDowntime"},
		{"POST", "/v1/vms/x:migrate", `{"allow_downtime":true,"allow_downtime":false}`, nil, 400, "MALFORMED_REQUEST", "duplicate"},
		{"POST", "/v1/vms/x:migrate", `{"allow_downtime":true} {}`, nil, 400, "MALFORMED_REQUEST", "unexpected token"},
		{"POST", "/v1/vms/x:migrate", `{"allow`, nil, 400, "MALFORMED_REQUEST", "not its JSON"},
		{"POST", "/v1/vms/x:migrate", `[]`, nil, 400, "MALFORMED_REQUEST", "not its JSON"},
		{"POST", "/v1/vms/x:migrate", "{\"options\":\"\xff\"}", nil, 400, "MALFORMED_REQUEST", "UTF-8"},
		{"POST", "/v1/vms/x:migrate", `{"x":"` + strings.Repeat("y", 5000) + `"}`, nil, 400, "MALFORMED_REQUEST", "unknown field"},
		{"POST", "/v1/vms/x:migrate", big, nil, 413, "REQUEST_TOO_LARGE", "1048576"},
		{"POST", "/v1/vms/x:migrate", `a=b`, []string{"Content-Type: application/x-www-form-urlencoded", "Content-Type: "}, 415, "UNSUPPORTED_MEDIA_TYPE", "application/json"},
		{"POST", "/v1/vms/x:migrate", `{}`, []string{"Content-Type: ", "Content-Type: text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE", "text/plain"},
		{"POST", "/v1/vms/x:migrate", `{}`, []string{"Content-Encoding: gzip"}, 415, "UNSUPPORTED_MEDIA_TYPE", "gzip"},
		{"GET", "/v1/vms/x", `{}`, nil, 400, "BODY_NOT_EXPECTED", "query"},
		{"DELETE", "/v1/keys/x", `{}`, nil, 400, "BODY_NOT_EXPECTED", "query"},

		{"GET", "/v1/vms/x", "", []string{"X-Padding: " + strings.Repeat("x", rpc.MaxHeaderBytes)}, 431, "HEADERS_TOO_LARGE", "8192"},
		{"GET", "/v1/vms/x", "", []string{"Authorization: " + strings.Repeat("x", rpc.MaxHeaderBytes-1000)}, 431, "HEADERS_TOO_LARGE", "8192"},
		{"GET", "/v1/vms/x", "", []string{"Debvisor-Request-Idd: 1"}, 400, "UNKNOWN_HEADER", "Debvisor-Request-Idd"},
		{"GET", "/v1/vms/x", "", []string{"Authorization: Bearer ü"}, 400, "INVALID_HEADER", "Authorization"},
		{"POST", "/v1/vms/x:start", "", []string{"Origin: https://evil.example"}, 403, "CROSS_ORIGIN", ""},
		{"DELETE", "/v1/keys/x", "", []string{"Sec-Fetch-Site: cross-site"}, 403, "CROSS_ORIGIN", ""},
	} {
		for _, http2 := range []bool{false, true} {
			resp, body := r.do(clients[http2], r.request(c.method, c.path, c.body, c.headers...))
			p, err := problemOf(resp, body)
			if err != nil {
				t.Errorf("%s %s (HTTP/%d): %v", c.method, c.path, resp.ProtoMajor, err)
				continue
			}
			detail, _ := p["detail"].(string)
			if resp.StatusCode != c.status || p["code"] != c.code || !strings.Contains(strings.ToLower(detail), strings.ToLower(c.detail)) || len(detail) > 600 {
				t.Errorf("%s %s (HTTP/%d): %s", c.method, c.path, resp.ProtoMajor, body)
			}
			if c.code == "SOME_CODE" && (p["retry_after"] != 1.5 || resp.Header.Get("Retry-After") != "2" || p["vm"] == "" || p["context_status"] != "RUNNING") {
				t.Errorf("%s: %s", c.path, body)
			}
			if (c.status == 405) != (resp.Header.Get("Allow") != "") || (c.status == 401) != (resp.Header.Get("Www-Authenticate") != "") {
				t.Errorf("%s %s: headers %v", c.method, c.path, resp.Header)
			}
			if bytes.Contains(body, []byte("secret inside")) {
				t.Errorf("%s: %s", c.path, body)
			}
		}
	}
}

func TestAsManyHeadersAsAllowedAreServed(t *testing.T) {
	r := newRig(t)
	resp, body := r.do(r.client("", true), r.request(http.MethodGet, "/v1/vms/x", "", "Authorization: "+strings.Repeat("x", rpc.MaxHeaderBytes-innerHeaders-64)))
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s", resp.Status, body)
	}
}

func TestQuery(t *testing.T) {
	r := newRig(t)
	resp, body := r.do(r.client("ada", true), r.request(http.MethodGet, "/v1/vms?node.node_id.id=n-1&name=web%201", ""))
	want := &debvisorv1.VMFilter{Node: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: "n-1"}}, Name: "web 1"}
	if resp.StatusCode != http.StatusOK || !proto.Equal(r.last().request.(proto.Message), want) {
		t.Errorf("%s: %s, the server got %v", resp.Status, body, r.last().request)
	}
}

func TestWhatNeedsNoIdentity(t *testing.T) {
	r := newRig(t)
	c := r.client("", true)
	for path, want := range map[string]string{"/": index, "/openapi.json": string(openAPI), "/healthz": `"SERVING"`} {
		resp, body := r.do(c, r.request(http.MethodGet, path, ""))
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s %v: %.200s", path, resp.Status, resp.Header, body)
		}
	}
	r.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	resp, body := r.do(c, r.request(http.MethodGet, "/healthz", ""))
	if _, err := problemOf(resp, body); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/healthz of a replica that does not serve: %s, %v", resp.Status, err)
	}
	r.met.limit = 0
	for _, path := range []string{"/", "/openapi.json", "/nothing"} {
		resp, body := r.do(c, r.request(http.MethodGet, path, ""))
		p, err := problemOf(resp, body)
		if err != nil || resp.StatusCode != http.StatusTooManyRequests || p["retry_after"] != 1.5 {
			t.Errorf("%s beyond the limit: %s %s, %v", path, resp.Status, body, err)
		}
	}
	if resp, body := r.do(c, r.request(http.MethodGet, "/v1/vms/web", "")); resp.StatusCode != http.StatusOK {
		t.Errorf("a call beyond the limit of what is none: %s: %s", resp.Status, body)
	}
}

func TestWatch(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		r := newRig(t)
		step, ended := make(chan error), make(chan error, 1)
		r.ops.watch = func(ref *debvisorv1.OperationRef, stream grpc.ServerStreamingServer[debvisorv1.Operation]) error {
			for i := 0; ; i++ {
				select {
				case err := <-step:
					if err != nil {
						return err
					}
				case <-stream.Context().Done():
					ended <- stream.Context().Err()
					return stream.Context().Err()
				}
				if err := stream.Send(&debvisorv1.Operation{Id: ref.GetId(), Step: "step\n" + string(rune('a'+i))}); err != nil {
					return err
				}
			}
		}
		c := r.client("ada", http2)
		watch := func() (lines *bufio.Scanner, hangUp func() error) {
			t.Helper()
			go func() { step <- nil }() // the first message comes with the header
			resp, err := c.Do(r.request(http.MethodGet, "/v1/operations/op-1:watch", ""))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = resp.Body.Close() })
			if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" {
				t.Fatalf("%s %v", resp.Status, resp.Header)
			}
			return bufio.NewScanner(resp.Body), resp.Body.Close
		}
		line := func(lines *bufio.Scanner) map[string]any {
			t.Helper()
			var m map[string]any
			if !lines.Scan() || json.Unmarshal(lines.Bytes(), &m) != nil {
				t.Fatalf("no line but %q, %v", lines.Bytes(), lines.Err())
			}
			return m
		}

		// Each line arrives before the next is sent; the last is the error.
		lines, _ := watch()
		if m := line(lines); m["id"] != "op-1" || m["step"] != "step\na" {
			t.Errorf("first line: %v", m)
		}
		step <- nil
		if m := line(lines); m["step"] != "step\nb" {
			t.Errorf("second line: %v", m)
		}
		step <- errdefs.New(errdefs.Unavailable, "GONE", "the leader is gone").WithRetry(time.Second)
		p, _ := line(lines)["error"].(map[string]any)
		if p["code"] != "GONE" || p["status"] != float64(503) || p["retry_after"] != float64(1) || p["trace_id"] == "" || lines.Scan() {
			t.Errorf("last line: %v", p)
		}

		// It ends with its client.
		lines, hangUp := watch()
		line(lines)
		if err := hangUp(); err != nil {
			t.Fatal(err)
		}
		c.CloseIdleConnections()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the watch goes on without its client")
		}

		// An error before the first message is the answer.
		go func() { step <- errdefs.New(errdefs.NotFound, "OPERATION_NOT_FOUND", "no such operation") }()
		first, body := r.do(c, r.request(http.MethodGet, "/v1/operations/op-1:watch", ""))
		if p, err := problemOf(first, body); err != nil || first.StatusCode != http.StatusNotFound || p["code"] != "OPERATION_NOT_FOUND" {
			t.Errorf("%s: %s, %v", first.Status, body, err)
		}
	}
}

func TestStreamWithoutMessages(t *testing.T) {
	r := newRig(t)
	resp, body := r.do(r.client("ada", true), r.request(http.MethodGet, "/v1/audit?events=a&events=b&since.seconds=5", ""))
	if resp.StatusCode != http.StatusOK || len(body) != 0 {
		t.Errorf("%s: %q", resp.Status, body)
	}
}

// TestNothingStaysBehind shows that an inner connection ends with its HTTPS
// connection, however that ends, and that stopping leaves nothing.
func TestNothingStaysBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	r := newRig(t)
	inside, cancelled := make(chan struct{}), make(chan struct{})
	r.vms.get = func(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		if ref.GetVmId() == "slow" {
			close(inside)
			<-ctx.Done()
			close(cancelled)
		}
		return &debvisorv1.VM{}, nil
	}
	for i := range 20 {
		c := r.client("ada", i%2 == 0)
		r.do(c, r.request(http.MethodGet, "/v1/vms/web", ""))
		c.CloseIdleConnections()
	}
	// A client that is gone without a word.
	raw, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.clients, ServerName: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(raw, "GET /v1/vms/slow HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-inside
	if err := raw.NetConn().Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-cancelled:
	case <-time.After(patience):
		t.Fatal("the call goes on without its client")
	}
	eventually(t, "connections are counted down", func() bool {
		d := r.door()
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.now == 0 && len(d.byIP) == 0
	})
	r.stop()
	eventually(t, "goroutines have ended", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			all := make([]byte, 1<<20)
			t.Fatalf("not yet: %s\n%s", what, all[:runtime.Stack(all, true)])
		}
	}
}

func TestTooManyConnections(t *testing.T) {
	r := newRig(t, func(g *Gateway) { doorOf(g).perAddress = 2 })
	a, b, c := r.client("a", true), r.client("b", true), r.client("c", true)
	for _, client := range []*http.Client{a, b} {
		r.do(client, r.request(http.MethodGet, "/v1/vms/web", ""))
	}
	if resp, err := c.Do(r.request(http.MethodGet, "/v1/vms/web", "")); err == nil {
		_ = resp.Body.Close()
		t.Error("a third connection of one address is served")
	}
	a.CloseIdleConnections()
	eventually(t, "another connection's place is free", func() bool {
		resp, err := c.Do(r.request(http.MethodGet, "/v1/vms/web", ""))
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
}

// impatient shortens what a client may take for its request.
func impatient(g *Gateway) {
	g.bodies.timeout, g.http.ReadHeaderTimeout = 1500*time.Millisecond, 1500*time.Millisecond
}

func TestSlowHeadersAndBodies(t *testing.T) {
	r := newRig(t, impatient)
	for name, c := range map[string]struct {
		sent string
		want string
	}{
		"nothing": {"", ""},
		"headers": {"GET /v1/vms/x HTTP/1.1\r\nHost: x\r\nX-", ""},
		"body":    {"POST /v1/vms/x:migrate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{", "REQUEST_TOO_SLOW"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.clients, ServerName: "127.0.0.1"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = raw.Close() }()
			if _, err := io.WriteString(raw, c.sent); err != nil {
				t.Fatal(err)
			}
			if err := raw.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(raw)
			var late net.Error
			if errors.As(err, &late) && late.Timeout() || !strings.Contains(string(answer), c.want) {
				t.Errorf("answer %q, %v", answer, err)
			}
		})
	}
}

func TestOldConnectionsAreRenewed(t *testing.T) {
	r := newRig(t, func(g *Gateway) { doorOf(g).age = 0 })
	for _, http2 := range []bool{false, true} {
		c := r.client("ada", http2)
		used := map[string]bool{}
		for range 3 {
			req := r.request(http.MethodGet, "/v1/vms/web", "")
			req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
				GotConn: func(info httptrace.GotConnInfo) { used[info.Conn.LocalAddr().String()] = true },
			}))
			if resp, body := r.do(c, req); resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", resp.Status, body)
			}
		}
		if len(used) != 3 {
			t.Errorf("HTTP/2 %t: 3 calls went over %d old connections", http2, len(used))
		}
	}
}

func TestANewCertificateIsUsed(t *testing.T) {
	r := newRig(t)
	serial := func() (serial string) {
		t.Helper()
		conn, err := tls.Dial("tcp", r.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.clients, ServerName: "127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		return certs.Serial(conn.ConnectionState().PeerCertificates[0])
	}
	first := serial()
	r.renew()
	if err := r.own.Reload(); err != nil {
		t.Fatal(err)
	}
	if serial() == first {
		t.Error("a new connection gets the old certificate")
	}
}

func TestConnectionsBeyondTheirGraceEnd(t *testing.T) {
	r := newRig(t, func(g *Gateway) { doorOf(g).age, doorOf(g).grace = 0, 100*time.Millisecond })
	cancelled := make(chan struct{})
	r.vms.get = func(ctx context.Context, _ *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		<-ctx.Done()
		close(cancelled)
		return nil, ctx.Err()
	}
	if resp, err := r.client("ada", true).Do(r.request(http.MethodGet, "/v1/vms/web", "")); err == nil {
		_ = resp.Body.Close()
		t.Error(resp.Status)
	}
	select {
	case <-cancelled:
	case <-r.deadline.Done():
		t.Error("the call goes on")
	}
}

func TestBodiesAreBoundedTogether(t *testing.T) {
	r := newRig(t)
	ask := func() (reply, []byte) {
		return r.do(r.client("ada", true), r.request(http.MethodPost, "/v1/vms/x:migrate", "{}"))
	}
	for address, held := range map[string]int64{"192.0.2.1": maxBodies, "127.0.0.1": maxBodiesOfOne} {
		r.bodies.hold(address, held)
		resp, body := ask()
		r.bodies.hold(address, -held)
		if p, err := problemOf(resp, body); err != nil || p["code"] != "BUSY" || resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("while %s holds %d bytes: %s: %s, %v", address, held, resp.Status, body, err)
		}
	}
	r.bodies.hold("192.0.2.1", maxBodiesOfOne)
	resp, body := ask()
	r.bodies.hold("192.0.2.1", -maxBodiesOfOne)
	if p, err := problemOf(resp, body); err == nil && p["code"] == "BUSY" {
		t.Errorf("one address keeps another out: %s", body)
	}
	if len(r.bodies.of) != 0 {
		t.Errorf("addresses are not forgotten: %v", r.bodies.of)
	}
}

// TestStopping shows that a call at work ends before the gateway does, and that
// no new one begins.
func TestStopping(t *testing.T) {
	r := newRig(t)
	inside, goOn := make(chan struct{}), make(chan struct{})
	r.vms.get = func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		close(inside)
		<-goOn
		return &debvisorv1.VM{}, nil
	}
	answered := make(chan error, 1)
	go func() {
		resp, err := r.client("ada", true).Do(r.request(http.MethodGet, "/v1/vms/web", ""))
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		answered <- err
	}()
	<-inside
	stopped := make(chan struct{})
	go func() { r.stop(); close(stopped) }()
	eventually(t, "no new connections", func() bool {
		conn, err := (&net.Dialer{}).DialContext(r.deadline, "tcp", r.Addr().String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	close(goOn)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	<-stopped
}
