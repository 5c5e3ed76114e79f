package api_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func nodeInfo(id string) *debvisorv1.NodeInfo {
	return &debvisorv1.NodeInfo{Id: &debvisorv1.NodeId{Id: id}, Hostname: id + ".example", Ip: "192.0.2.1", Version: "7"}
}

func nodeRef(id string) *debvisorv1.NodeRef {
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: id}}
}

// code is an error's code as a client sees it; "" for none.
func code(err error) string {
	if err == nil {
		return ""
	}
	return errdefs.FromStatus(err).Code
}

func withRequestID(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "debvisor-request-id", id)
}

func TestRegisterNode(t *testing.T) {
	r := start(t, 0)
	operator, agent := debvisorv1.NewNodeServiceClient(r.principal("operator")), debvisorv1.NewNodeServiceClient(r.agent("n1"))
	var header metadata.MD
	ack, err := operator.RegisterNode(t.Context(), nodeInfo("n1"), grpc.Header(&header))
	if err != nil || ack.GetStatus() != debvisorv1.StatusCode_STATUS_OK || header.Get("debvisor-operation")[0] != ack.GetOperationId() {
		t.Fatal(ack, err, header)
	}
	if _, err := operator.RegisterNode(t.Context(), nodeInfo("n1")); errdefs.FromStatus(err).Kind != errdefs.AlreadyExists {
		t.Errorf("a duplicate: %v", err)
	}
	again := nodeInfo("n1")
	again.Rack = "r7"
	if _, err := agent.RegisterNode(t.Context(), again); err != nil {
		t.Errorf("the node's own agent: %v", err)
	}
	if _, err := agent.RegisterNode(t.Context(), nodeInfo("n2")); code(err) != "NOT_YOUR_NODE" {
		t.Errorf("an agent for another node: %v", err)
	}
	list, err := operator.ListNodes(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetNodes()) != 1 {
		t.Fatal(list, err)
	}
	n := list.GetNodes()[0]
	if n.GetInfo().GetRack() != "r7" || n.GetState() != debvisorv1.NodeState_NODE_STATE_REGISTERED || n.GetAgeMs() != 0 {
		t.Errorf("listed as %v", n)
	}
	op, err := debvisorv1.NewOperationServiceClient(r.principal("operator")).GetOperation(t.Context(), &debvisorv1.OperationRef{Id: ack.GetOperationId()})
	if err != nil || op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED || op.GetPrincipal() != "operator" || op.GetKind() != "node.register" {
		t.Errorf("its operation: %v, %v", op, err)
	}
	// A repetition is no duplicate.
	ctx := withRequestID(t.Context(), "abc")
	first, err1 := operator.RegisterNode(ctx, nodeInfo("n3"))
	second, err2 := operator.RegisterNode(ctx, nodeInfo("n3"))
	if err1 != nil || err2 != nil || first.GetOperationId() != second.GetOperationId() {
		t.Errorf("repeated: %v %v, %v %v", first, err1, second, err2)
	}
	if _, err := operator.RegisterNode(ctx, nodeInfo("n4")); code(err) != "REQUEST_ID_REUSED" {
		t.Errorf("another node with the same request id: %v", err)
	}
}

