package api

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/enroll"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// CreateJoinToken makes a single-use secret that enrols a node or a replica.
func (s *nodeService) CreateJoinToken(ctx context.Context, req *debvisorv1.JoinTokenRequest) (*debvisorv1.JoinToken, error) {
	caller := authn.From(ctx)
	if req.GetKind() == debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA {
		if err := s.authz.Require(s.view.Current(), caller, authz.JoinReplica); err != nil {
			return nil, err
		}
	}
	made, err := enroll.NewToken(enroll.TokenRequest{
		Kind: storev1.JoinTokenKind(req.GetKind()), Node: req.GetNodeId(), Replace: req.GetReplace(),
		Life: time.Duration(req.GetTtlSeconds()) * time.Second, By: caller.Name,
	}, certs.Fingerprint(s.ring().Signing().Certificate()), time.Now())
	if err != nil {
		return nil, err
	}
	spec, err := s.spec(ctx, "token.create", req, "jointoken/"+made.Record.GetId())
	if err != nil {
		return nil, err
	}
	op, err := s.operations.Apply(ctx, spec, func(snapshot *cluster.Snapshot) (store.Change, error) {
		return made.Change, s.fits(snapshot, req)
	})
	if err != nil {
		return nil, err
	}
	if op.GetResources()[0] != spec.Resources[0] {
		return nil, errdefs.New(errdefs.FailedPrecondition, "TOKEN_SHOWN_ONCE",
			"this request has made its token before (operation %s), and a token is shown once; make another with a new debvisor-request-id", op.GetId()).
			With("operation", op.GetId())
	}
	tellOperation(ctx, op.GetId())
	m := tokenMessage(made.Record)
	m.Token, m.OperationId = made.Text, op.GetId()
	return m, nil
}

// fits refuses a node's token that could never be used: for a node that exists
// one must be made to replace it, and only such a node can be replaced.
func (s *nodeService) fits(snapshot *cluster.Snapshot, req *debvisorv1.JoinTokenRequest) error {
	if req.GetKind() != debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE || req.GetNodeId() == "" {
		return nil
	}
	node, exists := snapshot.Nodes[req.GetNodeId()]
	switch {
	case req.GetReplace() && !exists:
		return unknownNode(req.GetNodeId())
	case !req.GetReplace() && exists && node.Value.GetEnrolledAt() != nil:
		return errdefs.New(errdefs.AlreadyExists, "NODE_EXISTS",
			"node %q is enrolled already; to enrol it anew, make a token with replace", req.GetNodeId()).With("node", req.GetNodeId())
	}
	return nil
}

// ListJoinTokens answers the tokens that are neither used nor expired.
func (s *nodeService) ListJoinTokens(context.Context, *debvisorv1.Empty) (*debvisorv1.JoinTokenList, error) {
	list := &debvisorv1.JoinTokenList{}
	for _, record := range enroll.LiveTokens(s.view.Current(), time.Now()) {
		list.Tokens = append(list.Tokens, tokenMessage(record))
	}
	return list, nil
}

// RevokeJoinToken makes a token useless.
func (s *nodeService) RevokeJoinToken(ctx context.Context, ref *debvisorv1.JoinTokenRef) (*debvisorv1.Empty, error) {
	spec, err := s.spec(ctx, "token.revoke", ref, "jointoken/"+ref.GetId())
	if err != nil {
		return nil, err
	}
	op, err := s.operations.Apply(ctx, spec, func(snapshot *cluster.Snapshot) (store.Change, error) {
		return enroll.RevokeToken(snapshot, ref.GetId())
	})
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, op.GetId())
	return &debvisorv1.Empty{}, nil
}

func tokenMessage(record *storev1.JoinToken) *debvisorv1.JoinToken {
	return &debvisorv1.JoinToken{
		Id: record.GetId(), Kind: debvisorv1.JoinTokenKind(record.GetKind()), NodeId: record.GetNodeId(),
		ExpiresAt: timestamp(record.GetExpiresAt()), Replace: record.GetReplace(), CreatedBy: record.GetCreatedBy(),
	}
}
