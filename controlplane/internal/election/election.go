// Package election elects one replica to lead and tells it for how long it may
// believe so.
package election

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// Config says how a replica campaigns.
type Config struct {
	Client *clientv3.Client
	// TTL is how long a leader that is not heard of leads on; 0: 3 s. Whole
	// seconds, at least 1 and at most 5.
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
	// machine's monotonic clock. To be asked right before every send.
	Fresh func() bool
}

// Election campaigns for one replica.
type Election struct{ cfg Config }

// New makes an Election.
func New(cfg Config) *Election { return &Election{cfg: cfg} }

// Run campaigns until ctx ends. Each time this replica is elected it calls lead
// with a context that ends with leadership, and campaigns again when lead has
// returned; an error of lead ends Run, unless leadership was lost.
func (e *Election) Run(ctx context.Context, lead func(ctx context.Context, l Leadership) error) error {
	return nil
}
