package inventory

import (
	"time"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

const (
	missedForSuspect = 3
	unreachableAfter = 10 * time.Second
	// jitter is the part by which an agent may stretch its interval.
	jitter = 0.1
)

// judge tells what silence means: SUSPECT once three heartbeats must have been
// missed, UNREACHABLE after ten seconds.
func judge(silence, interval time.Duration) storev1.NodeLiveness {
	switch {
	case silence >= unreachableAfter:
		return storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
	case float64(silence) > missedForSuspect*(1+jitter)*float64(interval):
		return storev1.NodeLiveness_NODE_LIVENESS_SUSPECT
	}
	return storev1.NodeLiveness_NODE_LIVENESS_ONLINE
}

// age lets silence tell. It never makes a node better: only being heard does.
// A node that no leader ever heard has no liveness.
func (i *Inventory) age(now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, n := range i.nodes {
		if n.liveness == storev1.NodeLiveness_NODE_LIVENESS_UNSPECIFIED {
			continue
		}
		if l := judge(now.Sub(n.heard), i.cfg.Interval); l > n.liveness {
			n.become(l, i.cfg.Log)
			i.moved = true
		}
	}
}
