package failover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/power"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// The codes of outcomes, besides those of the packages below.
const (
	codeStale       = "STALE_PLACEMENT"
	codeThere       = "VM_STILL_THERE"
	codeInterrupted = "INTERRUPTED"
	codeRebooted    = "HOST_RESTARTED"
	codeInternal    = "INTERNAL"
)

const (
	// lookEvery is the pause after libvirt has not answered.
	lookEvery = 2 * time.Second
	// tryAgain is the pause after ZFS was busy, patience how long it may be.
	tryAgain = 500 * time.Millisecond
	patience = 20 * time.Second
)

// Config is what the kinds work with.
type Config struct {
	Hypervisor *hypervisor.Hypervisor
	Power      *power.Power
	ZFS        *zfs.ZFS
	// BootID is the kernel's, as in worker.Config.
	BootID string
	Log    hclog.Logger
}

// Failover holds what the kinds share. It is safe for concurrent use.
type Failover struct {
	cfg Config
}

// New makes a Failover.
func New(cfg Config) *Failover { return &Failover{cfg} }

// Kinds are the two kinds.
func (f *Failover) Kinds() []worker.Kind { return []worker.Kind{startKind{f}, discardKind{f}} }

func failure(code, format string, args ...any) *agentv1.TaskOutcome {
	return &agentv1.TaskOutcome{ErrorCode: code, ErrorMessage: fmt.Sprintf(format, args...)}
}

// broken is a failure that another attempt may not have.
func broken(format string, args ...any) *agentv1.TaskOutcome {
	out := failure(codeInterrupted, format, args...)
	out.Interrupted = true
	return out
}

// outcomeOf makes a task's end of an error; nil where the agent stops.
func outcomeOf(ctx context.Context, err error) *agentv1.TaskOutcome {
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return &agentv1.TaskOutcome{}
	}
	out := failure(codeInternal, "%v", err)
	var e *errdefs.Error
	if errors.As(err, &e) && e.Code != "" {
		out.ErrorCode, out.ErrorMessage = e.Code, e.Message
	}
	out.Interrupted = errdefs.Is(err, errdefs.Unavailable)
	return out
}

func cancelled(run worker.Run) bool {
	select {
	case <-run.Cancelled():
		return true
	default:
		return false
	}
}

// patiently does something with ZFS or libvirt, again for as long as one of them does
// not answer or is busy, but not for ever.
func (f *Failover) patiently(ctx context.Context, doing string, do func(context.Context) error) error {
	until := time.Now().Add(patience)
	for {
		err := do(ctx)
		if err == nil || !errdefs.Is(err, errdefs.Unavailable) || !time.Now().Before(until) {
			return err
		}
		obs.Logger(ctx, f.cfg.Log).Warn("tried again in a moment", "what", doing, "error", err)
		if !wait(ctx, tryAgain) {
			return ctx.Err()
		}
	}
}

// wait is false when ctx has ended.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// look looks at the domain until libvirt answers; ok is false when ctx ended before.
func (f *Failover) look(ctx context.Context, uuid string) (seen hypervisor.Instance, ok bool) {
	for {
		seen, err := f.cfg.Hypervisor.Instance(ctx, uuid)
		if err == nil {
			return seen, true
		}
		obs.Logger(ctx, f.cfg.Log).Warn("cannot look at the VM", "vm", uuid, "error", err)
		if !wait(ctx, lookEvery) {
			return seen, false
		}
	}
}

// nameOf is what people call a VM.
func nameOf(name, uuid string) string {
	if name != "" {
		return name
	}
	return uuid
}
