package inventory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// pools stands for the commands zfs and zpool: of a host with one pool.
type pools struct {
	mu       sync.Mutex
	absent   bool // there are no commands
	health   string
	datasets []zfs.Dataset
	err      error
	asked    int
	hang     chan struct{} // closed: goes on
	hangs    bool          // from the beginning
	stubborn bool          // not even the context's end helps
}

func (p *pools) set(change func(*pools)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

func (p *pools) Installed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.absent
}

func (p *pools) Probe(context.Context) (zfs.Capabilities, error) {
	return zfs.Capabilities{Userland: "2.4.4", Kernel: "2.4.4-k"}, nil
}

func (p *pools) Pools(ctx context.Context) ([]zfs.Pool, error) {
	p.mu.Lock()
	p.asked++
	hang, stubborn, err, health := p.hang, p.stubborn, p.err, p.health
	p.mu.Unlock()
	if hang != nil {
		ended := ctx.Done()
		if stubborn {
			ended = nil
		}
		select {
		case <-hang:
		case <-ended:
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return []zfs.Pool{{Name: "tank", GUID: 7, Health: health, Size: 100, Allocated: 10}}, nil
}

func (p *pools) Datasets(context.Context, ...string) ([]zfs.Dataset, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]zfs.Dataset(nil), p.datasets...), nil
}

