package inventory

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// ZFS is what is asked of ZFS. Its calls end with their context, unless the
// kernel lets nothing end them.
type ZFS interface {
	// Installed tells, without waiting, whether there are the commands.
	Installed() bool
	Probe(ctx context.Context) (zfs.Capabilities, error)
	Pools(ctx context.Context) ([]zfs.Pool, error)
	Datasets(ctx context.Context, roots ...string) ([]zfs.Dataset, error)
}

const (
	zfsEvery   = 15 * time.Second
	zfsTimeout = 20 * time.Second
	// zfsHungAfter is more than the timeout: what is under way for longer is not
	// even ended by it.
	zfsHungAfter = zfsTimeout + 5*time.Second
	// maxDatasets and maxDatasetBytes bound what is told: a message to the leader
	// holds 1 MiB, and so does about a record in etcd.
	maxDatasets     = 5000
	maxDatasetBytes = 700 << 10
)

// zfsKnown is what is known of the host's ZFS.
type zfsKnown struct {
	host   bool                  // it has ZFS
	told   *agentv1.ZfsInventory // nil: it was not looked at yet; never changed
	outage outage
}

// PokeZFS has the host's ZFS looked at soon: a task has changed something. It
// never waits.
func (c *Collector) PokeZFS() { c.looks.poke() }

// hasZFS tells whether the kernel has ZFS and the host the commands.
func (c *Collector) hasZFS() bool {
	if c.cfg.ZFS == nil || !c.cfg.ZFS.Installed() {
		return false
	}
	_, err := os.Stat(c.host.path("sys/module/zfs"))
	return err == nil
}

// lookAtZFS asks what there is. It may hang with a pool.
func (c *Collector) lookAtZFS(ctx context.Context) struct{} {
	if !c.hasZFS() {
		c.noteNoZFS()
		return struct{}{}
	}
	bounded, cancel := context.WithTimeout(ctx, zfsTimeout)
	defer cancel()
	found, err := c.askZFS(bounded)
	if ctx.Err() == nil {
		c.noteZFS(found, err)
	}
	return struct{}{}
}

func (c *Collector) askZFS(ctx context.Context) (*agentv1.ZfsInventory, error) {
	can, err := c.cfg.ZFS.Probe(ctx)
	if err != nil {
		return nil, err
	}
	pools, err := c.cfg.ZFS.Pools(ctx)
	if err != nil {
		return nil, err
	}
	datasets, err := c.cfg.ZFS.Datasets(ctx)
	if err != nil {
		return nil, err
	}
	inv := &agentv1.ZfsInventory{Version: can.Userland, ModuleVersion: can.Kernel, EncryptedSendUnsafe: can.EncryptedSendUnsafe}
	slices.SortFunc(pools, func(a, b zfs.Pool) int { return cmp.Compare(a.Name, b.Name) })
	for _, p := range pools {
		inv.Pools = append(inv.Pools, p.Wire())
	}
	slices.SortFunc(datasets, func(a, b zfs.Dataset) int { return cmp.Compare(a.Name, b.Name) })
	size := 0
	for _, d := range datasets {
		m := d.Wire()
		size += proto.Size(m) + 4
		if len(inv.GetDatasets()) == maxDatasets || size > maxDatasetBytes {
			inv.Truncated = true
			break
		}
		inv.Datasets = append(inv.Datasets, m)
	}
	return inv, nil
}

// checkZFS notices a look that nothing ends.
func (c *Collector) checkZFS() {
	if _, under := c.looks.latest(); under > zfsHungAfter {
		c.noteZFS(nil, errZFSHangs)
	}
}

var errZFSHangs = errors.New("its commands neither answer nor end, as with a pool that is suspended")

// noteZFS takes what was found, or why nothing was: all else is then as before.
func (c *Collector) noteZFS(found *agentv1.ZfsInventory, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := &c.zfs
	if errors.Is(err, context.DeadlineExceeded) {
		err = errZFSHangs // whatever it was doing
	}
	silent := known.outage.note(c.cfg.Log, "ZFS", err)
	if err != nil {
		found = &agentv1.ZfsInventory{}
		if known.told != nil {
			found = proto.CloneOf(known.told)
		}
		found.Error = silent
	}
	known.host = true
	if !proto.Equal(found, known.told) {
		known.told, c.news.zfs = found, true
		c.ring()
	}
}

// noteNoZFS notes that the host has no ZFS (any more).
func (c *Collector) noteNoZFS() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.zfs.host {
		c.zfs, c.news.zfs, c.news.complete = zfsKnown{}, false, true
		c.ring()
	}
}

// zfsHealth tells what is wrong with ZFS.
func (c *Collector) zfsHealth(problem func(code debvisorv1.StatusCode, format string, args ...any)) {
	c.mu.Lock()
	told := c.zfs.told
	c.mu.Unlock()
	if reason := told.GetError(); reason != "" {
		problem(debvisorv1.StatusCode_STATUS_ERROR, "%s", reason)
	}
	for _, p := range told.GetPools() {
		switch p.GetHealth() {
		case "ONLINE":
		case "DEGRADED":
			problem(debvisorv1.StatusCode_STATUS_WARN, "the ZFS pool %s is DEGRADED", p.GetName())
		default:
			problem(debvisorv1.StatusCode_STATUS_ERROR, "the ZFS pool %s is %s", p.GetName(), p.GetHealth())
		}
	}
}
