package api_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

func TestEveryRegisteredMethodHasARow(t *testing.T) {
	r := start(t, 0)
	if err := r.authz.Covers(r.server.GetServiceInfo()); err != nil {
		t.Error(err)
	}
	if err := r.authz.Covers(map[string]grpc.ServiceInfo{"x.Y": {Methods: []grpc.MethodInfo{{Name: "Z"}}}}); err == nil {
		t.Error("a method without a row goes unnoticed")
	}
}

func TestWhoMayCallWhat(t *testing.T) {
	r := start(t, 0)
	r.put(store.PutJSON(store.PrincipalKey("watcher"), &storev1.Principal{Type: "service", Roles: []string{"viewer"}}))
	list := func(conn *grpc.ClientConn) error {
		_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(t.Context(), &debvisorv1.Empty{})
		return err
	}
	migrate := func(conn *grpc.ClientConn) error {
		_, err := debvisorv1.NewMigrationServiceClient(conn).MigrateVM(t.Context(), &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: "x"}})
		return err
	}
	health := func(conn *grpc.ClientConn) error {
		_, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		return err
	}
	reflect := func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, err = stream.Recv() // where the call has ended, this says why
		return err
	}
	operator, watcher, stranger := r.principal("operator"), r.principal("watcher"), r.principal("stranger")
	agent, nobody := r.agent("n1"), r.anonymous()
	impostor := r.as(certs.AgentLeaf("elsewhere", "n1", 0), "impostor")
	for _, c := range []struct {
		name string
		err  error
		want codes.Code
	}{
		{"operator lists", list(operator), codes.OK},
		{"operator migrates", migrate(operator), codes.NotFound},
		{"operator reflects", reflect(operator), codes.OK},
		{"viewer lists", list(watcher), codes.OK},
		{"viewer migrates", migrate(watcher), codes.PermissionDenied},
		{"stranger lists", list(stranger), codes.PermissionDenied},
		{"agent lists", list(agent), codes.PermissionDenied},
		{"another cluster's agent lists", list(impostor), codes.Unauthenticated},
		{"nobody lists", list(nobody), codes.Unauthenticated},
		{"nobody reflects", reflect(nobody), codes.Unauthenticated},
		{"nobody asks for health", health(nobody), codes.OK},
	} {
		if got := status.Code(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	for _, event := range r.events("permission_denied", 3) {
		if event["principal"] == nil || event["trace_id"] == nil || event["error"] == nil || event["peer"] != "127.0.0.1" || event["code"] != "PERMISSION_DENIED" {
			t.Errorf("event %v", event)
		}
		if change := strings.HasSuffix(event["method"].(string), "MigrateVM"); change != (event["args"] != nil) {
			t.Errorf("event %v", event)
		}
	}
	r.events("authentication_failure", 3)
	once := 0
	for _, event := range r.events("authentication_success", 4) {
		if event["principal"] == "operator" {
			once++
		}
	}
	if once != 1 {
		t.Errorf("one connection is authenticated %d times", once)
	}
	// What is refused before its handler has one line, and that is it.
	calls, results := r.events("rpc_call", 4), r.events("rpc_result", 4)
	if len(calls) != 4 || len(results) != 4 {
		t.Errorf("%d calls, %d results", len(calls), len(results))
	}
	for _, event := range calls {
		if strings.Contains(event["method"].(string), "Health") {
			t.Errorf("a health check is audited: %v", event)
		}
		if change := strings.HasSuffix(event["method"].(string), "MigrateVM"); change != (event["args"] != nil) {
			t.Errorf("event %v", event)
		}
	}
}

func TestRevokedCertificate(t *testing.T) {
	r := start(t, 0)
	operator := debvisorv1.NewNodeServiceClient(r.principal("operator"))
	if _, err := operator.ListNodes(t.Context(), &debvisorv1.Empty{}); err != nil {
		t.Fatal(err)
	}
	r.put(store.PutString(store.RevokedKey(serialOf(t, r.dir+"/operator.pem")), "stolen"))
	if _, err := operator.ListNodes(t.Context(), &debvisorv1.Empty{}); errdefs.FromStatus(err).Code != "CERTIFICATE_REVOKED" {
		t.Errorf("on the connection that stands: %v", err)
	}
}

func TestRateLimit(t *testing.T) {
	r := start(t, 5)
	operator, other := r.principal("operator"), r.principal("other")
	var refused error
	for range 6 {
		_, refused = debvisorv1.NewNodeServiceClient(operator).ListNodes(t.Context(), &debvisorv1.Empty{})
	}
	e := errdefs.FromStatus(refused)
	if e.Kind != errdefs.ResourceExhausted || e.RetryAfter == 0 {
		t.Errorf("the sixth call: %v", refused)
	}
	if _, err := debvisorv1.NewNodeServiceClient(other).ListNodes(t.Context(), &debvisorv1.Empty{}); !errdefs.Is(errdefs.FromStatus(err), errdefs.PermissionDenied) {
		t.Errorf("another principal's first call: %v", err)
	}
	if event := r.events("rate_limit_exceeded", 1)[0]; event["principal"] != "operator" {
		t.Errorf("event %v", event)
	}
}

func TestAnAgentWhoseNodeWasEnrolledAnew(t *testing.T) {
	r := start(t, 0)
	r.node("n1", nil)
	conn := r.agent("n1")
	beat := func() error {
		_, err := debvisorv1.NewNodeServiceClient(conn).Heartbeat(t.Context(), &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: "n1"}})
		return err
	}
	if err := beat(); err != nil {
		t.Fatal(err)
	}
	r.node("n1", func(n *storev1.Node, _ *storev1.NodeStatus) {
		n.EnrolledAt = timestamppb.New(time.Now().Add(5 * time.Second))
	})
	if err := beat(); errdefs.FromStatus(err).Code != "NODE_REPLACED" {
		t.Errorf("the former agent is answered %v", err)
	}
	if event := r.events("authentication_failure", 1)[0]; event["principal"] != "agent:n1" {
		t.Errorf("event %v", event)
	}
	if !strings.Contains(r.log.String(), "agent:n1") {
		t.Errorf("the log says nothing of it: %s", r.log)
	}
}

