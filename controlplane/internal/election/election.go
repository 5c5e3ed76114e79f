// Package election elects one replica to lead and tells it for how long it may
// believe so.
//
// It promises: a term is greater than every one before it; the context of a
// leader ends when its lease runs out by its own clock, when etcd says that its
// key is gone, and when it is asked to stop; nobody is elected again before its
// former lead has returned.
//
// It does NOT promise that only one replica believes to lead. A process may be
// stopped between asking Fresh and acting, and wake when another one leads; a
// message may arrive long after it was sent. So leadership is not a lock:
// whatever a leader writes must carry its Fence, which etcd compares, and
// whatever it sends must carry its Term, which the receiver compares with the
// highest it has seen.
package election

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	defaultTTL = 3 * time.Second
	maxTTL     = 5 * time.Second
	// revokeTimeout is how long resigning may take.
	revokeTimeout = 2 * time.Second
	// failurePause comes before the next campaign when a stint has failed, so
	// that another replica has its turn.
	failurePause = time.Second
)

// Config says how a replica campaigns.
type Config struct {
	Client *clientv3.Client
	// TTL is how long a leader that is not heard of leads on; 0: 3 s. Whole
	// seconds, 1 to 5. etcd makes it longer where it is less than one and a
	// half of etcd's own election timeout.
	TTL time.Duration
	// Self is what the others will read of this replica when it leads.
	Self *storev1.Leader
	Log  hclog.Logger
}

// Leadership is what a leader knows of its own term.
type Leadership struct {
	Term task.Term
	// Fence goes with every change the leader commits.
	Fence *store.Fence
	// Fresh tells whether the lease is sure not to have run out yet, by this
	// machine's monotonic clock. To be asked right before every send. Once the
	// leader's context has ended it is no licence to go on.
	Fresh func() bool
}

// Election campaigns for one replica.
type Election struct{ cfg Config }

// New makes an Election.
func New(cfg Config) *Election {
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	return &Election{cfg: cfg}
}

// Run campaigns until ctx ends. Each time this replica is elected it calls lead
// with a context that ends with leadership, waits for lead to return, resigns
// if it can, so that the next leader comes at once, and campaigns again. That
// lead returns while it could still lead, with or without an error, is its way
// to give leadership up; an error is logged.
func (e *Election) Run(ctx context.Context, lead func(ctx context.Context, l Leadership) error) error {
	if ttl := e.cfg.TTL; ttl < time.Second || ttl > maxTTL || ttl%time.Second != 0 {
		return errdefs.Field("election TTL", ttl.String(), "whole seconds from 1s to 5s")
	}
	for {
		err := e.stint(ctx, lead)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil || errors.Is(err, errLeaseLost) || errors.Is(err, errKeyGone) {
			continue
		}
		select {
		case <-time.After(failurePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
