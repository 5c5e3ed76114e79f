package inventory

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/storage"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Hypervisor is what is asked of libvirt. Its calls end with their context.
type Hypervisor interface {
	// Domains lists all domains, Domain looks at one (nil: there is none).
	Domains(ctx context.Context) ([]*agentv1.Domain, error)
	Domain(ctx context.Context, uuid string) (*agentv1.Domain, error)
	Capabilities(ctx context.Context) (*debvisorv1.NodeCapabilities, error)
	// CPU is the description that a domain just told of refers to.
	CPU(hash string) (*agentv1.CPUDescription, bool)
	// Definition is the persistent definition of a domain just told of.
	Definition(uuid string) (*agentv1.DomainDefinition, bool)
	// DirtyRate measures a running domain's, bytes a second; 0: it cannot be.
	DirtyRate(ctx context.Context, uuid string) (uint64, error)
	Written(ctx context.Context, uuid string) (uint64, error)
	// Subscribe has every change of a domain told, with "" for: anything may
	// have changed, such as after connecting. It is called once; what it is
	// given returns at once.
	Subscribe(changed func(uuid string))
	// Healthy tells, without waiting, why libvirt does not answer.
	Healthy() error
}

const (
	lookTimeout   = 10 * time.Second
	resyncEvery   = 5 * time.Minute
	checkEvery    = 2 * time.Second
	capacityEvery = 10 * time.Second
	arrivalEvery  = 500 * time.Millisecond
	filesEvery    = time.Minute
	// halfKnownFor is less than a resync, which tells what is known.
	halfKnownFor = time.Minute
)

// Config is what a collector is made of.
type Config struct {
	Node       string
	Hypervisor Hypervisor
	// Shared are the directories declared to be seen by other nodes too.
	Shared []storage.SharedDir
	// PeerAddress is where migrations come in, host:port.
	PeerAddress string
	// DirtyRateEvery is how often each running guest's dirty rate is measured;
	// 0: never.
	DirtyRateEvery time.Duration
	// Busy tells whether the host has better to do than to measure; nil: never.
	Busy func() bool
	// ZFS is asked what there is of ZFS; nil: nobody is.
	ZFS ZFS
	// Ceph is asked how the host's Ceph cluster is; nil: nobody is.
	Ceph Ceph
	// Root is where /proc, /sys and /etc are found; empty: "/".
	Root string
	Log  hclog.Logger
}

// Collector keeps what is known of the host. It is safe for concurrent use.
type Collector struct {
	cfg     Config
	host    host
	storage *sampler[disks]
	places  *storage.Storage
	mounted *sampler[error] // why the file systems could not be listed
	files   *sampler[struct{}]
	looks   *sampler[struct{}] // at ZFS
	asks    *sampler[struct{}] // of Ceph
	pending pending
	changed chan struct{}
	born    time.Time

	mu           sync.Mutex
	seen         map[string]*agentv1.Domain           // when libvirt last answered
	down         error                                // why libvirt does not answer; nil: it does
	cpus         map[string]*agentv1.CPUDescription   // that seen refers to
	told         map[string]bool                      // of cpus, since the last complete inventory
	definitions  map[string]*agentv1.DomainDefinition // of seen, by UUID
	capabilities *debvisorv1.NodeCapabilities
	capacity     *debvisorv1.NodeCapacity
	zfs          zfsKnown
	ceph         cephKnown
	news         news
}

// New makes a collector; it knows nothing of VMs before Run has looked.
func New(cfg Config) *Collector {
	c := &Collector{
		cfg: cfg, host: host{root: cfg.Root}, changed: make(chan struct{}, 1), born: time.Now(),
		pending: newPending(), seen: map[string]*agentv1.Domain{}, down: errNotAsked,
		cpus: map[string]*agentv1.CPUDescription{}, told: map[string]bool{}, definitions: map[string]*agentv1.DomainDefinition{},
	}
	c.storage = newSampler(5*time.Second, c.sampleDisks)
	c.places = storage.New(storage.Config{Node: cfg.Node, Shared: cfg.Shared, Root: cfg.Root})
	c.mounted = newSampler(capacityEvery, c.samplePlaces)
	c.files = newSampler(filesEvery, c.sampleFiles)
	c.looks = newSampler(zfsEvery, c.lookAtZFS)
	c.asks = newSampler(cephEvery, c.lookAtCeph)
	c.zfs.host, c.ceph.host = c.hasZFS(), c.hasCeph() // known without asking
	c.updateCapacity()
	return c
}

// Run keeps the knowledge current until ctx ends; it then returns nil.
func (c *Collector) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { c.storage.run(ctx) })
	group.Go(func() { c.mounted.run(ctx) })
	group.Go(func() { c.files.run(ctx) })
	group.Go(func() { c.looks.run(ctx) })
	group.Go(func() { c.asks.run(ctx) })
	group.Go(func() { c.measureDirt(ctx) })
	c.cfg.Hypervisor.Subscribe(c.pending.add)
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	capacity := time.NewTicker(capacityEvery)
	defer capacity.Stop()
	// Not an event but time ends an arrival: libvirt's last event of one comes
	// a moment before its job is over.
	arriving := time.NewTimer(arrivalEvery)
	defer arriving.Stop()
	for {
		if len(c.arriving()) == 0 {
			arriving.Stop()
		} else {
			arriving.Reset(arrivalEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.pending.bell:
			c.look(ctx, c.pending.take())
		case <-arriving.C:
			c.look(ctx, c.arriving())
		case <-resync.C:
			c.look(ctx, []string{""})
		case <-capacity.C:
			c.updateCapacity()
		case <-check.C:
			c.checkZFS()
			c.check(ctx)
		}
	}
}

