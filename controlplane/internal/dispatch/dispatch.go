package dispatch

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/run"
)

// Config is what dispatch is made of.
type Config struct {
	// Replica is this replica's name.
	Replica string
	// Cluster is the trust domain of the agents' certificates.
	Cluster   string
	View      *store.View
	Store     *store.Store
	Inventory *inventory.Inventory
	// Trust is which CAs agents are to trust; nil: they are not told.
	Trust Trust
	// Interval is the time between heartbeats, before jitter.
	Interval time.Duration
	Log      hclog.Logger
	// Now is a test's clock; nil: time.Now.
	Now func() time.Time
}

// Trust says which CAs agents are to trust.
type Trust interface {
	// Bundle is what they are told.
	Bundle() *agentv1.TrustBundle
	// Changed is closed when Bundle says something else than before this call.
	Changed() <-chan struct{}
}

// Dispatch serves SessionService. It is safe for concurrent use.
type Dispatch struct {
	agentv1.UnimplementedSessionServiceServer
	cfg Config
	// A place for each answer in parts that is under way, about Ceph and about all
	// else.
	cephInParts, inParts chan struct{}

	mu     sync.Mutex
	leader *leader // nil unless this replica leads
}

// New makes a dispatch that does not lead.
func New(cfg Config) *Dispatch {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Dispatch{cfg: cfg, cephInParts: make(chan struct{}, maxInPartsOfCeph), inParts: make(chan struct{}, maxInParts)}
}

// Lead takes agents' sessions until ctx ends or another leads
// (store.ErrFenced), and runs the inventory meanwhile. When it returns, all
// sessions have ended.
func (d *Dispatch) Lead(ctx context.Context, l election.Leadership) error {
	if err := d.cfg.Inventory.Begin(ctx, l); err != nil {
		return err
	}
	led := newLeader(d.cfg, l)
	var group run.Group
	group.Add("inventory", func(ctx context.Context) error { return d.cfg.Inventory.Lead(ctx, l) })
	group.Add("reports", led.writeReports)
	group.Add("sessions", func(ctx context.Context) error {
		d.setLeader(led)
		defer led.end()
		defer d.setLeader(nil)
		return led.distribute(ctx)
	})
	return group.Run(ctx)
}

func (d *Dispatch) setLeader(l *leader) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leader = l
}

func (d *Dispatch) current() *leader {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leader == nil || !d.leader.lead.Fresh() {
		return nil
	}
	return d.leader
}

// Sessions is how many agents have a session; leads is false, and there are
// none, where this replica does not lead.
func (d *Dispatch) Sessions() (open int, leads bool) {
	l := d.current()
	if l == nil {
		return 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sessions), true
}

// replicas are the agents' listeners of all replicas.
func replicas(s *cluster.Snapshot) []string {
	addresses := make([]string, 0, len(s.Replicas))
	for _, r := range s.Replicas {
		if a := r.Value.GetAgentsAddress(); a != "" {
			addresses = append(addresses, a)
		}
	}
	slices.Sort(addresses)
	return addresses
}
