package inventory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// cephCluster stands for the host's Ceph: there or not, well, sick or silent.
type cephCluster struct {
	mu    sync.Mutex
	known *agentv1.CephInventory // nil: the host has no Ceph
	err   error
	hangs bool
	asked int
}

func (c *cephCluster) set(change func(*cephCluster)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *cephCluster) Present() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known != nil
}

func (c *cephCluster) Inventory(ctx context.Context) (*agentv1.CephInventory, error) {
	c.mu.Lock()
	c.asked++
	known, err, hangs := proto.CloneOf(c.known), c.err, c.hangs
	c.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return known, err
}

// healthy is a cluster with those pools.
func healthy(pools ...string) *agentv1.CephInventory {
	inv := &agentv1.CephInventory{Fsid: "f", Health: "HEALTH_OK", Version: "16.2.15", Entity: "client.debvisor"}
	for i, name := range pools {
		inv.Pools = append(inv.Pools, &agentv1.CephPool{Name: name, Id: int64(i + 1), Rbd: true, FreeBytes: 1 << 40})
	}
	return inv
}

// withCeph runs a test on a host with (or without) Ceph, in a bubble of time.
func withCeph(t *testing.T, ceph *cephCluster, test func(t *testing.T, c *Collector, log *bytes.Buffer)) {
	t.Helper()
	dir := root(t)
	synctest.Test(t, func(t *testing.T) {
		log := &bytes.Buffer{}
		c := New(Config{Node: "n", Hypervisor: &libvirtd{}, Ceph: ceph, Root: dir, Log: hclog.New(&hclog.LoggerOptions{Output: log})})
		if h := c.Health(0); ceph.known != nil && h.GetCephStatus() != cephUnknown {
			t.Errorf("before it was asked: %v", h)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		test(t, c, log)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// toldOfCeph takes all news and gives the last of Ceph; nil: there were none.
func toldOfCeph(c *Collector) (last *agentv1.CephInventory) {
	for {
		inv := c.Inventory(false)
		if inv == nil {
			return last
		}
		if inv.GetCeph() != nil {
			last = inv.GetCeph()
		}
	}
}

func TestCephIsToldWhenItChanges(t *testing.T) {
	ceph := &cephCluster{known: healthy("rbd")}
	withCeph(t, ceph, func(t *testing.T, c *Collector, log *bytes.Buffer) {
		synctest.Wait()
		inv := c.Inventory(true)
		if inv.GetCeph() != nil || !inv.GetCephFollows() {
			t.Errorf("the first of a session holds %v, follows %v: want it in a message of its own", inv.GetCeph(), inv.GetCephFollows())
		}
		<-c.Changed()
		if first := c.Inventory(false); !proto.Equal(first, &agentv1.Inventory{Ceph: healthy("rbd")}) {
			t.Errorf("told %v", first)
		}
		time.Sleep(5 * time.Minute)
		if again := toldOfCeph(c); again != nil {
			t.Errorf("told again: %v", again)
		}
		if h := c.Health(0); h.GetCephStatus() != "HEALTH_OK" || h.GetOverall() != debvisorv1.StatusCode_STATUS_OK {
			t.Errorf("health: %v", h)
		}
		for word, code := range map[string]debvisorv1.StatusCode{"HEALTH_WARN": debvisorv1.StatusCode_STATUS_WARN, "HEALTH_ERR": debvisorv1.StatusCode_STATUS_ERROR} {
			ceph.set(func(ceph *cephCluster) { ceph.known.Health = word })
			time.Sleep(cephEvery)
			synctest.Wait()
			if after := toldOfCeph(c); after.GetHealth() != word {
				t.Errorf("after a while: %v", after)
			}
			if h := c.Health(0); h.GetCephStatus() != word || h.GetOverall() != code || !strings.Contains(strings.Join(h.GetProblems(), ""), "ceph says "+word) {
				t.Errorf("health: %v", h)
			}
		}
		ceph.set(func(ceph *cephCluster) { ceph.known = nil })
		time.Sleep(cephEvery)
		synctest.Wait()
		if inv := c.Inventory(false); !inv.GetComplete() || inv.GetCeph() != nil || inv.GetCephFollows() {
			t.Errorf("without Ceph any more: %v", inv)
		}
		if h := c.Health(0); h.GetCephStatus() != "none" {
			t.Errorf("health: %v", h)
		}
		if strings.Contains(log.String(), "Ceph") {
			t.Errorf("logged: %s", log)
		}
	})
}

func TestCephThatIsSilent(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs=%v", hangs), func(t *testing.T) {
			ceph := &cephCluster{known: healthy("rbd", "vms")}
			withCeph(t, ceph, func(t *testing.T, c *Collector, log *bytes.Buffer) {
				synctest.Wait()
				before := toldOfCeph(c)
				ceph.set(func(c *cephCluster) { c.err, c.hangs = errors.New("-110"), hangs })
				time.Sleep(time.Minute)
				synctest.Wait()
				since := toldOfCeph(c)
				if len(since.GetPools()) != 2 || since.GetFsid() != "f" || !strings.HasPrefix(since.GetError(), "Ceph has not answered since 2000-01-01T00:00:") {
					t.Errorf("told %v", since)
				}
				if h := c.Health(0); h.GetOverall() != debvisorv1.StatusCode_STATUS_ERROR || h.GetCephStatus() != cephUnknown ||
					!strings.Contains(strings.Join(h.GetProblems(), ""), since.GetError()) {
					t.Errorf("health: %v", h)
				}
				time.Sleep(10 * time.Minute)
				if again := toldOfCeph(c); again != nil {
					t.Errorf("told again: %v", again)
				}
				if n := strings.Count(log.String(), "Ceph does not answer"); n != 1 {
					t.Errorf("logged %d times", n)
				}
				ceph.set(func(c *cephCluster) { c.err, c.hangs = nil, false })
				time.Sleep(cephTimeout + 2*cephEvery)
				synctest.Wait()
				if after := toldOfCeph(c); !proto.Equal(after, before) {
					t.Errorf("once it answers: %v, before %v", after, before)
				}
			})
		})
	}
}

func TestAHostWithoutCeph(t *testing.T) {
	ceph := &cephCluster{}
	withCeph(t, ceph, func(t *testing.T, c *Collector, log *bytes.Buffer) {
		time.Sleep(time.Hour)
		if inv := c.Inventory(true); inv.GetCeph() != nil || inv.GetCephFollows() || toldOfCeph(c) != nil || ceph.asked != 0 ||
			c.Health(0).GetCephStatus() != "none" || strings.Contains(log.String(), "Ceph") {
			t.Errorf("%v; asked %d times; logged %s", inv, ceph.asked, log)
		}
	})
}

// TestZFSAndCephComeOneAfterTheOther: neither is lost, and each has a message of
// its own.
func TestZFSAndCephComeOneAfterTheOther(t *testing.T) {
	withZFS(t, &pools{health: "ONLINE"}, func(t *testing.T, c *Collector, _ *libvirtd, _ *bytes.Buffer) {
		c.noteCeph(healthy("rbd"), nil)
		for _, complete := range []bool{false, true} {
			var told []string
			for inv := c.Inventory(complete); inv != nil; inv = c.Inventory(false) {
				told = append(told, fmt.Sprintf("complete=%v zfs=%v ceph=%v", inv.GetComplete(), inv.GetZfs() != nil, inv.GetCeph() != nil))
			}
			want := []string{"zfs=true ceph=false", "zfs=false ceph=true"}
			if len(told) < 2 || !strings.HasSuffix(told[len(told)-2], want[0]) || !strings.HasSuffix(told[len(told)-1], want[1]) {
				t.Errorf("complete=%v: %q", complete, told)
			}
		}
	})
}
