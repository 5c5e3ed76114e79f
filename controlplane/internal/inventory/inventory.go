package inventory

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// View is where the snapshot comes from (store.View).
type View interface {
	Current() *cluster.Snapshot
	Changed() <-chan struct{}
	Await(ctx context.Context, revision int64) error
}

// Committer writes to etcd (store.Store).
type Committer interface {
	Commit(ctx context.Context, c store.Change) (revision int64, err error)
}

// Config is what an inventory is made of.
type Config struct {
	View  View
	Store Committer
	// Interval is the time between an agent's heartbeats, before jitter.
	Interval time.Duration
	// Tracing has what is ordered traced; nil: only told of in logs.
	Tracing *obs.Tracing
	Log     hclog.Logger
}

// Facts is what a session's beginning tells of a node.
type Facts struct {
	AgentVersion string
	PeerAddress  string
	JournalID    string
	BootID       string
	// Term is what the agent has acknowledged.
	Term task.Term
}

// Inventory is the leader's memory of nodes. It is safe for concurrent use.
type Inventory struct {
	cfg  Config
	bell chan struct{} // something is to be written now

	mu      sync.Mutex
	nodes   map[string]*node // nil unless leading
	waiters []chan<- int64   // for the next write of statuses
	moved   bool             // VMs are to be looked at
	timers  map[string]time.Time
}

// New makes an inventory that knows nothing until it leads.
func New(cfg Config) *Inventory {
	return &Inventory{cfg: cfg, bell: make(chan struct{}, 1), timers: map[string]time.Time{}}
}

func errNotLeading() error {
	return errdefs.New(errdefs.Unavailable, "NOT_LEADER", "this replica does not lead").WithRetry(time.Second)
}

// Greet notes that a node's agent is there, before anything that it reports:
// of a host that was restarted, what ran there is known no more.
func (i *Inventory) Greet(id, bootID string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.node(id)
	if n == nil {
		return
	}
	n.hear(time.Now(), i.cfg.Log)
	n.cpus.begun = false
	n.firstSeen(bootID)
	if n.facts.BootID != bootID {
		n.forgetDomains()
		n.facts.BootID, i.moved = bootID, true
	}
	i.ring()
}

// Open notes that a node's agent has a session, and gives the revision at which
// etcd has it: a fenced write, so that whoever gets it did lead then.
func (i *Inventory) Open(ctx context.Context, id string, f Facts) (revision int64, err error) {
	written := make(chan int64, 1)
	i.mu.Lock()
	n := i.node(id)
	if n == nil {
		i.mu.Unlock()
		return 0, errNotLeading()
	}
	n.hear(time.Now(), i.cfg.Log)
	n.facts, n.urgent = f, true
	n.firstSeen(f.BootID)
	i.waiters = append(i.waiters, written)
	i.mu.Unlock()
	i.ring()
	select {
	case revision, ok := <-written:
		if !ok {
			return 0, errNotLeading()
		}
		return revision, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Journal is the id of the journal that the node's agent last had; empty: it
// never had a session. Its error is Unavailable: this replica does not lead.
func (i *Inventory) Journal(id string) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.node(id)
	if n == nil {
		return "", errNotLeading()
	}
	return n.facts.JournalID, nil
}

// Heartbeat notes that a node's agent lives.
func (i *Inventory) Heartbeat(id string, h *debvisorv1.Health) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.node(id)
	if n == nil {
		return
	}
	n.hear(time.Now(), i.cfg.Log)
	if h.GetOverall() != n.health.GetOverall() || len(h.GetProblems()) != len(n.health.GetProblems()) ||
		n.health.GetNetRttMs() == 0 && h.GetNetRttMs() > 0 { // not known before
		n.urgent = true
	}
	n.health, n.dirty = h, true
	if n.urgent {
		i.ring()
	}
}

// Trust takes what an agent says of the CAs that it trusts and the certificate
// that it shows.
func (i *Inventory) Trust(id string, t *agentv1.Trust) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.node(id)
	if n == nil {
		return
	}
	n.hear(time.Now(), i.cfg.Log)
	if !slices.Equal(n.trust.GetCas(), t.GetCas()) || n.trust.GetIssuer() != t.GetIssuer() {
		n.urgent = true // an exchange of the CA waits for it
	}
	n.trust, n.dirty = t, true
	if n.urgent {
		i.ring()
	}
}

// Report takes what an agent reports of its host.
func (i *Inventory) Report(id string, inv *agentv1.Inventory) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.node(id)
	if n == nil {
		return
	}
	n.hear(time.Now(), i.cfg.Log)
	n.report(inv)
	i.moved = true
	i.ring()
}

// Heard tells when a node's agent was last heard by this leader and what it
// said of its health; ok is false where this replica does not lead or has not
// heard it.
func (i *Inventory) Heard(id string) (at time.Time, h *debvisorv1.Health, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n, ok := i.nodes[id]
	if !ok || !n.heardNow {
		return time.Time{}, nil, false
	}
	return n.heard, n.health, true
}

// Silences tells for how long each node's agent has not been heard, by its id,
// counted from the beginning of this leadership at the earliest. Nodes that no
// leader ever heard are left out; nil: this replica does not lead.
func (i *Inventory) Silences(now time.Time) map[string]time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.nodes == nil {
		return nil
	}
	silences := make(map[string]time.Duration, len(i.nodes))
	for id, n := range i.nodes {
		if n.liveness != storev1.NodeLiveness_NODE_LIVENESS_UNSPECIFIED {
			silences[id] = max(now.Sub(n.heard), 0)
		}
	}
	return silences
}

// node is the memory of a node, made where it is missing; nil unless leading.
// Callers hold mu.
func (i *Inventory) node(id string) *node {
	if i.nodes == nil {
		return nil
	}
	n, ok := i.nodes[id]
	if !ok {
		n = newNode(id, nil, time.Now())
		i.nodes[id] = n
	}
	return n
}

func (i *Inventory) ring() {
	select {
	case i.bell <- struct{}{}:
	default:
	}
}

// encode is deterministic, so that equal messages are equal bytes.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil // only invalid UTF-8, which the wire did not let through
	}
	return b
}
