package inventory

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Ceph is what is asked of the host's Ceph cluster. Its calls end with their
// context.
type Ceph interface {
	// Present tells, without waiting, whether the host is a client of a cluster.
	Present() bool
	Inventory(ctx context.Context) (*agentv1.CephInventory, error)
}

const (
	cephNone    = "none"
	cephUnknown = "HEALTH_UNKNOWN"
	cephEvery   = 15 * time.Second
	cephTimeout = 15 * time.Second
	// maxCephPools bounds what is told of them.
	maxCephPools = 2000
)

// cephKnown is what is known of the host's Ceph.
type cephKnown struct {
	host   bool                   // it has Ceph
	told   *agentv1.CephInventory // nil: it was not asked yet; never changed
	outage outage
}

func (c *Collector) hasCeph() bool { return c.cfg.Ceph != nil && c.cfg.Ceph.Present() }

// lookAtCeph asks Ceph how it is.
func (c *Collector) lookAtCeph(ctx context.Context) struct{} {
	if !c.hasCeph() {
		c.noteNoCeph()
		return struct{}{}
	}
	bounded, cancel := context.WithTimeout(ctx, cephTimeout)
	defer cancel()
	found, err := c.cfg.Ceph.Inventory(bounded)
	if ctx.Err() == nil {
		c.noteCeph(found, err)
	}
	return struct{}{}
}

// noteCeph takes what was found, or why nothing was: all else is then as before.
func (c *Collector) noteCeph(found *agentv1.CephInventory, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := &c.ceph
	silent := known.outage.note(c.cfg.Log, "Ceph", err)
	if err != nil {
		found = &agentv1.CephInventory{}
		if known.told != nil {
			found = proto.CloneOf(known.told)
		}
		found.Error = silent
	}
	if len(found.GetPools()) > maxCephPools {
		found.Pools = found.GetPools()[:maxCephPools]
	}
	known.host = true
	renamed := !sameCluster(found, known.told)
	if !proto.Equal(found, known.told) {
		known.told, c.news.ceph = found, true
		c.ring()
	}
	if renamed {
		c.renameClusters()
	}
}

// noteNoCeph notes that the host has no Ceph (any more).
func (c *Collector) noteNoCeph() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ceph.host {
		c.ceph, c.news.ceph, c.news.complete = cephKnown{}, false, true
		c.ring()
	}
}

// cephHealth tells Ceph's own word for its health, "none" on a host that is no
// client of a cluster, HEALTH_UNKNOWN where Ceph does not answer, and what is
// wrong with it.
func (c *Collector) cephHealth(problem func(code debvisorv1.StatusCode, format string, args ...any)) string {
	c.mu.Lock()
	known := c.ceph
	c.mu.Unlock()
	switch health := known.told.GetHealth(); {
	case !known.host:
		return cephNone
	case known.told == nil:
		return cephUnknown // it is being asked
	case known.told.GetError() != "":
		problem(debvisorv1.StatusCode_STATUS_ERROR, "%s", known.told.GetError())
		return cephUnknown
	case health == "HEALTH_OK":
		return health
	case health == "HEALTH_WARN":
		problem(debvisorv1.StatusCode_STATUS_WARN, "ceph says HEALTH_WARN")
		return health
	default:
		problem(debvisorv1.StatusCode_STATUS_ERROR, "ceph says %s", health)
		return health
	}
}
