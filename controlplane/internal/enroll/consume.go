package enroll

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// View is where records are read: store.View.
type View interface {
	Current() *cluster.Snapshot
	Changed() <-chan struct{}
}

// Committer applies changes: store.Store.
type Committer interface {
	Commit(ctx context.Context, c store.Change) (int64, error)
}

// Ledger consumes join tokens.
type Ledger struct {
	View  View
	Store Committer
	Log   hclog.Logger
}

// Use is one attempt to use a token.
type Use struct {
	// Token is the text that was sent.
	Token string
	Kind  storev1.JoinTokenKind
	// Name is the node or the replica that the newcomer says it is.
	Name string
	// KeyHash is the SHA-256 of the key that the token is to be bound to.
	KeyHash []byte
	// Remote is the newcomer's address, for the log.
	Remote string
	// Also gives what has to change together with the token's consumption, for
	// each snapshot that is tried. It may refuse.
	Also func(snap *cluster.Snapshot, token *storev1.JoinToken, now time.Time) (store.Change, error)
	// Again is asked, when this key has used this token before, whether what
	// it was used for still stands. It may refuse.
	Again func(snap *cluster.Snapshot, token *storev1.JoinToken) error
}

const (
	// consumeTries bounds the attempts of one call when records keep changing.
	consumeTries = 8
	// lag is how far this replica's snapshot may be behind the replica that
	// made a token a moment ago.
	lag = 2 * time.Second
	// settle is the longest wait for the snapshot after a conflict.
	settle = 200 * time.Millisecond
)

// Consume uses a token: one transaction notes the key that used it and makes
// what Also asks for. The same key and name may do so again until the token's
// end: nothing is then written. It returns the time of the first use. Every
// refusal is logged with the remote address, and so is every success.
func (l *Ledger) Consume(ctx context.Context, use Use) (time.Time, error) {
	log := l.Log.With("remote", use.Remote, "name", use.Name)
	token, err := identity.ParseJoinToken(use.Token)
	if err != nil {
		log.Warn("enrolment refused", "reason", err)
		return time.Time{}, err
	}
	log = log.With("token", token.ID)
	at, again, err := l.consume(ctx, token, use)
	switch {
	case err != nil:
		log.Warn("enrolment refused", "reason", err)
	case again:
		log.Info("join token used again with the same key: the answer is repeated")
	default:
		log.Info("join token used", "kind", use.Kind.String())
	}
	return at, err
}

func (l *Ledger) consume(ctx context.Context, token identity.JoinToken, use Use) (at time.Time, again bool, err error) {
	for range consumeTries {
		changed := l.View.Changed()
		snap, err := l.snapshotWith(ctx, token.ID)
		if err != nil {
			return time.Time{}, false, err
		}
		now := time.Now().UTC().Truncate(time.Second)
		entry := snap.JoinTokens[token.ID]
		if err := admit(entry.Value, token, use, now); err != nil {
			return time.Time{}, false, err
		}
		if len(entry.Value.GetUsedByKey()) > 0 {
			return entry.Value.GetUsedAt().AsTime(), true, use.Again(snap, entry.Value)
		}
		change, err := use.Also(snap, entry.Value, now)
		if err != nil {
			return time.Time{}, false, err
		}
		used, _ := proto.Clone(entry.Value).(*storev1.JoinToken)
		used.UsedByKey, used.UsedByNode, used.UsedAt = use.KeyHash, use.Name, timestamppb.New(now)
		key := store.JoinTokenKey(token.ID)
		change.Require = append(change.Require, store.Unchanged(key, entry.ModRevision))
		change.Puts = append(change.Puts, store.PutProto(key, used))
		_, err = l.Store.Commit(ctx, change)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) {
			return now, false, err
		}
		if err := wait(ctx, changed, settle); err != nil {
			return time.Time{}, false, err
		}
	}
	return time.Time{}, false, errdefs.New(errdefs.Aborted, "CONFLICT", "the records keep changing; try again").WithRetry(time.Second)
}

// snapshotWith gives a snapshot that has the token, waiting a little for one
// that another replica has just made; the last one when none comes.
func (l *Ledger) snapshotWith(ctx context.Context, id string) (*cluster.Snapshot, error) {
	deadline := time.Now().Add(lag)
	for {
		changed := l.View.Changed()
		snap := l.View.Current()
		if _, ok := snap.JoinTokens[id]; ok || !time.Now().Before(deadline) {
			return snap, nil
		}
		if err := wait(ctx, changed, time.Until(deadline)); err != nil {
			return nil, err
		}
	}
}

// admit checks everything about a token that does not depend on what it is
// used for. The secret comes first: who does not have it learns nothing.
func admit(record *storev1.JoinToken, token identity.JoinToken, use Use, now time.Time) error {
	refuse := func(code, format string, args ...any) error {
		return errdefs.New(errdefs.Unauthenticated, code, format, args...).With("token", token.ID)
	}
	known := token.Matches(record.GetSecretHash())
	switch {
	case !known:
		return refuse("JOIN_TOKEN_UNKNOWN", "the join token is unknown or was revoked; ask for a new one")
	case record.GetKind() != use.Kind:
		return refuse("JOIN_TOKEN_KIND", "the join token is for another kind of member")
	case !now.Before(record.GetExpiresAt().AsTime()):
		return refuse("JOIN_TOKEN_EXPIRED", "the join token expired at %s; ask for a new one",
			record.GetExpiresAt().AsTime().Format(time.RFC3339))
	case record.GetNodeId() != "" && record.GetNodeId() != use.Name:
		return refuse("JOIN_TOKEN_OTHER_NAME", "the join token is for %q, not for %q", record.GetNodeId(), use.Name)
	case len(record.GetUsedByKey()) == 0:
		return nil
	case !bytes.Equal(record.GetUsedByKey(), use.KeyHash) || record.GetUsedByNode() != use.Name:
		return refuse("JOIN_TOKEN_USED", "the join token was used at %s by %q with another key; if that was not you, it was stolen: ask for a new one and have %q replaced",
			record.GetUsedAt().AsTime().Format(time.RFC3339), record.GetUsedByNode(), record.GetUsedByNode())
	}
	return nil
}

func wait(ctx context.Context, changed <-chan struct{}, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-timer.C:
	}
	return nil
}
