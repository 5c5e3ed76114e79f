package inventory

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

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
