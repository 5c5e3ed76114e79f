package power

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// Config is what orders are carried out with.
type Config struct {
	Hypervisor *hypervisor.Hypervisor
	// BootID is the kernel's: QEMUs are numbered anew after each boot.
	BootID string
	Log    hclog.Logger
}

// Power holds what the kinds share. It is safe for concurrent use.
type Power struct {
	cfg Config

	mu       sync.Mutex
	watchers map[chan struct{}]string // by a domain's UUID
}

// New makes a Power.
func New(cfg Config) *Power {
	p := &Power{cfg: cfg, watchers: map[chan struct{}]string{}}
	cfg.Hypervisor.Subscribe(p.changed)
	return p
}

// Kinds are the four kinds of orders.
func (p *Power) Kinds() []worker.Kind {
	return []worker.Kind{
		kind{p, "vm-start", (*order).start, (*order).observeStart},
		kind{p, "vm-shutdown", (*order).shutDown, (*order).observeEnd},
		kind{p, "vm-destroy", (*order).destroy, (*order).observeEnd},
		kind{p, "vm-autostart", (*order).takeAutostart, (*order).takeAutostart},
	}
}

// Start starts a VM in a task of another kind, as a task vm-start would. The run's
// marks become those of a start.
func (p *Power) Start(ctx context.Context, t *agentv1.Task, spec *agentv1.VMPower, run worker.Run) *agentv1.TaskOutcome {
	return p.with(ctx, t, spec, run, (*order).start)
}

// Destroy ends a VM's QEMU in a task of another kind, whatever its guest does: it
// is not asked to write out what it holds. A VM that is not there, or not active,
// is no failure.
func (p *Power) Destroy(ctx context.Context, t *agentv1.Task, spec *agentv1.VMPower, run worker.Run) *agentv1.TaskOutcome {
	return p.with(ctx, t, spec, run, (*order).end)
}

// changed rings for everyone who watches that domain; "" for all.
func (p *Power) changed(uuid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for bell, watched := range p.watchers {
		if uuid == "" || uuid == watched {
			select {
			case bell <- struct{}{}:
			default:
			}
		}
	}
}

// watch gives a channel that is sent to when the domain may have changed.
func (p *Power) watch(uuid string) (bell chan struct{}, stop func()) {
	bell = make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchers[bell] = uuid
	return bell, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watchers, bell)
	}
}

// kind is one of the four.
type kind struct {
	p       *Power
	name    string
	do      func(*order, context.Context) *agentv1.TaskOutcome
	observe func(*order, context.Context) *agentv1.TaskOutcome
}

// Name is the kind's.
func (k kind) Name() string { return k.name }

// Do carries the order out, or goes on with what a former process of this
// agent began.
func (k kind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	return k.with(ctx, t, run, k.do)
}

// Observe says what came of an order that another journal may have begun.
func (k kind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	return k.with(ctx, t, run, k.observe)
}

func (k kind) with(ctx context.Context, t *agentv1.Task, run worker.Run, method func(*order, context.Context) *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	return k.p.with(ctx, t, t.GetSpec().GetVmPower(), run, method)
}

func (p *Power) with(ctx context.Context, t *agentv1.Task, spec *agentv1.VMPower, run worker.Run, method func(*order, context.Context) *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if spec.GetVmUuid() == "" {
		return failure(codeInternal, "the task %s names no VM", t.GetId())
	}
	bell, stop := p.watch(spec.GetVmUuid())
	defer stop()
	o := &order{
		hv: p.cfg.Hypervisor, bootID: p.cfg.BootID, spec: spec, run: run, bell: bell, name: spec.GetVmName(),
		log: worker.IDs(t).Logger(p.cfg.Log).With("vm", spec.GetVmName()),
	}
	if o.name == "" {
		o.name = spec.GetVmUuid()
	}
	return method(o, ctx)
}

// lookEvery is how often the domain is looked at though no event said so.
const lookEvery = 2 * time.Second

// order is one order at work.
type order struct {
	hv     *hypervisor.Hypervisor
	bootID string
	spec   *agentv1.VMPower
	run    worker.Run
	bell   chan struct{} // the domain may have changed
	name   string
	log    hclog.Logger
}

func (o *order) uuid() string { return o.spec.GetVmUuid() }

// await waits for something to look at: the domain, a cancellation, or some
// time. It is false when ctx has ended.
func (o *order) await(ctx context.Context, atMost time.Duration) bool {
	timer := time.NewTimer(min(max(atMost, 0), lookEvery))
	defer timer.Stop()
	cancelled := o.run.Cancelled()
	if o.cancelled() {
		cancelled = nil // known: it would not wait any more
	}
	select {
	case <-ctx.Done():
		return false
	case <-o.bell:
	case <-cancelled:
	case <-timer.C:
	}
	return true
}

func (o *order) cancelled() bool {
	select {
	case <-o.run.Cancelled():
		return true
	default:
		return false
	}
}

// look looks at the domain until libvirt answers; ok is false when ctx ended
// before it did.
func (o *order) look(ctx context.Context) (seen hypervisor.Instance, ok bool) {
	for {
		seen, err := o.hv.Instance(ctx, o.uuid())
		if err == nil {
			return seen, true
		}
		o.log.Warn("cannot look at the VM", "error", err)
		if !o.await(ctx, lookEvery) {
			return seen, false
		}
	}
}

// instance names the QEMU that the domain has now, for the journal.
func (o *order) instance(seen hypervisor.Instance) string {
	return fmt.Sprintf("instance %s/%d", o.bootID, seen.ID)
}

// takeAutostart turns libvirt's autostart off. It can be repeated, and has
// nothing to observe but itself.
func (o *order) takeAutostart(ctx context.Context) *agentv1.TaskOutcome {
	for {
		if o.cancelled() {
			return cancelled()
		}
		err := o.hv.TakeAutostart(ctx, o.uuid())
		switch {
		case err == nil:
			return &agentv1.TaskOutcome{}
		case !unanswered(err):
			return refused(err)
		}
		o.log.Warn("autostart is still libvirt's", "error", err)
		if !o.await(ctx, lookEvery) {
			return nil
		}
	}
}
