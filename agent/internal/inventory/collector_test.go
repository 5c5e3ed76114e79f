package inventory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const running = debvisorv1.VMState_VM_STATE_RUNNING

func domain(uuid string, state debvisorv1.VMState) *agentv1.Domain {
	return &agentv1.Domain{Uuid: uuid, Name: uuid, State: state, MemoryBytes: 1 << 30}
}

// root is a host with two CPUs, 8 GiB of which 2 are free, and a load of 3.
func root(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range map[string]string{
		"proc/meminfo":                  "MemTotal:        8388608 kB\nMemFree:          100 kB\nMemAvailable:    2097152 kB\n",
		"proc/loadavg":                  "3.00 1.00 0.50 1/234 5678\n",
		"sys/devices/system/cpu/online": "0,2\n",
		"var/lib/libvirt/x":             "",
		"proc/self/mountinfo":           "27 1 254:0 / / rw - ext4 /dev/vda rw\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// in runs a test with a collector in a bubble of time.
func in(t *testing.T, l *libvirtd, test func(t *testing.T, c *Collector)) {
	t.Helper()
	dir := root(t)
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Node: "n", Hypervisor: l, Root: dir, Log: hclog.NewNullLogger()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		test(t, c)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func names(inv *agentv1.Inventory) string {
	var words []string
	for _, d := range inv.GetDomains() {
		words = append(words, d.GetUuid()+strings.TrimPrefix(d.GetState().String(), "VM_STATE_"))
	}
	for _, uuid := range inv.GetGone() {
		words = append(words, "-"+uuid)
	}
	return strings.Join(words, " ")
}

func TestEventsAndNotPolling(t *testing.T) {
	l := &libvirtd{hash: "h", domains: map[string]*agentv1.Domain{"a": domain("a", running)}}
	in(t, l, func(t *testing.T, c *Collector) {
		inv := c.Inventory(true)
		if !inv.GetComplete() || inv.GetLibvirtDown() || names(inv) != "aRUNNING" || inv.GetCapabilities().GetArch() != "x86_64" {
			t.Fatalf("first: %v", inv)
		}
		if k := inv.GetCapacity(); k.GetCpus() != 2 || k.GetMemoryBytes() != 8<<30 || k.GetMemoryAvailableBytes() != 2<<30 || k.GetMemoryVmsBytes() != 1<<30 {
			t.Fatalf("capacity: %v", k)
		}
		if inv := c.Inventory(false); inv != nil {
			t.Fatalf("nothing happened, but: %v", inv)
		}
		asked := l.asked
		time.Sleep(4 * time.Minute)
		if l.asked != asked {
			t.Errorf("libvirt was asked %d times without an event", l.asked-asked)
		}
		drain(c)
		l.set("b", domain("b", running))
		l.set("a", nil)
		synctest.Wait()
		<-c.Changed()
		if inv := c.Inventory(false); inv.GetComplete() || names(inv) != "bRUNNING -a" {
			t.Errorf("after the events: %v", inv)
		}
		l.set("b", domain("b", running)) // an event that changed nothing
		synctest.Wait()
		if inv := c.Inventory(false); inv != nil {
			t.Errorf("the same again: %v", inv)
		}
		l.mu.Lock()
		l.domains["c"] = domain("c", running) // its event was lost
		l.mu.Unlock()
		time.Sleep(5 * time.Minute)
		if inv := c.Inventory(false); names(inv) != "cRUNNING" {
			t.Errorf("after the resync: %v", inv)
		}
	})
}

func TestAnArrivalWhoseEndHasNoEventIsSeen(t *testing.T) {
	l := &libvirtd{domains: map[string]*agentv1.Domain{}}
	in(t, l, func(t *testing.T, c *Collector) {
		c.Inventory(true)
		l.set("a", domain("a", debvisorv1.VMState_VM_STATE_INCOMING))
		synctest.Wait()
		if inv := c.Inventory(false); names(inv) != "aINCOMING" {
			t.Fatalf("while it arrives: %v", inv)
		}
		l.mu.Lock()
		l.domains["a"] = domain("a", debvisorv1.VMState_VM_STATE_PAUSED) // libvirt's job is over, and says nothing
		l.mu.Unlock()
		time.Sleep(2 * arrivalEvery)
		synctest.Wait()
		if inv := c.Inventory(false); names(inv) != "aPAUSED" {
			t.Errorf("a second later: %v", inv)
		}
		asked := l.asked
		time.Sleep(time.Minute)
		if l.asked != asked {
			t.Errorf("libvirt was asked %d times after the arrival", l.asked-asked)
		}
	})
}

func drain(c *Collector) {
	select {
	case <-c.Changed():
	default:
	}
}

func TestLibvirtThatHangsOrIsRestarted(t *testing.T) {
	l := &libvirtd{domains: map[string]*agentv1.Domain{"a": domain("a", running), "b": domain("b", running)}}
	in(t, l, func(t *testing.T, c *Collector) {
		c.Inventory(true)
		l.become(nil, true)
		l.set("a", nil) // an event, and then no answer
		began := time.Now()
		c.Health(time.Millisecond)
		if time.Since(began) != 0 {
			t.Error("Health waited for libvirt")
		}
		time.Sleep(lookTimeout + checkEvery)
		h := c.Health(0)
		if h.GetOverall() != debvisorv1.StatusCode_STATUS_ERROR || len(h.GetProblems()) != 1 || !strings.Contains(h.GetProblems()[0], "libvirt") {
			t.Errorf("health: %v", h)
		}
		if inv := c.Inventory(false); !inv.GetLibvirtDown() || len(inv.GetDomains())+len(inv.GetGone()) != 0 {
			t.Errorf("told: %v", inv)
		}
		if inv := c.Inventory(true); !inv.GetLibvirtDown() || len(inv.GetDomains()) != 0 {
			t.Errorf("a session that begins meanwhile is told: %v", inv)
		}
		l.become(errors.New("connection refused"), false)
		time.Sleep(time.Minute)
		l.become(nil, false)
		l.tell("")
		synctest.Wait()
		time.Sleep(checkEvery)
		if inv := c.Inventory(false); !inv.GetComplete() || inv.GetLibvirtDown() || names(inv) != "bRUNNING" {
			t.Errorf("once it answers again: %v", inv)
		}
		if h := c.Health(0); h.GetOverall() != debvisorv1.StatusCode_STATUS_OK || len(h.GetProblems()) != 0 {
			t.Errorf("health: %v", h)
		}
	})
}

func TestHealth(t *testing.T) {
	l := &libvirtd{domains: map[string]*agentv1.Domain{}}
	in(t, l, func(t *testing.T, c *Collector) {
		h := c.Health(1500 * time.Microsecond)
		if h.GetNodeId().GetId() != "n" || h.GetCpuLoad() != 1.5 || h.GetMemUsedPct() != 75 || h.GetNetRttMs() != 1.5 ||
			h.GetCephStatus() != "none" || h.GetTimestamp().GetSeconds() != time.Now().Unix() || h.GetOverall() != debvisorv1.StatusCode_STATUS_OK {
			t.Errorf("health: %v", h)
		}
		want, err := usedPct(c.host.path(libvirtDir))
		if err != nil || want <= 0 || want > 100 {
			t.Fatalf("used: %f, %v", want, err)
		}
		if got := h.GetDiskUsedPct(); got < want-1 || got > want+1 {
			t.Errorf("disk: %f, want %f", got, want)
		}
		if err := os.WriteFile(c.host.path("proc/meminfo"), []byte("MemTotal: 100 kB\nMemAvailable: 2 kB\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if h := c.Health(0); h.GetOverall() != debvisorv1.StatusCode_STATUS_WARN || h.GetMemUsedPct() != 98 {
			t.Errorf("memory that is full: %v", h)
		}
	})
}

func TestCPUsAreToldOnceInASession(t *testing.T) {
	with := func(uuid, hash string) *agentv1.Domain {
		d := domain(uuid, running)
		d.CpuHash = hash
		return d
	}
	cpus := func(inv *agentv1.Inventory) string {
		var words []string
		for _, c := range inv.GetCpus() {
			words = append(words, c.GetHash())
		}
		return strings.Join(words, " ")
	}
	l := &libvirtd{domains: map[string]*agentv1.Domain{"a": with("a", "x"), "b": with("b", "x"), "c": domain("c", running)}}
	in(t, l, func(t *testing.T, c *Collector) {
		if got := cpus(c.Inventory(true)); got != "x" {
			t.Errorf("at first: %q", got)
		}
		l.set("d", with("d", "x"))
		l.set("e", with("e", "y"))
		synctest.Wait()
		if got := cpus(c.Inventory(false)); got != "y" {
			t.Errorf("what is new: %q", got)
		}
		if got := cpus(c.Inventory(true)); got != "x y" {
			t.Errorf("another session: %q", got)
		}
		l.set("e", nil)
		time.Sleep(resyncEvery + time.Second) // y is forgotten
		c.Inventory(false)
		l.set("f", with("f", "y"))
		synctest.Wait()
		if got := cpus(c.Inventory(false)); got != "y" {
			t.Errorf("what was forgotten and is back: %q", got)
		}
	})
}

func TestDirtyRatesInTurn(t *testing.T) {
	l := &libvirtd{rate: 100 << 20, hash: "h", domains: map[string]*agentv1.Domain{
		"a": domain("a", running), "b": domain("b", running), "c": domain("c", debvisorv1.VMState_VM_STATE_SHUTOFF),
	}}
	dir, busy := root(t), atomic.Bool{}
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Node: "n", Hypervisor: l, Root: dir, DirtyRateEvery: 5 * time.Minute, Busy: busy.Load, Log: hclog.NewNullLogger()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		busy.Store(true)
		time.Sleep(time.Minute)
		if got := l.measured(); got != "" {
			t.Errorf("measured while something moves: %s", got)
		}
		c.Inventory(true)
		busy.Store(false)
		time.Sleep(2*dirtyTick + 2*time.Second) // each takes a second
		if got := l.measured(); got != "ab" {
			t.Errorf("measured: %s", got)
		}
		for _, d := range c.Inventory(false).GetDomains() {
			if d.GetDirtyBytesPerSecond() != 100<<20 || d.GetWrittenBytesPerSecond() != 1<<20 {
				t.Errorf("told: %v", d)
			}
		}
		l.mu.Lock()
		l.rate = 110 << 20
		l.mu.Unlock()
		l.set("a", domain("a", running)) // libvirt knows nothing of rates
		time.Sleep(6 * time.Minute)
		if inv := c.Inventory(false); inv != nil || l.measured() != "aabb" {
			t.Errorf("it has hardly moved: %v, measured %s", inv, l.measured())
		}
		l.mu.Lock()
		l.rate = 200 << 20
		l.mu.Unlock()
		time.Sleep(6 * time.Minute)
		if inv := c.Inventory(false); len(inv.GetDomains()) != 2 || inv.GetDomains()[0].GetDirtyBytesPerSecond() != 200<<20 {
			t.Errorf("it has moved: %v", inv)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestACompleteInventoryFitsOneMessage measures one of 500 VMs with long names
// and ten kinds of CPU.
func TestACompleteInventoryFitsOneMessage(t *testing.T) {
	l := &libvirtd{domains: map[string]*agentv1.Domain{}, cpu: "<cpu>" + strings.Repeat("<feature policy='require' name='avx512vnni'></feature>", 80) + "</cpu>"}
	for i := range 500 {
		uuid := fmt.Sprintf("44444444-0000-0000-0000-%012d", i)
		d := domain(uuid, running)
		d.Name, d.MachineType, d.VirtType, d.Arch = strings.Repeat("n", 40), "pc-q35-7.2", "kvm", "x86_64"
		d.CpuHash, d.DirtyBytesPerSecond = fmt.Sprintf("%064d", i%10), 1<<30
		for j := range 3 {
			path := fmt.Sprintf("/var/lib/libvirt/images/%s/%s-%d.qcow2", uuid, d.GetName(), j)
			d.Disks = append(d.Disks, &debvisorv1.VMDisk{
				Target: "vda", Type: "network", Source: path, Format: "qcow2", Cache: "none", CapacityBytes: 1 << 40, AllocatedBytes: 1 << 39, Device: "disk",
				StorageId: "nfs4:nas.example.org:/export/virtual-machines", Shared: true, BackingFile: path, Inode: 1 << 40,
			})
		}
		d.Interfaces = []*debvisorv1.VMInterface{{Type: "bridge", Source: "br-tenant-0042", Mac: "52:54:00:00:00:01"}, {Type: "network", Source: "default", Mac: "52:54:00:00:00:02"}}
		l.domains[uuid] = d
	}
	in(t, l, func(t *testing.T, c *Collector) {
		inv := c.Inventory(true)
		size := proto.Size(inv)
		t.Logf("%d VMs, %d CPUs: %d bytes", len(inv.GetDomains()), len(inv.GetCpus()), size)
		if len(inv.GetDomains()) != 500 || len(inv.GetCpus()) != 10 || size > 768<<10 {
			t.Errorf("%d bytes", size)
		}
	})
}