// check notices that libvirt stopped answering, and looks again while it is
// taken for down.
func (c *Collector) check(ctx context.Context) {
	if err := c.cfg.Hypervisor.Healthy(); err != nil {
		c.setDown(err)
		return
	}
	if c.isDown() != nil {
		c.look(ctx, []string{""})
	}
}

// look asks libvirt about those domains; "" asks about everything.
func (c *Collector) look(ctx context.Context, uuids []string) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	everything := c.isDown() != nil
	for _, uuid := range uuids {
		everything = everything || uuid == ""
	}
	if everything {
		c.lookAtAll(ctx)
		return
	}
	for _, uuid := range uuids {
		d, err := c.cfg.Hypervisor.Domain(ctx, uuid)
		if err != nil {
			c.setDown(err)
			return
		}
		c.place(d)
		c.note(uuid, d)
	}
	c.updateCapacity()
}

func (c *Collector) lookAtAll(ctx context.Context) {
	// First the host: what a guest needs of a CPU is told in its terms.
	capabilities, err := c.cfg.Hypervisor.Capabilities(ctx)
	if err != nil {
		c.setDown(err)
		return
	}
	c.addLinks(capabilities)
	domains, err := c.cfg.Hypervisor.Domains(ctx)
	if err != nil {
		c.setDown(err)
		return
	}
	c.place(domains...)
	c.noteAll(domains, capabilities)
	c.updateCapacity()
}

// note takes what is known of one domain; nil: it is gone.
func (c *Collector) note(uuid string, d *agentv1.Domain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, had := c.seen[uuid]
	steady(was, d)
	switch {
	case d == nil && had:
		delete(c.seen, uuid)
		c.forgetDefinition(uuid)
		c.news.goneNow(uuid)
	case d != nil && (!had || !proto.Equal(was, d)):
		c.seen[uuid] = d
		c.noteCPU(d.GetCpuHash())
		c.noteDefinition(d)
		c.news.changedNow(uuid)
	default:
		return
	}
	c.ring()
}

// noteCPU keeps the description that a domain refers to; callers hold mu.
func (c *Collector) noteCPU(hash string) {
	if hash == "" || c.cpus[hash] != nil {
		return
	}
	if d, ok := c.cfg.Hypervisor.CPU(hash); ok {
		c.cpus[hash] = d
	}
}

// halfKnown tells whether libvirt has still to say what CPUs the host provides,
// shortly after the start: what the leader knows of the host is better.
func (c *Collector) halfKnown(k *debvisorv1.NodeCapabilities) bool {
	return k.GetCpuHash() == "" && c.capabilities == nil && time.Since(c.born) < halfKnownFor
}

// forgetCPUs forgets what no domain refers to any more; callers hold mu.
func (c *Collector) forgetCPUs() {
	used := map[string]bool{}
	for _, d := range c.seen {
		used[d.GetCpuHash()] = true
	}
	for hash := range c.cpus {
		if !used[hash] {
			delete(c.cpus, hash)
			delete(c.told, hash)
		}
	}
}

func (c *Collector) noteAll(domains []*agentv1.Domain, capabilities *debvisorv1.NodeCapabilities) {
	now := map[string]*agentv1.Domain{}
	for _, d := range domains {
		now[d.GetUuid()] = d
	}
	for _, uuid := range c.known() {
		if now[uuid] == nil {
			c.note(uuid, nil)
		}
	}
	for uuid, d := range now {
		c.note(uuid, d)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetCPUs()
	if !c.halfKnown(capabilities) && !proto.Equal(capabilities, c.capabilities) {
		c.capabilities, c.news.capabilities = capabilities, true
		c.ring()
	}
	if c.down != nil {
		c.cfg.Log.Info("libvirt answers", "domains", len(domains))
		c.down, c.news.complete = nil, true
		c.ring()
	}
}

func (c *Collector) known() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	uuids := make([]string, 0, len(c.seen))
	for uuid := range c.seen {
		uuids = append(uuids, uuid)
	}
	return uuids
}

// arriving are the domains that are being received.
func (c *Collector) arriving() (uuids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uuid, d := range c.seen {
		if d.GetState() == debvisorv1.VMState_VM_STATE_INCOMING {
			uuids = append(uuids, uuid)
		}
	}
	return uuids
}

func (c *Collector) isDown() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

func (c *Collector) setDown(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down == nil || errors.Is(c.down, errNotAsked) {
		c.cfg.Log.Error("libvirt does not answer", "error", err)
	}
	if c.down == nil {
		c.news.down = true
		c.ring()
	}
	c.down = err
}

// ring says that Inventory has news; callers hold mu.
func (c *Collector) ring() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Changed is sent to when Inventory(false) has something to tell.
func (c *Collector) Changed() <-chan struct{} { return c.changed }
