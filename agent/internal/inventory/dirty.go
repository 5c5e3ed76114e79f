package inventory

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// dirtyTick is how often it is looked whose dirty rate is to be measured.
	dirtyTick = 5 * time.Second
	// dirtyTimeout bounds one measurement.
	dirtyTimeout = 20 * time.Second
	// dirtyNews is by how much a rate has to move to be news, bytes a second,
	// besides a quarter of itself.
	dirtyNews = 8 << 20
)

// measureDirt measures the running guests' dirty rates in turn, one at a time,
// and none while a migration needs the host.
func (c *Collector) measureDirt(ctx context.Context) {
	if c.cfg.DirtyRateEvery == 0 {
		return
	}
	tick := time.NewTicker(dirtyTick)
	defer tick.Stop()
	measured := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		uuid := c.nextToMeasure(measured)
		if uuid == "" {
			continue
		}
		measured[uuid] = time.Now()
		c.measureOne(ctx, uuid)
	}
}

// nextToMeasure is the running guest whose measurement is the oldest and due;
// empty: none is, or something moves. It forgets the guests that are gone.
func (c *Collector) nextToMeasure(measured map[string]time.Time) (next string) {
	if c.cfg.Busy != nil && c.cfg.Busy() || len(c.arriving()) > 0 || c.isDown() != nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for uuid := range measured {
		if c.seen[uuid] == nil {
			delete(measured, uuid)
		}
	}
	oldest := time.Now().Add(-c.cfg.DirtyRateEvery)
	for uuid, d := range c.seen {
		at := measured[uuid]
		if d.GetState() == debvisorv1.VMState_VM_STATE_RUNNING && !at.After(oldest) {
			next, oldest = uuid, at.Add(-1)
		}
	}
	return next
}

func (c *Collector) measureOne(ctx context.Context, uuid string) {
	ctx, cancel := context.WithTimeout(ctx, dirtyTimeout)
	defer cancel()
	rate, err := c.cfg.Hypervisor.DirtyRate(ctx, uuid)
	if err != nil {
		c.cfg.Log.Debug("dirty rate not measured", "vm", uuid, "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.seen[uuid]
	if was == nil || rate == was.GetDirtyBytesPerSecond() ||
		was.GetDirtyBytesPerSecond() > 0 && !moved(was.GetDirtyBytesPerSecond(), rate, max(dirtyNews, was.GetDirtyBytesPerSecond()/4)) {
		return
	}
	now := proto.CloneOf(was)
	now.DirtyBytesPerSecond = rate
	c.seen[uuid] = now
	c.news.changedNow(uuid)
	c.ring()
}
