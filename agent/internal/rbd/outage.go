package rbd

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// probePause is between the questions to a cluster that does not answer.
const probePause = time.Second

// allPools stands for them in a call's pools.
const allPools = "*"

var errOutage = errors.New("no answer from Ceph")

// outages are the pools that are known not to answer, and the cluster as a whole
// under the empty name. Calls on them are answered at once, while a probe of each
// waits for its return.
type outages struct {
	watch func(pool string)

	mu      sync.Mutex
	known   map[string]*errdefs.Error
	changed chan struct{} // closed when one is added
}

func newOutages(watch func(pool string)) *outages {
	return &outages{watch: watch, known: map[string]*errdefs.Error{}, changed: make(chan struct{})}
}

// check refuses what is known not to be answered; else the channel tells when to
// ask again.
func (o *outages) check(pools []string) (changed <-chan struct{}, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for pool, outage := range o.known {
		for _, asked := range append([]string{""}, pools...) {
			if asked == pool || asked == allPools {
				return nil, outage
			}
		}
	}
	return o.changed, nil
}

// open notes that there was no answer.
func (o *outages) open(pools []string, cause error) {
	if len(pools) == 0 || pools[0] == allPools {
		pools = []string{""}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, pool := range pools {
		if o.known[pool] != nil {
			continue
		}
		what := "Ceph"
		if pool != "" {
			what = "Ceph's pool " + pool
		}
		o.known[pool] = errdefs.New(errdefs.Unavailable, CodeDown, "%s has not answered since %s: %s", what,
			time.Now().UTC().Format(time.RFC3339), errdefs.Of(cause).Message).With("pool", pool)
		o.watch(pool)
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *outages) close(pool string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.known, pool)
}

// watch asks again and again, until there is an answer.
func (c *Client) watch(ctx context.Context, pool string) {
	c.cfg.Log.Warn("Ceph does not answer", "pool", pool)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(probePause):
		}
		if err := c.probe(ctx, pool); !silent(err) {
			break // an error that is an answer is one
		}
		// librados is slow to see that an OSD is back, a new connection is not.
		c.general.renew(errOutage)
	}
	// What was asked is not all that was silent: the monitors' answer says nothing of
	// OSDs, one OSD's nothing of others, and none comes over the connection for what
	// takes long. One that has not seen that an OSD is back never does: the next calls
	// are on new ones.
	c.general.renew(errOutage)
	c.long.renew(errOutage)
	c.outages.close(pool)
	c.cfg.Log.Info("Ceph answers again", "pool", pool)
}