// enrolment refuses every token.
type enrolment struct {
	agentv1.UnimplementedEnrollServiceServer
}

func (enrolment) Enroll(context.Context, *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	return nil, errdefs.New(errdefs.Unauthenticated, "JOIN_TOKEN_UNKNOWN", "unknown")
}

func TestStrangersDoNotFillTheAuditLog(t *testing.T) {
	lines := func(r *replica) int {
		_, err := debvisorv1.NewNodeServiceClient(r.principal("operator")).ListNodes(t.Context(), &debvisorv1.Empty{})
		if err != nil {
			t.Fatalf("who has an identity is refused with the strangers: %v", err)
		}
		r.events("authentication_success", 1) // all before is written, too
		b, err := os.ReadFile(r.dir + "/audit.log")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "\n")
	}
	for name, call := range map[string]func(*grpc.ClientConn) error{
		"without an identity": func(conn *grpc.ClientConn) error {
			_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(t.Context(), &debvisorv1.Empty{})
			return err
		},
		"with tokens that they make up": func(conn *grpc.ClientConn) error {
			_, err := agentv1.NewEnrollServiceClient(conn).Enroll(t.Context(), &agentv1.EnrollRequest{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 1<<30)
			nobody := r.anonymous()
			var last error
			for range 300 {
				last = call(nobody)
			}
			if e := errdefs.FromStatus(last); e.Kind != errdefs.ResourceExhausted || e.Code != "TOO_MANY_FAILURES" || e.RetryAfter == 0 {
				t.Errorf("the last of 300 calls: %v", last)
			}
			if n := lines(r); n > 120 {
				t.Errorf("300 calls of a stranger made %d lines", n)
			}
			if told := r.events("rate_limit_exceeded", 1); len(told) > 2 || told[0]["peer"] != "127.0.0.1" {
				t.Errorf("of the refusals the log says %v", told)
			}
		})
	}
}

