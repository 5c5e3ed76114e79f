package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const running = debvisorv1.VMState_VM_STATE_RUNNING

// libvirtd stands for a libvirtd: up, down or hung.
type libvirtd struct {
	mu      sync.Mutex
	domains map[string]*agentv1.Domain
	down    error
	hung    bool
	asked   int
	rate    uint64 // of every guest's dirtying
	writes  uint64 // by every guest so far
	rated   []string
	cpu     string // every description's XML
	hash    string // of the host's CPU
	tell    func(string)
}

func (l *libvirtd) CPU(hash string) (*agentv1.CPUDescription, bool) {
	return &agentv1.CPUDescription{Hash: hash, Xml: l.cpu}, true
}

// Definition is of as many bytes as the domain has memory.
func (l *libvirtd) Definition(uuid string) (*agentv1.DomainDefinition, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := l.domains[uuid]
	return &agentv1.DomainDefinition{Uuid: uuid, Hash: d.GetDefinitionHash(), Xml: strings.Repeat("x", int(d.GetMemoryBytes()))}, d.GetDefinitionHash() != ""
}

// Written counts on with each question.
func (l *libvirtd) Written(context.Context, string) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes += 1 << 20
	return l.writes, nil
}

func (l *libvirtd) DirtyRate(_ context.Context, uuid string) (uint64, error) {
	time.Sleep(time.Second) // in a bubble
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rated = append(l.rated, uuid)
	return l.rate, nil
}

// measured are the guests whose dirty rates were asked for, in order of name.
func (l *libvirtd) measured() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(slices.Sorted(slices.Values(l.rated)), "")
}

func (l *libvirtd) answer(ctx context.Context) error {
	l.mu.Lock()
	l.asked++
	down, hung := l.down, l.hung
	l.mu.Unlock()
	if hung {
		<-ctx.Done()
		return ctx.Err()
	}
	return down
}

func (l *libvirtd) Domains(ctx context.Context) ([]*agentv1.Domain, error) {
	if err := l.answer(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.domains)), nil
}

func (l *libvirtd) Domain(ctx context.Context, uuid string) (*agentv1.Domain, error) {
	if err := l.answer(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.domains[uuid], nil
}

func (l *libvirtd) Capabilities(ctx context.Context) (*debvisorv1.NodeCapabilities, error) {
	l.mu.Lock()
	hash := l.hash
	l.mu.Unlock()
	return &debvisorv1.NodeCapabilities{Arch: "x86_64", CpuHash: hash}, l.answer(ctx)
}

func (l *libvirtd) Subscribe(changed func(string)) {
	l.tell = changed
	changed("") // it is connected
}

func (l *libvirtd) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hung {
		return errors.New("1 calls to libvirtd hang")
	}
	return l.down
}

// set changes the domain and says so, as an event does; nil: it is gone.
func (l *libvirtd) set(uuid string, d *agentv1.Domain) {
	l.mu.Lock()
	if d == nil {
		delete(l.domains, uuid)
	} else {
		l.domains[uuid] = d
	}
	l.mu.Unlock()
	l.tell(uuid)
}

func (l *libvirtd) become(down error, hung bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down, l.hung = down, hung
}

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
