package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	defaultURI     = "qemu:///system"
	defaultTimeout = 5 * time.Second
	reconnectAfter = 500 * time.Millisecond
	// maxCondemned is how many connections with hanging calls may be left
	// behind before no new one is opened: it bounds the threads lost in C.
	maxCondemned = 3
)

// Config says which libvirtd.
type Config struct {
	// URI is libvirt's; empty: qemu:///system.
	URI string
	// CallTimeout ends a call that has no earlier deadline; 0: 5 s.
	CallTimeout time.Duration
	Log         hclog.Logger
}

// Hypervisor is the host's libvirtd. It is safe for concurrent use.
type Hypervisor struct {
	cfg Config

	mu          sync.Mutex
	link        *link
	down        error // why there is no link
	condemned   []*link
	subscribers []func(uuid string)
	up          chan struct{} // closed when a link is made

	owner atomic.Pointer[owner] // as last told; nil: not yet
	host  atomic.Pointer[host]  // as last told; nil: not yet
	cpus  cpus

	definitions definitions

	learning atomic.Bool // the CPUs that the host provides are being asked for
}

// New makes a Hypervisor; Run connects it.
func New(cfg Config) *Hypervisor {
	if cfg.URI == "" {
		cfg.URI = defaultURI
	}
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = defaultTimeout
	}
	return &Hypervisor{cfg: cfg, down: errors.New("not connected yet"), up: make(chan struct{})}
}

// Subscribe has changed called with a domain's UUID at each of its lifecycle
// events, and with "" when anything may have changed (a new connection). It
// must return at once. A subscription cannot be taken back.
func (h *Hypervisor) Subscribe(changed func(uuid string)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subscribers = append(h.subscribers, changed)
}

func (h *Hypervisor) tell(uuid string) {
	h.mu.Lock()
	told := h.subscribers
	h.mu.Unlock()
	for _, changed := range told {
		changed(uuid)
	}
}

// Healthy tells, without waiting, why libvirt does not answer.
func (h *Hypervisor) Healthy() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.link == nil:
		return unavailable(h.down)
	case h.link.hanging() > 0:
		return unavailable(fmt.Errorf("%d calls to libvirtd hang", h.link.hanging()))
	default:
		return nil
	}
}

// Ready waits until there is a connection, or ctx ends.
func (h *Hypervisor) Ready(ctx context.Context) error {
	h.mu.Lock()
	up, down := h.up, h.down
	h.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return unavailable(down)
	}
}

// Run keeps a connection until ctx ends; it then returns nil.
func (h *Hypervisor) Run(ctx context.Context) error {
	if err := loop(); err != nil {
		return err
	}
	for ctx.Err() == nil {
		l, err := h.connect(ctx)
		if err != nil {
			h.setDown(err)
			wait(ctx, reconnectAfter)
			continue
		}
		h.setUp(l)
		h.tell("")
		select {
		case <-l.lost:
			h.cfg.Log.Warn("connection to libvirt lost", "reason", l.why)
			h.setDown(l.why)
			h.condemn(l)
			h.tell("")
		case <-ctx.Done():
			h.setDown(ctx.Err())
			l.retire()
		}
	}
	return nil
}

// connect opens a connection. While libvirtd hangs it waits with it: one
// thread, and no second one until the first has come back.
func (h *Hypervisor) connect(ctx context.Context) (*link, error) {
	if n := h.stillHanging(); n > maxCondemned {
		return nil, fmt.Errorf("%d former connections to libvirtd still hang", n)
	}
	type result struct {
		l   *link
		err error
	}
	done := make(chan result, 1)
	go func() {
		l, err := open(h.cfg.URI, h.tell)
		done <- result{l, err}
	}()
	late := time.NewTimer(h.cfg.CallTimeout)
	defer late.Stop()
	for {
		select {
		case r := <-done:
			return r.l, r.err
		case <-late.C:
			h.setDown(errors.New("libvirtd takes connections but does not answer"))
		case <-ctx.Done():
			go func() {
				if r := <-done; r.l != nil {
					r.l.retire()
				}
			}()
			return nil, ctx.Err()
		}
	}
}

func (h *Hypervisor) setUp(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.link, h.down = l, nil
	if known := h.host.Load(); known != nil { // another libvirtd may say otherwise
		h.host.Store(&host{caps: known.caps, cpus: known.cpus})
	}
	close(h.up)
}

func (h *Hypervisor) setDown(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.link != nil {
		h.up = make(chan struct{})
	}
	h.link, h.down = nil, why
}

func (h *Hypervisor) condemn(l *link) {
	l.retire()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.condemned = append(h.condemned, l)
}

// stillHanging counts the left connections whose calls have not returned.
func (h *Hypervisor) stillHanging() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.condemned[:0]
	for _, l := range h.condemned {
		if l.hanging() > 0 {
			kept = append(kept, l)
		}
	}
	h.condemned = kept
	return len(kept)
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func unavailable(cause error) error {
	return errdefs.New(errdefs.Unavailable, "LIBVIRT_UNAVAILABLE", "libvirt does not answer").WithCause(cause)
}
