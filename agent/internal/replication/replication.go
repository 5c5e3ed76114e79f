package replication

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/pace"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Config is what the kinds work with.
type Config struct {
	// Node and Cluster are this agent's.
	Node, Cluster string
	ZFS           *zfs.ZFS
	Certificates  *certs.Reloader
	// Host and ports are where streams are received, and what sources are told.
	Host                string
	FirstPort, LastPort int
	// Freezer freezes guests while snapshots are taken (freeze.Freezer).
	Freezer Freezer
	Log     hclog.Logger
}

// Freezer calls take with the guest frozen, or, where none is asked for (nil),
// as it is.
type Freezer interface {
	Frozen(ctx context.Context, f *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error)
}

// Replication holds what the kinds share. It is safe for concurrent use.
type Replication struct {
	cfg Config
	zfs *zfs.ZFS
	// leaving and arriving are the paces of all that leaves this node and of all that
	// arrives, under the limits that were last told.
	leaving, arriving nodePace
	// patience is how long a target that is full, or a step that comes to nothing, is
	// tried again.
	patience time.Duration
	// passing is called at every failpoint; tests have the agent die there.
	passing func(point string)
}

// New makes a Replication.
func New(cfg Config) *Replication {
	r := &Replication{cfg: cfg, zfs: cfg.ZFS, patience: 2 * time.Minute, passing: func(string) {}}
	r.leaving.Limit, r.arriving.Limit = r.leaving.most.Load, r.arriving.most.Load
	return r
}

// nodePace is a pace whose limit, bytes a second, is the node's.
type nodePace struct {
	pace.Pace
	most atomic.Uint64
}

func (p *nodePace) limitTo(mib uint64) { p.most.Store(mib << 20) }

// Kinds are the kinds of tasks: zfs-snapshot, zfs-destroy, replicate-receive,
// replicate-send and replication-release.
func (r *Replication) Kinds() []worker.Kind {
	return []worker.Kind{quickKind{snapshotKind{r}}, destroyKind{r}, receiveKind{r}, sendKind{r}, releaseKind{r}}
}
