package api

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// CreateKey makes an API key and answers it, text and all, this once.
func (s *accessService) CreateKey(ctx context.Context, req *debvisorv1.KeyRequest) (*debvisorv1.APIKey, error) {
	return s.makeKey(ctx, "key.create", req, req.GetTtlSeconds(), func(w access.World, k *access.NewKey) (store.Change, error) {
		return k.Create(w, req.GetPrincipal(), req.GetDescription())
	})
}

// RotateKey makes a key in the place of another, which ends after the overlap.
func (s *accessService) RotateKey(ctx context.Context, req *debvisorv1.KeyRotation) (*debvisorv1.APIKey, error) {
	if err := keyID(req.GetId()); err != nil {
		return nil, err
	}
	overlap := time.Duration(req.GetOverlapSeconds()) * time.Second
	caller := authn.From(ctx)
	switch {
	case req.GetNoOverlap() && overlap > 0:
		return nil, errdefs.Field("no_overlap", "true", "either no_overlap, or overlap_seconds")
	case req.GetNoOverlap() && caller.Kind == authn.APIKey && caller.CredentialID == req.GetId():
		return nil, errdefs.New(errdefs.FailedPrecondition, "OWN_KEY",
			"%s is the key that this call was made with, and the answer, which holds the new one, may be cut off with it; rotate it with an overlap", req.GetId()).
			With("key", req.GetId())
	case !req.GetNoOverlap() && overlap == 0:
		overlap = access.DefaultOverlap
	}
	return s.makeKey(ctx, "key.rotate", req, req.GetTtlSeconds(), func(w access.World, k *access.NewKey) (store.Change, error) {
		return k.Rotate(w, req.GetId(), overlap)
	})
}

// makeKey makes a key that give gives to a principal.
func (s *accessService) makeKey(
	ctx context.Context, kind string, request proto.Message, seconds uint32, give func(access.World, *access.NewKey) (store.Change, error),
) (*debvisorv1.APIKey, error) {
	made, err := access.MakeKey(time.Duration(seconds)*time.Second, authn.From(ctx).Name, time.Now())
	if err != nil {
		return nil, err
	}
	resource := "key/" + made.ID()
	op, err := s.change(ctx, kind, request, resource, func(w access.World) (store.Change, error) { return give(w, made) })
	if err != nil {
		return nil, err
	}
	if op.GetResources()[0] != resource {
		return nil, shownOnce(op)
	}
	m := made.Answer()
	m.OperationId = op.GetId()
	return m, nil
}

// ListKeys answers the keys without their texts.
func (s *accessService) ListKeys(_ context.Context, filter *debvisorv1.KeyFilter) (*debvisorv1.APIKeyList, error) {
	return s.world(s.view.Current()).ListKeys(filter), nil
}

// RevokeKey ends a key at once.
func (s *accessService) RevokeKey(ctx context.Context, ref *debvisorv1.KeyRef) (*debvisorv1.Empty, error) {
	if err := keyID(ref.GetId()); err != nil {
		return nil, err
	}
	_, err := s.change(ctx, "key.revoke", ref, "key/"+ref.GetId(), func(w access.World) (store.Change, error) {
		return w.RevokeKey(ref.GetId())
	})
	return &debvisorv1.Empty{}, err
}

// keyID refuses a whole key in the place of its id, without repeating it.
func keyID(id string) error {
	if strings.HasPrefix(id, identity.APIKeyPrefix) {
		return errdefs.Field("id", identity.APIKeyPrefix+"…", "the id of a key, such as the 16 hex digits after "+identity.APIKeyPrefix+", and never the key itself")
	}
	return nil
}
