package migration

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// defaultLibvirtSocket is where Debian's libvirtd listens.
const defaultLibvirtSocket = "/run/libvirt/libvirt-sock"

// Config is what migrations are made with.
type Config struct {
	Node, Cluster string
	// BootID is the kernel's, as in worker.Config.
	BootID     string
	Hypervisor *hypervisor.Hypervisor
	ZFS        *zfs.ZFS
	// Images is the host's Ceph; nil: it has none.
	Images  Images
	Tunnels *tunnel.Tunnels
	// Certificates are the agent's, Files where a tunnel's child finds them.
	Certificates *certs.Reloader
	Files        certs.Files
	// TunnelHost is where tunnels listen and what sources are told; each takes
	// the first free port from FirstPort to LastPort.
	TunnelHost          string
	FirstPort, LastPort int
	// LibvirtSocket is libvirtd's; empty: Debian's.
	LibvirtSocket string
	Log           hclog.Logger
}

// Migration holds what the two kinds and the peer service share. It is safe for
// concurrent use.
type Migration struct {
	cfg   Config
	sides *sides
	peers *peers

	leaving leaving

	mu       sync.Mutex
	watchers map[chan struct{}]string // by a domain's UUID
	upsets   int                      // how often libvirtd went or came
}

// New makes a Migration.
func New(cfg Config) *Migration {
	if cfg.LibvirtSocket == "" {
		cfg.LibvirtSocket = defaultLibvirtSocket
	}
	m := &Migration{
		cfg: cfg, sides: newSides(time.Now), peers: newPeers(cfg.Certificates, cfg.Cluster),
		watchers: map[chan struct{}]string{}, leaving: leaving{bells: map[chan struct{}]struct{}{}},
	}
	cfg.Hypervisor.Subscribe(m.changed)
	return m
}

// Kinds are migrate-send and migrate-receive.
func (m *Migration) Kinds() []worker.Kind { return []worker.Kind{sendKind{m}, receiveKind{m}} }

// Sweep removes what former tunnels left that belong to none of these tasks.
func (m *Migration) Sweep(open []*agentv1.TaskReport) error {
	return m.cfg.Tunnels.Sweep(func(taskID string) bool {
		return slices.ContainsFunc(open, func(r *agentv1.TaskReport) bool { return r.GetTaskId() == taskID })
	})
}

// Close closes the connections to other agents.
func (m *Migration) Close() error { return m.peers.close() }

// changed rings for everyone who watches that domain; "" for all.
func (m *Migration) changed(uuid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if uuid == "" {
		m.upsets++
	}
	for bell, watched := range m.watchers {
		if uuid == "" || uuid == watched {
			ring(bell)
		}
	}
}

// watch gives a channel that is sent to when the domain may have changed.
func (m *Migration) watch(uuid string) (bell chan struct{}, stop func()) {
	bell = make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers[bell] = uuid
	return bell, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, bell)
	}
}

// upset counts libvirtd's goings and comings.
func (m *Migration) upset() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.upsets
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
