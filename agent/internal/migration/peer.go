package migration

import (
	"context"
	"time"

	"google.golang.org/grpc"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// longestWait is how long a question may be left open.
const longestWait = 30 * time.Second

// Register adds the service that the other agents ask. The server must be one of
// shared/rpc with a TLS configuration that lets agents of the cluster in only.
func (m *Migration) Register(s grpc.ServiceRegistrar) {
	agentv1.RegisterPeerServiceServer(s, peerServer{m: m})
}

type peerServer struct {
	agentv1.UnimplementedPeerServiceServer
	m *Migration
}

// Look answers what this node sees of a migration that the asker is part of.
// Whoever is not gets the answer that there is none.
func (s peerServer) Look(ctx context.Context, req *agentv1.LookRequest) (*agentv1.LookResponse, error) {
	node, err := s.asker(ctx)
	if err != nil {
		return nil, err
	}
	c := s.m.sides.find(req.GetTaskId(), node)
	if c == nil {
		return nil, errdefs.New(errdefs.NotFound, "TASK_NOT_FOUND", "this agent knows no such migration of yours")
	}
	patience := min(time.Duration(req.GetWaitEndedMs())*time.Millisecond, longestWait)
	if patience <= 0 {
		return &agentv1.LookResponse{Side: c.get()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return &agentv1.LookResponse{Side: c.awaitEnded(ctx)}, nil
}

func (s peerServer) asker(ctx context.Context) (string, error) {
	leaf := rpc.Certificate(ctx)
	if leaf == nil {
		return "", errdefs.New(errdefs.Unauthenticated, "NO_CERTIFICATE", "agents only")
	}
	who, err := identity.FromCertificate(leaf, s.m.cfg.Cluster)
	if err != nil {
		return "", err
	}
	if who.Agent == nil {
		return "", errdefs.New(errdefs.PermissionDenied, "NOT_AN_AGENT", "agents only")
	}
	return who.Agent.Node, nil
}