func TestHeartbeat(t *testing.T) {
	r := start(t, 0)
	monitor, agent := debvisorv1.NewNodeServiceClient(r.principal("operator")), debvisorv1.NewNodeServiceClient(r.agent("n1"))
	health := func(id string, load float64) *debvisorv1.Health {
		return &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: id}, Overall: debvisorv1.StatusCode_STATUS_WARN, CpuLoad: load, CephStatus: "HEALTH_OK"}
	}
	if _, err := monitor.Heartbeat(t.Context(), health("n1", 1)); errdefs.FromStatus(err).Kind != errdefs.NotFound {
		t.Errorf("of a node that is not registered: %v", err)
	}
	if _, err := monitor.Heartbeat(t.Context(), &debvisorv1.Health{NodeId: &debvisorv1.NodeId{}}); errdefs.FromStatus(err).Kind != errdefs.InvalidArgument {
		t.Errorf("without a node: %v", err)
	}
	for i := range 20 {
		r.put(store.PutProto(store.NodeKey(fmt.Sprintf("n%d", i)), &storev1.Node{Id: fmt.Sprintf("n%d", i)}))
	}
	if _, err := agent.Heartbeat(t.Context(), health("n2", 1)); code(err) != "NOT_YOUR_NODE" {
		t.Errorf("an agent for another node: %v", err)
	}
	if ack, err := agent.Heartbeat(t.Context(), health("n1", 0.5)); err != nil || ack.GetStatus() != debvisorv1.StatusCode_STATUS_OK {
		t.Errorf("its own: %v, %v", ack, err)
	}
	before := revision(t, r.client)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := monitor.Heartbeat(t.Context(), health(fmt.Sprintf("n%d", i), float64(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if writes := revision(t, r.client) - before; writes > 5 {
		t.Errorf("20 heartbeats that come together cost %d transactions", writes)
	}
	eventually(t, func() error {
		list, err := monitor.ListNodes(t.Context(), &debvisorv1.Empty{})
		if err != nil {
			return err
		}
		for _, n := range list.GetNodes() {
			if n.GetInfo().GetId().GetId() == "n7" && n.GetHealth().GetCpuLoad() == 7 && n.GetHealth().GetTimestamp().GetSeconds() > 0 &&
				n.GetState() == debvisorv1.NodeState_NODE_STATE_REGISTERED { // nobody keeps a node alive with it
				return nil
			}
		}
		return errors.New("n7's health is not listed")
	})
}

func revision(t *testing.T, client *clientv3.Client) int64 {
	t.Helper()
	got, err := client.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	return got.Header.Revision
}

// eventually repeats a check until it passes.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func TestListNodes(t *testing.T) {
	r := start(t, 0)
	long := time.Now().Add(-time.Minute)
	r.node("b", nil)
	r.node("a", func(_ *storev1.Node, s *storev1.NodeStatus) {
		s.Liveness, s.LastSeen = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, timestamppb.New(long)
	})
	r.node("c", func(n *storev1.Node, s *storev1.NodeStatus) {
		n.Cordoned, s.Liveness = true, storev1.NodeLiveness_NODE_LIVENESS_SUSPECT
	})
	r.vm("11111111-1111-1111-1111-111111111111", "web", "b")
	nodes := debvisorv1.NewNodeServiceClient(r.principal("operator"))
	list, err := nodes.ListNodes(t.Context(), &debvisorv1.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range list.GetNodes() {
		got = append(got, fmt.Sprintf("%s %s %s vms=%d cordoned=%v load=%v", n.GetInfo().GetId().GetId(), n.GetState(), n.GetHealth().GetOverall(), n.GetRunningVms(), n.GetCordoned(), n.GetHealth().GetCpuLoad()))
	}
	want := []string{
		"a NODE_STATE_UNREACHABLE STATUS_ERROR vms=0 cordoned=false load=0.25",
		"b NODE_STATE_ONLINE STATUS_OK vms=1 cordoned=false load=0.25",
		"c NODE_STATE_SUSPECT STATUS_WARN vms=0 cordoned=true load=0.25",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if age := list.GetNodes()[0].GetAgeMs(); age < 60_000 || age > 70_000 {
		t.Errorf("a minute is %d ms", age)
	}
	// Ages grow though nothing changes.
	eventually(t, func() error {
		later, err := nodes.ListNodes(t.Context(), &debvisorv1.Empty{})
		if err != nil {
			return err
		}
		if later.GetNodes()[0].GetAgeMs() <= list.GetNodes()[0].GetAgeMs() {
			return errors.New("the age does not grow")
		}
		return nil
	})
	detail, err := nodes.GetNode(t.Context(), nodeRef("b"))
	if err != nil || len(detail.GetVms()) != 1 || detail.GetCapacity().GetMemoryBytes() != 16*gib || detail.GetAgentVersion() != "1.0" {
		t.Errorf("%v, %v", detail, err)
	}
	if _, err := nodes.GetNode(t.Context(), nodeRef("z")); errdefs.FromStatus(err).Kind != errdefs.NotFound {
		t.Errorf("unknown: %v", err)
	}
	if _, err := nodes.GetNode(t.Context(), &debvisorv1.NodeRef{}); errdefs.FromStatus(err).Context["field"] != "node_id.id" {
		t.Errorf("not said which: %v", err)
	}
}

func TestCordon(t *testing.T) {
	r := start(t, 0)
	r.node("a", nil)
	nodes := debvisorv1.NewNodeServiceClient(r.principal("operator"))
	if _, err := nodes.CordonNode(t.Context(), &debvisorv1.CordonRequest{Node: nodeRef("a"), Reason: "disk swap"}); err != nil {
		t.Fatal(err)
	}
	if detail, err := nodes.GetNode(t.Context(), nodeRef("a")); err != nil || !detail.GetSummary().GetCordoned() || detail.GetCordonReason() != "disk swap" {
		t.Errorf("%v, %v", detail, err)
	}
	if _, err := nodes.UncordonNode(t.Context(), nodeRef("a")); err != nil {
		t.Fatal(err)
	}
	if list, err := nodes.ListNodes(t.Context(), &debvisorv1.Empty{}); err != nil || list.GetNodes()[0].GetCordoned() {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := nodes.CordonNode(t.Context(), &debvisorv1.CordonRequest{Node: nodeRef("z")}); errdefs.FromStatus(err).Kind != errdefs.NotFound {
		t.Errorf("unknown: %v", err)
	}
	if _, err := nodes.CordonNode(t.Context(), &debvisorv1.CordonRequest{}); errdefs.FromStatus(err).Kind != errdefs.InvalidArgument {
		t.Errorf("not said which: %v", err)
	}
}

func TestJoinTokens(t *testing.T) {
	r := start(t, 0)
	r.put(
		store.PutJSON(store.PrincipalKey("helper"), &storev1.Principal{Permissions: []string{"token:*"}}),
		store.PutProto(store.NodeKey("old"), &storev1.Node{Id: "old", EnrolledAt: timestamppb.Now()}),
	)
	operator, helper := debvisorv1.NewNodeServiceClient(r.principal("operator")), debvisorv1.NewNodeServiceClient(r.principal("helper"))
	node := &debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, NodeId: "n1"}
	ctx := withRequestID(t.Context(), "once")
	token, err := helper.CreateJoinToken(ctx, node)
	if err != nil || token.GetToken() == "" || token.GetCreatedBy() != "helper" || token.GetExpiresAt().GetSeconds() == 0 {
		t.Fatal(token, err)
	}
	if again, err := helper.CreateJoinToken(ctx, node); code(err) != "TOKEN_SHOWN_ONCE" {
		t.Errorf("repeated: %v, %v", again, err)
	}
	replica := &debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA}
	if _, err := helper.CreateJoinToken(t.Context(), replica); errdefs.FromStatus(err).Kind != errdefs.PermissionDenied {
		t.Errorf("a replica's token without the permission: %v", err)
	}
	if _, err := operator.CreateJoinToken(t.Context(), replica); err != nil {
		t.Errorf("a replica's token: %v", err)
	}
	for want, req := range map[string]*debvisorv1.JoinTokenRequest{
		"NODE_EXISTS":    {Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, NodeId: "old"},
		"NODE_NOT_FOUND": {Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, NodeId: "new", Replace: true},
		"INVALID_FIELD":  {NodeId: "new"},
	} {
		if _, err := operator.CreateJoinToken(t.Context(), req); code(err) != want {
			t.Errorf("%v: %v, want %s", req, err, want)
		}
	}
	list, err := operator.ListJoinTokens(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetTokens()) != 2 {
		t.Fatal(list, err)
	}
	for _, listed := range list.GetTokens() {
		if listed.GetToken() != "" {
			t.Errorf("a list shows a secret: %v", listed)
		}
	}
	if _, err := operator.RevokeJoinToken(t.Context(), &debvisorv1.JoinTokenRef{Id: token.GetId()}); err != nil {
		t.Error(err)
	}
	if _, err := operator.RevokeJoinToken(t.Context(), &debvisorv1.JoinTokenRef{Id: token.GetId()}); errdefs.FromStatus(err).Kind != errdefs.NotFound {
		t.Errorf("revoked twice: %v", err)
	}
	// The secret is nowhere: neither in the audit log nor in the records.
	secret := token.GetToken()[len(token.GetToken())/2:]
	for _, event := range append(r.events("rpc_call", 8), r.events("rpc_result", 8)...) {
		if strings.Contains(fmt.Sprint(event), secret) {
			t.Errorf("event %v", event)
		}
	}
}
