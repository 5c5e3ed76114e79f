package enroll

import (
	"context"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Joiner lets replicas join: members.Door.
type Joiner interface {
	Join(ctx context.Context, req *agentv1.JoinReplicaRequest, remote string) (*agentv1.JoinReplicaResponse, error)
}

// CallersServer is the EnrollService of the callers' listener: Enroll and
// JoinReplica, for callers without an identity.
type CallersServer struct {
	agentv1.UnimplementedEnrollServiceServer
	Enrolment *Enrolment
	Joiner    Joiner
}

// Enroll enrols a node.
func (s *CallersServer) Enroll(ctx context.Context, req *agentv1.EnrollRequest) (*agentv1.EnrollResponse, error) {
	return s.Enrolment.Enrol(ctx, req, rpc.Address(ctx))
}

// JoinReplica lets a replica join.
func (s *CallersServer) JoinReplica(ctx context.Context, req *agentv1.JoinReplicaRequest) (*agentv1.JoinReplicaResponse, error) {
	return s.Joiner.Join(ctx, req, rpc.Address(ctx))
}

// AgentsServer is the EnrollService of the agents' listener: Renew, for the
// agent whose certificate the connection has, also when it has expired.
type AgentsServer struct {
	agentv1.UnimplementedEnrollServiceServer
	Enrolment *Enrolment
}

// Renew renews the calling agent's certificate.
func (s *AgentsServer) Renew(ctx context.Context, req *agentv1.RenewRequest) (*agentv1.RenewResponse, error) {
	cert := rpc.Certificate(ctx)
	if cert == nil {
		return nil, errdefs.New(errdefs.Unauthenticated, "NO_CERTIFICATE", "only agents renew their certificate")
	}
	id, err := identity.FromCertificate(cert, s.Enrolment.cfg.Cluster)
	if err != nil {
		return nil, err
	}
	if id.Agent == nil {
		return nil, errdefs.New(errdefs.PermissionDenied, "NOT_AN_AGENT", "only agents renew their certificate")
	}
	return s.Enrolment.Renew(ctx, *id.Agent, req.GetCsr(), rpc.Address(ctx))
}
