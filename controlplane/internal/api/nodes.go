package api

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

type nodeService struct {
	debvisorv1.UnimplementedNodeServiceServer
	view       *store.View
	operations *operations.Operations
	authz      *authz.Authorizer
	ring       func() *certs.Ring
	list       *nodeList
	beats      *heartbeats
}

// ListNodes answers every node with its last-known state.
func (s *nodeService) ListNodes(context.Context, *debvisorv1.Empty) (*debvisorv1.NodeList, error) {
	return s.list.current(time.Now())
}

// GetNode answers all that is known of one node, and of its VMs those that are
// in the caller's scope.
func (s *nodeService) GetNode(ctx context.Context, ref *debvisorv1.NodeRef) (*debvisorv1.NodeDetail, error) {
	snapshot := s.view.Current()
	entry, err := needNode(snapshot, "node_id.id", ref)
	if err != nil {
		return nil, err
	}
	node := entry.Value
	status := snapshot.Statuses[node.GetId()].Value
	detail := &debvisorv1.NodeDetail{
		Summary:      summary(snapshot, node.GetId(), s.list.heard, time.Now()),
		CordonReason: node.GetCordonReason(), RegisteredAt: timestamp(node.GetRegisteredAt()),
		AgentVersion: status.GetAgentVersion(), PeerAddress: status.GetPeerAddress(),
		Limits: &debvisorv1.NodeLimits{
			MigrationBandwidthMib: node.GetMigrationBandwidthMib(), ParallelMigrations: node.GetParallelMigrations(),
			ParallelReplications: node.GetParallelReplications(), ReplicationBandwidthMib: node.GetReplicationBandwidthMib(),
		},
	}
	detail.SafeToReboot = len(planner.AgainstReboot(snapshot, node.GetId())) == 0
	if snapshot.ConfirmedOff(node.GetId()) {
		detail.OffConfirmedAt, detail.OffConfirmedBy = timestamp(node.GetOffConfirmedAt()), node.GetOffConfirmedBy()
	}
	if len(status.GetCapacity()) > 0 {
		detail.Capacity = decode(status.GetCapacity(), &debvisorv1.NodeCapacity{})
	}
	if len(status.GetCapabilities()) > 0 {
		detail.Capabilities = decode(status.GetCapabilities(), &debvisorv1.NodeCapabilities{})
	}
	scope := scopeOf(ctx, snapshot)
	for _, vm := range scope.VMsOn(node.GetId()) {
		detail.Vms = append(detail.Vms, vmMessage(scope, vm.Value))
	}
	return detail, nil
}

// Heartbeat notes what a registered node says of its health. It answers when
// that is in etcd; heartbeats that come together are written together.
func (s *nodeService) Heartbeat(ctx context.Context, health *debvisorv1.Health) (*debvisorv1.HealthAck, error) {
	id := health.GetNodeId().GetId()
	if id == "" {
		return nil, errdefs.Field("node_id.id", "", "the id of a node")
	}
	if err := ownNode(ctx, id); err != nil {
		return nil, err
	}
	if _, ok := s.view.Current().Nodes[id]; !ok {
		return nil, unknownNode(id)
	}
	if err := s.beats.put(ctx, id, health, time.Now()); err != nil {
		return nil, err
	}
	return &debvisorv1.HealthAck{Status: debvisorv1.StatusCode_STATUS_OK, Message: "noted"}, nil
}

// ownNode refuses an agent that speaks for another node than its own.
func ownNode(ctx context.Context, id string) error {
	caller := authn.From(ctx)
	if node := caller.Node(); node == "" || node == id {
		return nil
	}
	return errdefs.New(errdefs.PermissionDenied, "NOT_YOUR_NODE",
		"%s may speak for its own node only, and not for %s", caller.Name, id).With("node", id)
}