// withZFS runs a test on a host with ZFS, in a bubble of time; the log is what
// the collector wrote.
func withZFS(t *testing.T, p *pools, test func(t *testing.T, c *Collector, l *libvirtd, log *bytes.Buffer)) {
	t.Helper()
	dir := root(t)
	if err := os.MkdirAll(dir+"/sys/module/zfs", 0o755); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		if p.hangs {
			p.hang = make(chan struct{}) // of this bubble
		}
		l, log := &libvirtd{domains: map[string]*agentv1.Domain{}}, &bytes.Buffer{}
		c := New(Config{Node: "n", Hypervisor: l, ZFS: p, Root: dir, Log: hclog.New(&hclog.LoggerOptions{Output: log})})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		test(t, c, l, log)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// told takes all news and gives the last of ZFS; nil: there were none.
func told(c *Collector) (last *agentv1.ZfsInventory) {
	for {
		inv := c.Inventory(false)
		if inv == nil {
			return last
		}
		if inv.GetZfs() != nil {
			last = inv.GetZfs()
		}
	}
}

func TestZFSIsToldWhenItChanges(t *testing.T) {
	p := &pools{health: "ONLINE", datasets: []zfs.Dataset{
		{Name: "tank/b", GUID: 3, Volume: true, VolumeSize: 1 << 30, ResumeToken: "1-abc", Properties: map[string]string{zfs.PropertyJob: "job"}},
		{Name: "tank", GUID: 2, Used: 5, Mounted: true},
	}}
	withZFS(t, p, func(t *testing.T, c *Collector, _ *libvirtd, log *bytes.Buffer) {
		inv := c.Inventory(true)
		if inv.GetZfs() != nil || !inv.GetZfsFollows() {
			t.Errorf("the first of a session holds %v, follows %v: want it in a message of its own", inv.GetZfs(), inv.GetZfsFollows())
		}
		<-c.Changed()
		first := c.Inventory(false)
		want := &agentv1.ZfsInventory{
			Version: "2.4.4", ModuleVersion: "2.4.4-k",
			Pools: []*agentv1.ZfsPool{{Name: "tank", Guid: 7, Health: "ONLINE", SizeBytes: 100, AllocatedBytes: 10}},
			Datasets: []*agentv1.ZfsDataset{
				{Name: "tank", Guid: 2, Type: agentv1.ZfsType_ZFS_TYPE_FILESYSTEM, UsedBytes: 5, Mounted: true},
				{Name: "tank/b", Guid: 3, Type: agentv1.ZfsType_ZFS_TYPE_VOLUME, VolumeBytes: 1 << 30, Partial: true, ReplicationJob: "job"},
			},
		}
		if !proto.Equal(first.GetZfs(), want) || first.GetCapacity() != nil || first.GetComplete() {
			t.Errorf("told %v, want %v", first, want)
		}
		told(c)
		time.Sleep(time.Minute)
		if again := told(c); again != nil {
			t.Errorf("told again: %v", again)
		}
		p.set(func(p *pools) { p.datasets = p.datasets[:1] })
		c.PokeZFS()
		synctest.Wait() // no time passes
		if after := told(c); len(after.GetDatasets()) != 1 {
			t.Errorf("after a poke: %v", after)
		}
		p.set(func(p *pools) { p.health = "DEGRADED" })
		time.Sleep(zfsEvery)
		synctest.Wait()
		if after := told(c); after.GetPools()[0].GetHealth() != "DEGRADED" {
			t.Errorf("after a while: %v", after)
		}
		if h := c.Health(0); h.GetOverall() != debvisorv1.StatusCode_STATUS_WARN || !strings.Contains(strings.Join(h.GetProblems(), ""), "pool tank is DEGRADED") {
			t.Errorf("health: %v", h)
		}
		p.set(func(p *pools) { p.absent = true })
		c.PokeZFS()
		synctest.Wait()
		if inv := c.Inventory(false); !inv.GetComplete() || inv.GetZfs() != nil || inv.GetZfsFollows() {
			t.Errorf("without ZFS any more: %v", inv)
		}
		if strings.Contains(log.String(), "ZFS") {
			t.Errorf("logged: %s", log)
		}
	})
}

func TestAPokeDuringALookIsNotLost(t *testing.T) {
	p := &pools{health: "ONLINE", hangs: true}
	withZFS(t, p, func(t *testing.T, c *Collector, _ *libvirtd, _ *bytes.Buffer) {
		c.PokeZFS() // the look under way may have seen what was before
		c.PokeZFS()
		synctest.Wait()
		p.set(func(p *pools) { close(p.hang); p.hang = nil })
		synctest.Wait()
		if p.asked != 2 {
			t.Errorf("looked %d times at once, want twice", p.asked)
		}
	})
}

func TestZFSThatHangs(t *testing.T) {
	for _, stubborn := range []bool{false, true} {
		t.Run(fmt.Sprintf("stubborn=%v", stubborn), func(t *testing.T) {
			p := &pools{health: "ONLINE", datasets: []zfs.Dataset{{Name: "tank", GUID: 2}}}
			withZFS(t, p, func(t *testing.T, c *Collector, l *libvirtd, log *bytes.Buffer) {
				before := told(c)
				hang := make(chan struct{})
				p.set(func(p *pools) { p.hang, p.stubborn, p.asked = hang, stubborn, 0 })
				time.Sleep(time.Minute)
				since := told(c)
				if len(since.GetDatasets()) != 1 || !strings.Contains(since.GetError(), "not answered since 2000-01-01T00:00:") {
					t.Errorf("told %v", since)
				}
				if h := c.Health(0); h.GetOverall() != debvisorv1.StatusCode_STATUS_ERROR || !strings.Contains(strings.Join(h.GetProblems(), ""), "ZFS has not answered since") {
					t.Errorf("health: %v", h)
				}
				// All else goes on.
				l.set("x", domain("x", running))
				synctest.Wait()
				if inv := c.Inventory(false); names(inv) != "xRUNNING" {
					t.Errorf("libvirt's news wait for ZFS: %v", inv)
				}
				time.Sleep(10 * time.Minute)
				if again := told(c); again != nil {
					t.Errorf("told again: %v", again)
				}
				if stubborn && p.asked != 1 {
					t.Errorf("%d looks pile up", p.asked)
				}
				if n := strings.Count(log.String(), "ZFS does not answer"); n != 1 {
					t.Errorf("logged %d times", n)
				}
				p.set(func(p *pools) { p.hang = nil })
				close(hang)
				time.Sleep(2 * zfsEvery)
				if after := told(c); !proto.Equal(after, before) {
					t.Errorf("once it answers: %v, before %v", after, before)
				}
			})
		})
	}
}

func TestZFSThatFailsFromTheBeginning(t *testing.T) {
	p := &pools{err: errors.New("the module is another version")}
	withZFS(t, p, func(t *testing.T, c *Collector, _ *libvirtd, _ *bytes.Buffer) {
		if got := told(c); !strings.HasSuffix(got.GetError(), "Z: the module is another version") || len(got.GetPools()) != 0 {
			t.Errorf("told %v", got)
		}
	})
}

func TestAHostWithoutZFS(t *testing.T) {
	for name, p := range map[string]*pools{"no module": {}, "no commands": {absent: true}} {
		dir := root(t)
		if name == "no commands" {
			if err := os.MkdirAll(dir+"/sys/module/zfs", 0o755); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Test(t, func(t *testing.T) {
			log := &bytes.Buffer{}
			c := New(Config{Node: "n", Hypervisor: &libvirtd{}, ZFS: p, Root: dir, Log: hclog.New(&hclog.LoggerOptions{Output: log})})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- c.Run(ctx) }()
			time.Sleep(time.Hour)
			if inv := c.Inventory(true); inv.GetZfs() != nil || inv.GetZfsFollows() || told(c) != nil || p.asked != 0 || strings.Contains(log.String(), "ZFS") {
				t.Errorf("%s: %v; asked %d times; logged %s", name, inv, p.asked, log)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestZFSFitsOneMessage measures the most that is told: 5,000 datasets with
// usual names, and as many with the longest.
func TestZFSFitsOneMessage(t *testing.T) {
	for name, length := range map[string]int{"usual": 30, "longest": 255} {
		p := &pools{health: "ONLINE"}
		for i := range 6000 {
			p.datasets = append(p.datasets, zfs.Dataset{
				Name: fmt.Sprintf("tank/%0*d", length-5, i), GUID: 1<<64 - 1, CreateTXG: 1 << 30, Creation: time.Now(), Volume: true,
				Used: 1 << 40, Available: 1 << 42, Referenced: 1 << 39, Written: 1 << 30, VolumeSize: 1 << 40,
			})
		}
		withZFS(t, p, func(t *testing.T, c *Collector, _ *libvirtd, _ *bytes.Buffer) {
			inv := told(c)
			size := proto.Size(&agentv1.Inventory{Zfs: inv})
			t.Logf("%s names: %d datasets, %d bytes", name, len(inv.GetDatasets()), size)
			if !inv.GetTruncated() || size > 768<<10 || length == 30 && len(inv.GetDatasets()) != maxDatasets {
				t.Errorf("%s names: %d datasets, truncated %v, %d bytes", name, len(inv.GetDatasets()), inv.GetTruncated(), size)
			}
		})
	}
}
