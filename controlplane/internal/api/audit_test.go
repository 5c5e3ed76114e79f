package api_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/auditlog"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// auditLines reads so many lines of a search, which may follow.
func auditLines(t *testing.T, log debvisorv1.AuditServiceClient, q *debvisorv1.AuditQuery, n int) []auditlog.Line {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := log.SearchAudit(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	var list []auditlog.Line
	for len(list) < n {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %d lines: %v", len(list), err)
		}
		line, err := auditlog.Parse([]byte(m.GetLine()))
		if err != nil || m.GetReplica() != "r1" {
			t.Fatalf("%v: %v", m, err)
		}
		list = append(list, line)
	}
	return list
}

func TestSearchAudit(t *testing.T) {
	r := start(t, 0)
	r.node("a", nil)
	operator := r.principal("operator")
	nodes, log := debvisorv1.NewNodeServiceClient(operator), debvisorv1.NewAuditServiceClient(operator)
	if _, err := nodes.CordonNode(t.Context(), &debvisorv1.CordonRequest{Node: nodeRef("a"), Reason: "disk swap"}); err != nil {
		t.Fatal(err)
	}
	lines := auditLines(t, log, &debvisorv1.AuditQuery{Method: "CordonNode", Events: []string{"rpc_call", "rpc_result"}, Follow: true, Last: 10}, 2)
	if call := lines[len(lines)-2]; call.Event != "rpc_call" || call.Args != `node=a reason="disk swap"` {
		t.Errorf("%+v", call)
	}
	if result := lines[len(lines)-1]; result.Event != "rpc_result" || result.Code != "OK" || result.TraceID == "" {
		t.Errorf("%+v", result)
	}
	// What is refused is there too, with all that there is to say.
	if _, err := debvisorv1.NewAuditServiceClient(r.principal("nobody")).VerifyAudit(t.Context(), &debvisorv1.Empty{}); errdefs.FromStatus(err).Kind != errdefs.PermissionDenied {
		t.Errorf("nobody verifies: %v", err)
	}
	denied := auditLines(t, log, &debvisorv1.AuditQuery{Events: []string{"permission_denied"}, Follow: true}, 1)[0]
	if denied.Principal != "nobody" || denied.Method != debvisorv1.AuditService_VerifyAudit_FullMethodName || denied.Error == "" {
		t.Errorf("%+v", denied)
	}
	if _, err := log.SearchAudit(t.Context(), &debvisorv1.AuditQuery{Last: 1 << 20}); err == nil {
		stream, _ := log.SearchAudit(t.Context(), &debvisorv1.AuditQuery{Last: 1 << 20})
		if _, err := stream.Recv(); errdefs.FromStatus(err).Kind != errdefs.InvalidArgument {
			t.Errorf("too many lines: %v", err)
		}
	}
}

func TestFollowingEndsWithTheReplica(t *testing.T) {
	r := start(t, 0)
	stream, err := debvisorv1.NewAuditServiceClient(r.principal("operator")).SearchAudit(t.Context(), &debvisorv1.AuditQuery{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.front.Move(ctx); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if e := errdefs.FromStatus(err); e.Code != "REPLICA_STOPS" {
		t.Errorf("the end: %v", err)
	}
}

func TestVerifyAudit(t *testing.T) {
	r := start(t, 0)
	operator := r.principal("operator")
	log := debvisorv1.NewAuditServiceClient(operator)
	verify := func() *debvisorv1.AuditVerdict {
		t.Helper()
		verdict, err := log.VerifyAudit(t.Context(), &debvisorv1.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		return verdict
	}
	if v := verify(); !v.GetWhole() || v.GetReplica() != "r1" || v.GetLines() == 0 || v.GetRecorded() != nil {
		t.Errorf("%v", v)
	}
	// A head that etcd knows and the log does not.
	r.put(store.PutProto(store.AuditHeadKey("r1"), &storev1.AuditHead{Sequence: 1000, Hash: make([]byte, 32)}))
	if v := verify(); v.GetWhole() || !strings.Contains(v.GetFinding(), "etcd knows of line 1000") || v.GetRecorded().GetSequence() != 1000 {
		t.Errorf("%v", v)
	}
	heads, err := log.ListAuditHeads(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(heads.GetHeads()) != 1 || heads.GetHeads()[0].GetReplica() != "r1" {
		t.Errorf("%v, %v", heads, err)
	}
	// A line is changed in the file.
	path := filepath.Join(r.dir, "audit.log")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("X"), int64(strings.Index(string(b), `"principal":"system:audit"`)+len(`"principal":"`))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if v := verify(); v.GetWhole() || v.GetLine() == 0 || !strings.Contains(v.GetFinding(), "audit.log, line 2: ") {
		t.Errorf("%v", v)
	}
}

// TestNothingIsChangedUnaudited has the log on a device that is always full.
func TestNothingIsChangedUnaudited(t *testing.T) {
	r := startOn(t, "/dev/full")
	r.node("a", nil)
	operator := r.principal("operator")
	nodes := debvisorv1.NewNodeServiceClient(operator)
	for range 3 {
		began := time.Now()
		_, err := nodes.CordonNode(t.Context(), &debvisorv1.CordonRequest{Node: nodeRef("a")})
		if e := errdefs.FromStatus(err); e.Kind != errdefs.Unavailable || e.Code != "AUDIT_UNAVAILABLE" || time.Since(began) > 1500*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	}
	if r.view.Current().Nodes["a"].Value.GetCordoned() {
		t.Error("the change was made")
	}
	if list, err := nodes.ListNodes(t.Context(), &debvisorv1.Empty{}); err != nil || len(list.GetNodes()) != 1 {
		t.Errorf("reads do not go on: %v, %v", list, err)
	}
	health := healthv1.NewHealthClient(r.anonymous())
	for deadline := time.Now().Add(5 * time.Second); ; <-time.After(20 * time.Millisecond) {
		resp, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err == nil && resp.GetStatus() == healthv1.HealthCheckResponse_NOT_SERVING {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("health: %v, %v", resp, err)
		}
	}
}
