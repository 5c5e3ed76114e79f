package enroll

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// The lives of join tokens.
const (
	DefaultTokenLife = time.Hour
	MaxTokenLife     = 24 * time.Hour
	// tokenKept is how long an ended token's record stays: a late second use
	// is then told from an unknown token.
	tokenKept = 7 * 24 * time.Hour
)

// TokenRequest says what a join token is to be good for.
type TokenRequest struct {
	Kind storev1.JoinTokenKind
	// Node is the only node that may use it; empty: any that does not exist.
	// For a replica: the only name that may join.
	Node string
	// Life is DefaultTokenLife when zero, at most MaxTokenLife.
	Life time.Duration
	// Replace lets a node that exists enrol anew; Node must be given.
	Replace bool
	// By is who asks.
	By string
}

// MadeToken is a new token: its text, to be shown once, its record, and the
// change that makes it valid once committed.
type MadeToken struct {
	Text   string
	Record *storev1.JoinToken
	Change store.Change
}

// NewToken makes a join token for the cluster whose CA has the fingerprint.
// It is InvalidArgument, naming the field, when the request makes no sense.
func NewToken(req TokenRequest, fingerprint string, now time.Time) (MadeToken, error) {
	if err := req.check(); err != nil {
		return MadeToken{}, err
	}
	token, err := identity.NewJoinToken(fingerprint)
	if err != nil {
		return MadeToken{}, err
	}
	record := &storev1.JoinToken{
		Id:         token.ID,
		Kind:       req.Kind,
		SecretHash: token.SecretHash(),
		NodeId:     req.Node,
		Replace:    req.Replace,
		CreatedAt:  timestamppb.New(now),
		ExpiresAt:  timestamppb.New(now.Add(cmp.Or(req.Life, DefaultTokenLife))),
		CreatedBy:  req.By,
	}
	key := store.JoinTokenKey(token.ID)
	return MadeToken{
		Text:   token.Text(),
		Record: record,
		Change: store.Change{
			Require: []store.Condition{store.Absent(key)},
			Puts:    []store.Put{store.PutProto(key, record)},
		},
	}, nil
}

func (r TokenRequest) check() error {
	switch {
	case r.Kind != storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE && r.Kind != storev1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA:
		return errdefs.Field("kind", r.Kind.String(), "node or replica")
	case r.Life < 0 || r.Life > MaxTokenLife:
		return errdefs.Field("ttl_seconds", r.Life.String(), "at most "+MaxTokenLife.String())
	case r.Replace && r.Kind != storev1.JoinTokenKind_JOIN_TOKEN_KIND_NODE:
		return errdefs.Field("replace", "true", "only for a node's token")
	case r.Replace && r.Node == "":
		return errdefs.Field("node_id", "", "the id of the node that is to be replaced")
	case r.Node == "":
		return nil
	}
	if err := certs.CheckName("node_id", r.Node); err != nil {
		return errdefs.Field("node_id", r.Node, "1 to 63 letters, digits, '.', '_' or '-'")
	}
	return nil
}

// LiveTokens gives the tokens that are neither used nor expired, the oldest
// first. What is stored of a secret is not in them.
func LiveTokens(snap *cluster.Snapshot, now time.Time) []*storev1.JoinToken {
	var live []*storev1.JoinToken
	for _, e := range snap.JoinTokens {
		t := e.Value
		if len(t.GetUsedByKey()) > 0 || !now.Before(t.GetExpiresAt().AsTime()) {
			continue
		}
		live = append(live, &storev1.JoinToken{
			Id: t.GetId(), Kind: t.GetKind(), NodeId: t.GetNodeId(), Replace: t.GetReplace(),
			CreatedAt: t.GetCreatedAt(), ExpiresAt: t.GetExpiresAt(), CreatedBy: t.GetCreatedBy(),
		})
	}
	slices.SortFunc(live, func(a, b *storev1.JoinToken) int {
		return cmp.Or(a.GetCreatedAt().AsTime().Compare(b.GetCreatedAt().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return live
}

// RevokeToken gives the change that makes a token useless; NotFound when there
// is none of that id. A token that was used is refused as FailedPrecondition:
// the node it enrolled stays.
func RevokeToken(snap *cluster.Snapshot, id string) (store.Change, error) {
	e, ok := snap.JoinTokens[id]
	if !ok {
		return store.Change{}, errdefs.New(errdefs.NotFound, "JOIN_TOKEN_NOT_FOUND", "there is no join token %q", id).With("token", id)
	}
	if len(e.Value.GetUsedByKey()) > 0 {
		return store.Change{}, errdefs.New(errdefs.FailedPrecondition, "JOIN_TOKEN_USED",
			"join token %q has already enrolled %s", id, e.Value.GetUsedByNode()).With("token", id)
	}
	key := store.JoinTokenKey(id)
	return store.Change{
		Require: []store.Condition{store.Unchanged(key, e.ModRevision)},
		Deletes: []string{key},
	}, nil
}

// Stale gives the keys of tokens whose records need no longer be kept, at most
// limit; nobody loses anything by their deletion.
func Stale(snap *cluster.Snapshot, now time.Time, limit int) []string {
	var keys []string
	for id, e := range snap.JoinTokens {
		if len(keys) < limit && now.After(e.Value.GetExpiresAt().AsTime().Add(tokenKept)) {
			keys = append(keys, store.JoinTokenKey(id))
		}
	}
	return keys
}