func TestInvalidRequestsNameEveryField(t *testing.T) {
	r := start(t, 0)
	conn := r.principal("operator")
	_, err := debvisorv1.NewNodeServiceClient(conn).Heartbeat(t.Context(), &debvisorv1.Health{MemUsedPct: 101, DiskUsedPct: -1})
	e := errdefs.FromStatus(err)
	if e.Kind != errdefs.InvalidArgument || e.Code != "INVALID_FIELD" {
		t.Fatal(err)
	}
	for _, want := range []string{"node_id", "mem_used_pct", `"101"`, "disk_used_pct", `"-1"`, "100"} {
		if !strings.Contains(e.Message, want) {
			t.Errorf("%q is not in %q", want, e.Message)
		}
	}
	_, err = debvisorv1.NewMigrationServiceClient(conn).MigrateVM(t.Context(), &debvisorv1.VMMigrateSpec{})
	if e := errdefs.FromStatus(err); e.Kind != errdefs.InvalidArgument || e.Context["field"] != "vm" {
		t.Errorf("no VM: %+v", e)
	}
	_, err = debvisorv1.NewMigrationServiceClient(conn).MigrateVM(t.Context(), &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{}})
	if e := errdefs.FromStatus(err); e.Kind != errdefs.InvalidArgument || e.Context["field"] != "vm.vm_id" {
		t.Errorf("an empty VM: %+v", e)
	}
	_, err = debvisorv1.NewNodeServiceClient(conn).RegisterNode(t.Context(), &debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: "Not A Node"}})
	if e := errdefs.FromStatus(err); e.Kind != errdefs.InvalidArgument || e.Context["field"] != "id.id" {
		t.Errorf("a malformed id: %+v", e)
	}
	// A stream's message is validated as well.
	stream, err := debvisorv1.NewOperationServiceClient(conn).WatchOperation(t.Context(), &debvisorv1.OperationRef{})
	if err == nil {
		_, err = stream.Recv()
	}
	if e := errdefs.FromStatus(err); e.Kind != errdefs.InvalidArgument || e.Context["field"] != "id" {
		t.Errorf("an operation without id: %+v", e)
	}
	// What is no protobuf at all is refused by the chain too, and audited.
	raw := garbage{0x0a, 0x7f}
	err = conn.Invoke(t.Context(), debvisorv1.MigrationService_MigrateVM_FullMethodName, &raw, &debvisorv1.MigrationResult{}, grpc.ForceCodec(garbageCodec{}))
	if e := errdefs.FromStatus(err); e.Kind != errdefs.InvalidArgument || e.Code != "MALFORMED_REQUEST" {
		t.Errorf("garbage: %+v", e)
	}
	for name, value := range map[string]string{"debvisor-wait": "forever", "debvisor-request-id": strings.Repeat("x", 129)} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), name, value)
		_, err = debvisorv1.NewMigrationServiceClient(conn).MigrateVM(ctx, &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: "x"}})
		if e := errdefs.FromStatus(err); e.Kind != errdefs.InvalidArgument || e.Context["field"] != name {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// garbage is what garbageCodec sends as it is.
type garbage []byte

type garbageCodec struct{}

func (garbageCodec) Marshal(v any) ([]byte, error) {
	if b, ok := v.(*garbage); ok {
		return *b, nil
	}
	return nil, errors.New("only garbage is sent")
}
func (garbageCodec) Unmarshal([]byte, any) error { return nil }
func (garbageCodec) Name() string                { return "proto" }

func TestTraceIDIsEverywhere(t *testing.T) {
	r := start(t, 0)
	ctx := metadata.AppendToOutgoingContext(t.Context(), rpc.TraceHeader, "my-trace")
	var header metadata.MD
	_, err := debvisorv1.NewVMServiceClient(r.principal("operator")).GetVM(ctx, &debvisorv1.VMRef{VmId: "x"}, grpc.Header(&header))
	if e := errdefs.FromStatus(err); e.Kind != errdefs.NotFound || e.Context["trace_id"] != "my-trace" {
		t.Errorf("the error has %v", e.Context)
	}
	if got := header.Get(rpc.TraceHeader); len(got) != 1 || got[0] != "my-trace" {
		t.Errorf("the header has %v", got)
	}
	for _, kind := range []string{"rpc_call", "rpc_result"} {
		if event := r.events(kind, 1)[0]; event["trace_id"] != "my-trace" || event["principal"] != "operator" {
			t.Errorf("event %v", event)
		}
	}
}

func TestHealthFollowsTheReplica(t *testing.T) {
	r := start(t, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := healthv1.NewHealthClient(r.anonymous()).Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	await := func(want healthv1.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for {
			answer, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if answer.GetStatus() == want {
				return
			}
		}
	}
	await(healthv1.HealthCheckResponse_SERVING)
	if err := r.client.Close(); err != nil { // the replica loses sight of etcd
		t.Fatal(err)
	}
	await(healthv1.HealthCheckResponse_NOT_SERVING)
	_, err = debvisorv1.NewNodeServiceClient(r.principal("operator")).ListNodes(t.Context(), &debvisorv1.Empty{})
	if !errdefs.Is(errdefs.FromStatus(err), errdefs.Unavailable) {
		t.Errorf("a replica without sight of etcd answers %v", err)
	}
	_, err = agentv1.NewEnrollServiceClient(r.anonymous()).Enroll(t.Context(), &agentv1.EnrollRequest{})
	if !errdefs.Is(errdefs.FromStatus(err), errdefs.Unavailable) {
		t.Errorf("a replica without sight of etcd enrols, by records that may be old: %v", err)
	}
}

func TestLeaveEndsWatches(t *testing.T) {
	r := start(t, 0)
	watch, err := healthv1.NewHealthClient(r.anonymous()).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	r.lead()
	r.node("a", nil)
	r.node("b", nil)
	r.vm("1", "web", "a")
	operator := r.principal("operator")
	moved, err := debvisorv1.NewMigrationServiceClient(operator).MigrateVM(
		metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none"), &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: "web"}})
	if err != nil {
		t.Fatal(err)
	}
	follow, err := debvisorv1.NewOperationServiceClient(operator).WatchOperation(t.Context(), &debvisorv1.OperationRef{Id: moved.GetOperationId()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := follow.Recv(); err != nil {
		t.Fatal(err)
	}
	leaving, leave := context.WithCancel(t.Context())
	leave()
	for _, end := range []func(context.Context) error{r.front.Move, r.front.Leave} {
		if err := end(leaving); err != nil {
			t.Fatal(err)
		}
	}
	stopped := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(stopped)
		r.server.GracefulStop()
	}()
	var last healthv1.HealthCheckResponse_ServingStatus
	for {
		answer, err := watch.Recv()
		if err != nil {
			break
		}
		last = answer.GetStatus()
	}
	if last != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("who watches the health was last told %s", last)
	}
	if _, err := follow.Recv(); errdefs.FromStatus(err).Code != "REPLICA_STOPS" {
		t.Errorf("who watches the operation is told %v", err)
	}
	<-stopped
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("watches hold up the stop for %s", took)
	}
}
