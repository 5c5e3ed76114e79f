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
	// writtenLeast is told of a guest that wrote nothing meanwhile: 0 would mean
	// that it is not known.
	writtenLeast = 4 << 10
)

// rateNews tells whether a rate has moved enough to be news.
func rateNews(was, now uint64) bool {
	return was != now && (was == 0 || moved(was, now, max(dirtyNews, was/4)))
}

// written is how much a guest has written so far, bytes; 0: not known.
func (c *Collector) written(ctx context.Context, uuid string) uint64 {
	n, err := c.cfg.Hypervisor.Written(ctx, uuid)
	if err != nil {
		c.cfg.Log.Debug("not known what is written to disks", "vm", uuid, "error", err)
	}
	return n
}

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
	before, begun := c.written(ctx, uuid), time.Now()
	rate, err := c.cfg.Hypervisor.DirtyRate(ctx, uuid)
	if err != nil {
		c.cfg.Log.Debug("dirty rate not measured", "vm", uuid, "error", err)
		return
	}
	var written uint64
	if after, took := c.written(ctx, uuid), time.Since(begun); before > 0 && after >= before && took > 0 {
		written = max(uint64(float64(after-before)/took.Seconds()), writtenLeast)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.seen[uuid]
	if was == nil || !rateNews(was.GetDirtyBytesPerSecond(), rate) && !rateNews(was.GetWrittenBytesPerSecond(), written) {
		return
	}
	now := proto.CloneOf(was)
	now.DirtyBytesPerSecond, now.WrittenBytesPerSecond = rate, written
	c.seen[uuid] = now
	c.news.changedNow(uuid)
	c.ring()
}
