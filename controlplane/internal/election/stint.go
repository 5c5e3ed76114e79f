package election

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/shared/task"
)

// errKeyGone is why a stint ended: another one deleted the election key, or
// etcd did with the lease.
var errKeyGone = errors.New("the election key is gone")

// stint is one lease's life: campaign, lead if elected, resign.
func (e *Election) stint(ctx context.Context, lead func(context.Context, Leadership) error) error {
	l, err := grant(ctx, e.cfg.Client, e.cfg.TTL)
	if err != nil {
		e.cfg.Log.Warn("cannot campaign", "error", err)
		return err
	}
	// The lease is kept until lead has returned, also when ctx ends before.
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	ctx, end := context.WithCancelCause(ctx)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		if err := l.keep(keeping); err != nil {
			end(err)
		}
	}()
	defer func() {
		end(nil)
		stopKeeping()
		<-kept
		if err := l.revoke(keeping); err != nil {
			e.cfg.Log.Warn("could not resign; the lease runs out by itself", "ttl", l.ttl, "error", err)
		}
	}()

	client := boundClient(ctx, e.cfg.Client)
	session, err := concurrency.NewSession(client, concurrency.WithLease(l.id), concurrency.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("beginning a session: %w", err)
	}
	defer session.Orphan()
	won, revision, err := e.campaign(ctx, session)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.cfg.Log.Warn("the campaign failed", "error", err)
		return err
	}
	won.Fresh = l.fresh
	return e.lead(ctx, won, revision, lead)
}

// boundClient is the same client, but for its context: Campaign resigns under
// the client's context when its own ends, and would hang there without a store
// that answers. It must not be closed.
func boundClient(ctx context.Context, c *clientv3.Client) *clientv3.Client {
	bound := clientv3.NewCtxClient(ctx)
	bound.KV, bound.Lease, bound.Watcher = c.KV, c.Lease, c.Watcher
	return bound
}

// campaign waits to be elected and gives the leadership with the revision at
// which it was sure to hold.
func (e *Election) campaign(ctx context.Context, session *concurrency.Session) (Leadership, int64, error) {
	value, err := proto.Marshal(e.cfg.Self)
	if err != nil {
		return Leadership{}, 0, fmt.Errorf("encoding the leader's addresses: %w", err)
	}
	candidate := concurrency.NewElection(session, store.ElectionPrefix())
	if err := candidate.Campaign(ctx, string(value)); err != nil {
		return Leadership{}, 0, fmt.Errorf("campaigning: %w", err)
	}
	epoch, err := store.Epoch(ctx, session.Client())
	if err != nil {
		return Leadership{}, 0, err
	}
	term := task.Term{Epoch: epoch, Revision: candidate.Rev()}
	won := Leadership{Term: term, Fence: &store.Fence{Key: candidate.Key(), Term: term}}
	// Campaign returns when all older candidates are gone; whether our own key
	// still was there by then it does not say.
	revision, err := store.New(session.Client()).Commit(ctx, store.Change{Fence: won.Fence})
	if err != nil {
		return Leadership{}, 0, fmt.Errorf("elected, but: %w", err)
	}
	return won, revision, nil
}

// lead calls the leader's work with a context that ends with leadership and
// waits for it to return.
func (e *Election) lead(ctx context.Context, won Leadership, revision int64, work func(context.Context, Leadership) error) error {
	ctx, end := context.WithCancelCause(ctx)
	guarded := make(chan struct{})
	go func() {
		defer close(guarded)
		if err := e.guard(ctx, won.Fence, revision); err != nil {
			end(err)
		}
	}()
	defer func() {
		end(nil)
		<-guarded
	}()
	log := e.cfg.Log.With("term", won.Term.String())
	log.Info("elected: this replica leads")
	err := work(ctx, won)
	if ctx.Err() != nil {
		log.Info("this replica leads no more", "reason", context.Cause(ctx))
		return context.Cause(ctx)
	}
	if err != nil {
		log.Error("leading has failed; resigning", "error", err)
		return fmt.Errorf("leading: %w", err)
	}
	log.Info("leadership given up")
	return nil
}

// guard returns errKeyGone when the election key is gone, and nil when ctx
// ends. A watch that breaks off is no loss of leadership.
func (e *Election) guard(ctx context.Context, fence *store.Fence, revision int64) error {
	s := store.New(e.cfg.Client)
	for {
		for r := range e.cfg.Client.Watch(ctx, fence.Key, clientv3.WithRev(revision+1), clientv3.WithFilterPut()) {
			if len(r.Events) > 0 {
				return errKeyGone
			}
		}
		for {
			if ctx.Err() != nil {
				return nil
			}
			at, err := s.Commit(ctx, store.Change{Fence: fence})
			if errors.Is(err, store.ErrFenced) {
				return errKeyGone
			}
			if err == nil {
				revision = at
				break
			}
			select {
			case <-time.After(e.cfg.TTL / 10):
			case <-ctx.Done():
			}
		}
	}
}
