package api

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// RegisterNode adds a node.
func (s *nodeService) RegisterNode(ctx context.Context, info *debvisorv1.NodeInfo) (*debvisorv1.NodeAck, error) {
	id := info.GetId().GetId()
	if err := ownNode(ctx, id); err != nil {
		return nil, err
	}
	own := authn.From(ctx).Node() == id
	return s.changeNode(ctx, "node.register", info, id, func(snapshot *cluster.Snapshot) (*storev1.Node, error) {
		was, exists := snapshot.Nodes[id]
		if exists && !own {
			return nil, errdefs.New(errdefs.AlreadyExists, "NODE_EXISTS", "node %q is registered already", id).With("node", id)
		}
		node := &storev1.Node{Id: id, RegisteredAt: timestamppb.New(time.Now())}
		if exists {
			node = proto.CloneOf(was.Value)
		}
		node.Hostname, node.Ip, node.Rack, node.Zone, node.Version =
			info.GetHostname(), info.GetIp(), info.GetRack(), info.GetZone(), info.GetVersion()
		return node, nil
	}, "node "+id+" is registered")
}

// CordonNode keeps new VMs off a node.
func (s *nodeService) CordonNode(ctx context.Context, req *debvisorv1.CordonRequest) (*debvisorv1.NodeAck, error) {
	id := req.GetNode().GetNodeId().GetId()
	return s.changeNode(ctx, "node.cordon", req, id, func(snapshot *cluster.Snapshot) (*storev1.Node, error) {
		return setCordon(snapshot, "node.node_id.id", req.GetNode(), true, req.GetReason())
	}, "node "+id+" is cordoned")
}

// UncordonNode lifts a cordon.
func (s *nodeService) UncordonNode(ctx context.Context, ref *debvisorv1.NodeRef) (*debvisorv1.NodeAck, error) {
	id := ref.GetNodeId().GetId()
	return s.changeNode(ctx, "node.uncordon", ref, id, func(snapshot *cluster.Snapshot) (*storev1.Node, error) {
		return setCordon(snapshot, "node_id.id", ref, false, "")
	}, "node "+id+" takes new VMs again")
}

// SetNodeLimits bounds what migrations and replications may take of a node.
func (s *nodeService) SetNodeLimits(ctx context.Context, req *debvisorv1.NodeLimitsRequest) (*debvisorv1.NodeAck, error) {
	id := req.GetNode().GetNodeId().GetId()
	return s.changeNode(ctx, "node.limit", req, id, func(snapshot *cluster.Snapshot) (*storev1.Node, error) {
		entry, err := needNode(snapshot, "node.node_id.id", req.GetNode())
		if err != nil {
			return nil, err
		}
		node := proto.CloneOf(entry.Value)
		node.MigrationBandwidthMib = req.GetLimits().GetMigrationBandwidthMib()
		node.ParallelMigrations = req.GetLimits().GetParallelMigrations()
		node.ParallelReplications = req.GetLimits().GetParallelReplications()
		node.ReplicationBandwidthMib = req.GetLimits().GetReplicationBandwidthMib()
		return node, nil
	}, "the limits of node "+id+" are set")
}

// ConfirmNodeOff notes the caller's word that a node is powered off. It counts
// until the node is heard again.
func (s *nodeService) ConfirmNodeOff(ctx context.Context, req *debvisorv1.NodeOffRequest) (*debvisorv1.NodeAck, error) {
	id := req.GetNode().GetNodeId().GetId()
	return s.changeNode(ctx, "node.confirm-off", req, id, func(snapshot *cluster.Snapshot) (*storev1.Node, error) {
		entry, err := needNode(snapshot, "node.node_id.id", req.GetNode())
		if err != nil {
			return nil, err
		}
		status := snapshot.Statuses[id].Value
		if live := status.GetLiveness(); live != storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE {
			return nil, errdefs.New(errdefs.FailedPrecondition, "NODE_IS_HEARD",
				"node %s is not unreachable (%s): only a node that has not been heard for 10 s can be said to be off", id, livenessWord(live)).
				With("node", id)
		}
		node := proto.CloneOf(entry.Value)
		node.OffConfirmedAt, node.OffConfirmedBy = timestamppb.New(time.Now()), authn.From(ctx).Name
		node.OffReason, node.OffBootId, node.OffLastSeen = req.GetReason(), status.GetBootId(), status.GetLastSeen()
		return node, nil
	}, "node "+id+" counts as powered off until it is heard again")
}

func livenessWord(live storev1.NodeLiveness) string {
	switch live {
	case storev1.NodeLiveness_NODE_LIVENESS_ONLINE:
		return "online"
	case storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return "suspect"
	default:
		return "its agent never had a session"
	}
}

func setCordon(s *cluster.Snapshot, field string, ref *debvisorv1.NodeRef, cordoned bool, reason string) (*storev1.Node, error) {
	entry, err := needNode(s, field, ref)
	if err != nil {
		return nil, err
	}
	node := proto.CloneOf(entry.Value)
	node.Cordoned, node.CordonReason = cordoned, reason
	return node, nil
}

// changeNode writes the node that change makes of the snapshot, with its
// operation.
func (s *nodeService) changeNode(
	ctx context.Context, kind string, request proto.Message, id string,
	change func(*cluster.Snapshot) (*storev1.Node, error), done string,
) (*debvisorv1.NodeAck, error) {
	spec, err := s.spec(ctx, kind, request, "node/"+id)
	if err != nil {
		return nil, err
	}
	op, err := s.operations.Apply(ctx, spec, func(snapshot *cluster.Snapshot) (store.Change, error) {
		node, err := change(snapshot)
		if err != nil {
			return store.Change{}, err
		}
		key := store.NodeKey(node.GetId())
		return store.Change{
			Require: []store.Condition{store.Unchanged(key, snapshot.Nodes[node.GetId()].ModRevision)},
			Puts:    []store.Put{store.PutProto(key, node)},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, op.GetId())
	return &debvisorv1.NodeAck{Status: debvisorv1.StatusCode_STATUS_OK, Message: done, OperationId: op.GetId()}, nil
}

// spec is what a change that is one transaction is recorded as.
func (s *nodeService) spec(ctx context.Context, kind string, request proto.Message, resource string) (operations.Spec, error) {
	spec, err := specOf(ctx, scopeOf(ctx, s.view.Current()), kind, request)
	spec.Resources = []string{resource}
	return spec, err
}
