package errdefs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// failing answers every GetOperation with one error, through the edge.
type failing struct {
	debvisorv1.UnimplementedOperationServiceServer
	err error
}

func (f *failing) GetOperation(context.Context, *debvisorv1.OperationRef) (*debvisorv1.Operation, error) {
	return nil, ToStatus(f.err, "trace-1")
}

// journey sends err through a real gRPC server and gives what a client gets.
// The pipe in memory carries the test only: no product path is without TLS.
func journey(t *testing.T, err error) error {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	srv := grpc.NewServer()
	debvisorv1.RegisterOperationServiceServer(srv, &failing{err: err})
	go func() { _ = srv.Serve(lis) }()
	t.Cleanup(srv.Stop)
	conn, dialErr := grpc.NewClient("passthrough:pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if dialErr != nil {
		t.Fatal(dialErr)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, got := debvisorv1.NewOperationServiceClient(conn).GetOperation(t.Context(), &debvisorv1.OperationRef{Id: "op-1"})
	return got
}

func TestEveryKindSurvivesTheJourney(t *testing.T) {
	for kind := Internal; kind <= Unimplemented; kind++ {
		code := kind.code()
		if got := strings.ReplaceAll(strings.ToUpper(code.String()), "CANCELED", "CANCELLED"); got != strings.ReplaceAll(kind.String(), "_", "") {
			t.Errorf("kind %d is told as %s and leaves as %s", kind, kind, code)
		}
		raised := New(kind, "SOME_CODE", "vm %s", "web1").With("vm", "web1").WithRetry(1500 * time.Millisecond).
			WithCause(errors.New("secret inside"))
		got := journey(t, fmt.Errorf("while moving: %w", raised))
		if status.Code(got) != code {
			t.Errorf("kind %d left as %v, want %v", kind, status.Code(got), code)
		}
		if strings.Contains(got.Error(), "secret inside") {
			t.Errorf("the cause left the server: %v", got)
		}
		back := FromStatus(got)
		want := &Error{
			Kind: kind, Code: "SOME_CODE", Message: "vm web1", RetryAfter: 1500 * time.Millisecond,
			Context: map[string]string{"vm": "web1", "trace_id": "trace-1"},
		}
		if diff := cmp.Diff(want, back); diff != "" {
			t.Errorf("kind %d came back changed (-want +got):\n%s", kind, diff)
		}
	}
}

func TestForeignErrorsTellNothingOfTheInside(t *testing.T) {
	got := journey(t, errors.New("dial tcp 10.0.0.1: password=x"))
	if status.Code(got) != codes.Internal || strings.Contains(got.Error(), "password") {
		t.Errorf("got %v", got)
	}
	if back := FromStatus(got); back.Context["trace_id"] != "trace-1" {
		t.Errorf("no trace id leads to the log: %v", back)
	}
}

func TestContextErrorsKeepTheirMeaning(t *testing.T) {
	for err, want := range map[error]codes.Code{
		context.Canceled:         codes.Canceled,
		context.DeadlineExceeded: codes.DeadlineExceeded,
	} {
		if got := status.Code(ToStatus(fmt.Errorf("waiting: %w", err), "")); got != want {
			t.Errorf("%v left as %v", err, got)
		}
	}
	if got := status.Code(ToStatus(status.Error(codes.Unimplemented, "no such method"), "")); got != codes.Unimplemented {
		t.Errorf("grpc's own status left as %v", got)
	}
}

// Errors travel in headers, of which clients take 8 KiB; a longer one would
// come as a broken stream.
func TestLongErrorsFitIntoHeaders(t *testing.T) {
	const headers = 8<<10 - 256 // gRPC's own are among them
	many := New(InvalidArgument, "C", "many")
	for i := range 2000 {
		many = many.With(fmt.Sprint(i), "x")
	}
	for name, e := range map[string]*Error{
		"a long message":                   New(Aborted, "C", "%s", strings.Repeat("x", 1<<20)),
		"one that prints nothing":          New(Aborted, "C", "%s", strings.Repeat("\n", 1<<20)),
		"one in other letters":             New(Aborted, "C", "%s", strings.Repeat("é", 1<<20)),
		"a long value":                     New(Aborted, "C", "m").With("k", strings.Repeat("é", 1<<20)),
		"a long key":                       New(Aborted, "C", "m").With(strings.Repeat("k", 1<<20), "v"),
		"many values":                      many,
		"all of it, and when to try again": New(Aborted, "C", "%s", strings.Repeat("\n", 5000)).With("a", strings.Repeat("é", 5000)).With("b", strings.Repeat("é", 5000)).WithRetry(time.Second),
	} {
		st, _ := status.FromError(ToStatus(e, strings.Repeat("t", 64)))
		if size := onTheWire(st); size > headers {
			t.Errorf("%s takes %d bytes of the headers", name, size)
		}
		got := FromStatus(st.Err())
		if got.Kind != e.Kind || got.Code != "C" || got.RetryAfter != e.RetryAfter || len(got.Context["trace_id"]) != 64 || !strings.HasPrefix(e.Message, strings.TrimSuffix(got.Message, "…")) {
			t.Errorf("%s arrives as %+v", name, got)
		}
	}
	for _, length := range []int{0, 800, 1500} {
		e := New(Aborted, "C", "%s", strings.Repeat("x", length)).With("k", strings.Repeat("v", 100))
		if got := FromStatus(ToStatus(e, "")); got.Message != e.Message || got.Context["k"] != e.Context["k"] {
			t.Errorf("a message of %d bytes arrives as %+v", length, got)
		}
	}
}

func TestFieldNamesFieldValueAndWhatIsAccepted(t *testing.T) {
	err := Field("ttl", "-3", "0 to 86400 seconds")
	for _, part := range []string{"ttl", `"-3"`, "0 to 86400 seconds"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if !Is(fmt.Errorf("x: %w", err), InvalidArgument) || Is(nil, Internal) {
		t.Error("Is does not see the kind")
	}
}

// A call that succeeded, taken for a refusal, is of no kind.
func TestNoErrorIsOfNoKind(t *testing.T) {
	if Is(nil, Internal) || Is(FromStatus(nil), Internal) || Is(FromStatus(nil), NotFound) {
		t.Error("no error has a kind")
	}
}
