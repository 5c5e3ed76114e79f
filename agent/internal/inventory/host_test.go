package inventory

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func TestAFileSystemThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Node: "n", Hypervisor: &libvirtd{}, Root: root(t), Log: hclog.NewNullLogger()})
		thaw := make(chan struct{})
		c.storage.take = func(context.Context) disks { <-thaw; return disks{fullest: 12} }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.storage.run(ctx); close(done) }()
		time.Sleep(time.Minute)
		if h := c.Health(0); h.GetOverall() != debvisorv1.StatusCode_STATUS_ERROR || !strings.Contains(strings.Join(h.GetProblems(), ""), "file system") {
			t.Errorf("health: %v", h)
		}
		thaw <- struct{}{}
		synctest.Wait()
		if h := c.Health(0); h.GetDiskUsedPct() != 12 {
			t.Errorf("once it answers: %v", h)
		}
		cancel()
		<-done
		close(thaw)
	})
}

func TestCountList(t *testing.T) {
	for list, want := range map[string]uint32{"0": 1, "0-3": 4, "0-1,4,6-7": 5} {
		if got, err := countList(list); got != want || err != nil {
			t.Errorf("%q: %d, %v", list, got, err)
		}
	}
	for _, list := range []string{"", "x", "3-1", "0-"} {
		if got, err := countList(list); err == nil {
			t.Errorf("%q: %d", list, got)
		}
	}
}

func TestDisksAndRoomAreNewsWhenTheyMove(t *testing.T) {
	image := filepath.Join(t.TempDir(), "a.raw")
	grow := func(to int64) {
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(image, os.O_WRONLY, 0)
		if err == nil {
			err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, to), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	grow(1 << 20)
	with := func() *agentv1.Domain {
		d := domain("a", running)
		d.Disks = []*debvisorv1.VMDisk{{Type: "file", Source: image, Format: "raw"}}
		return d
	}
	l := &libvirtd{domains: map[string]*agentv1.Domain{"a": with()}}
	in(t, l, func(t *testing.T, c *Collector) {
		disk := c.Inventory(true).GetDomains()[0].GetDisks()[0]
		if disk.GetAllocatedBytes() < 1<<20 || disk.GetCapacityBytes() != 1<<20 || !strings.HasPrefix(disk.GetStorageId(), "local:n:") {
			t.Fatalf("at first: %v", disk)
		}
		grow(64 << 20)
		l.set("a", with())
		synctest.Wait()
		inv := c.Inventory(false)
		if len(inv.GetDomains()) != 1 || inv.GetDomains()[0].GetDisks()[0].GetCapacityBytes() != 64<<20 || inv.GetDomains()[0].GetDisks()[0].GetAllocatedBytes() != disk.GetAllocatedBytes() {
			t.Errorf("a larger disk: %v", inv)
		}
		time.Sleep(2 * filesEvery)
		if inv := c.Inventory(false); inv != nil {
			t.Errorf("nothing has happened since: %v", inv)
		}
		grow(64<<20 + grownBy)
		time.Sleep(2 * filesEvery)
		synctest.Wait()
		if inv := c.Inventory(false); len(inv.GetDomains()) != 1 || inv.GetDomains()[0].GetDisks()[0].GetAllocatedBytes() < grownBy {
			t.Errorf("it has grown without an event: %v", inv)
		}
	})
}

func TestRoomThatHardlyMoves(t *testing.T) {
	at := func(room uint64) *debvisorv1.NodeCapacity {
		return &debvisorv1.NodeCapacity{FileSystems: []*debvisorv1.FileSystem{{MountPoint: "/", TotalBytes: 100 << 30, AvailableBytes: room}}}
	}
	if differs(at(50<<30), at(51<<30)) || !differs(at(50<<30), at(47<<30)) || !differs(at(1), &debvisorv1.NodeCapacity{}) {
		t.Error("a fiftieth of the whole is what counts")
	}
}

func TestLinks(t *testing.T) {
	dir := root(t)
	for file, content := range map[string]string{
		"lo/type": "772", "eno1/type": "1", "eno1/speed": "25000", "eno1/brport/x": "", "eno2/type": "1", "eno2/speed": "-1",
		"br0/type": "1", "br0/brif/eno1/x": "", "br0/brif/vnet0/x": "", "vnet0/type": "1", "vnet0/tun_flags": "x", "vnet0/speed": "90000",
		"bond0/type": "1", "bond0/speed": "20000", "eno3/type": "1", "eno3/bonding_slave/x": "", "macvtap0/type": "1",
	} {
		path := filepath.Join(dir, "sys/class/net", file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := host{root: dir}
	if got := strings.Join(h.interfaces(), " "); got != "bond0 br0 eno2" {
		t.Errorf("interfaces: %s", got)
	}
	for name, want := range map[string]uint64{"eno1": 3_125_000_000, "eno2": 0, "br0": 3_125_000_000, "bond0": 2_500_000_000, "none": 0} {
		if got := h.linkSpeed(name); got != want {
			t.Errorf("%s: %d bytes a second", name, got)
		}
	}
	if got := interfaceOf("127.0.0.1"); got != "lo" {
		t.Errorf("127.0.0.1 is held by %q", got)
	}
	for _, none := range []string{"", "192.0.2.77", "host"} {
		if got := interfaceOf(none); got != "" {
			t.Errorf("%q is held by %q", none, got)
		}
	}
}

func TestAHostThatIsHalfKnownIsLeftAsItWas(t *testing.T) {
	l := &libvirtd{domains: map[string]*agentv1.Domain{"a": domain("a", running)}}
	in(t, l, func(t *testing.T, c *Collector) {
		if inv := c.Inventory(true); inv.GetCapabilities() != nil || names(inv) != "aRUNNING" {
			t.Errorf("its CPU is not known yet: %v", inv)
		}
		l.mu.Lock()
		l.hash = "h"
		l.mu.Unlock()
		l.tell("")
		synctest.Wait()
		if inv := c.Inventory(false); inv.GetCapabilities().GetCpuHash() != "h" || len(inv.GetDomains()) != 0 {
			t.Errorf("once it is: %v", inv)
		}
	})
	l = &libvirtd{}
	in(t, l, func(t *testing.T, c *Collector) {
		time.Sleep(resyncEvery + time.Second)
		if inv := c.Inventory(true); inv.GetCapabilities().GetArch() != "x86_64" {
			t.Errorf("where it never is: %v", inv)
		}
	})
}
