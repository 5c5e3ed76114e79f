package rbd

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// buryFor is how long a dead child of ours stays blocklisted: longer than
	// anything of it can be under way.
	buryFor   = 5 * time.Minute
	maxGraves = 16
)

// graves are the addresses of children that died in the middle of changes. They
// hold locks that nobody gives back, which would keep guests from writing until
// Ceph misses them, and what they sent may still arrive: so they are blocklisted
// before anything else is done.
type graves struct {
	burying sync.Mutex
	mu      sync.Mutex
	open    []string
}

func (g *graves) dig(address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.open) < maxGraves {
		g.open = append(g.open, address)
	}
}

func (g *graves) list() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.open)
}

func (g *graves) close(buried []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = slices.DeleteFunc(g.open, func(a string) bool { return slices.Contains(buried, a) })
}

// bury has every grave's address blocklisted. Where the agent's entity may not, the
// dead are left to Ceph, which misses them after half a minute.
func (c *Client) bury(ctx context.Context) error {
	if len(c.graves.list()) == 0 {
		return nil
	}
	c.graves.burying.Lock() // the call in there has a limit
	defer c.graves.burying.Unlock()
	dead := c.graves.list()
	if len(dead) == 0 {
		return nil
	}
	err := c.blocklist(ctx, dead)
	if silent(err) {
		return err
	}
	if err != nil {
		c.cfg.Log.Warn("a dead child's address cannot be blocklisted: what it has locked is free when Ceph misses it", "addresses", dead, "error", err)
	}
	c.graves.close(dead)
	return nil
}
