package freeze

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// DefaultBudget is how long a guest is frozen where nothing is said.
	DefaultBudget = 5 * time.Second
	// MaxBudget is how long it is frozen at most, whatever is asked for.
	MaxBudget = time.Minute

	// CodeExpired is for a freeze that was not held: the freeze had ended before all snapshots were taken. Those that
	// were are not what was asked for.
	CodeExpired = "FREEZE_EXPIRED"

	// recoverEvery is how often guests are thawed again that could not be.
	recoverEvery = time.Second
	// answerIn is how long the child's word is waited for beyond its budget.
	answerIn = connectIn + 2*time.Second
)

// Config is what a Freezer needs.
type Config struct {
	// Dir is a directory of the agent's own, for marks.
	Dir string
	// LibvirtURI is libvirt's own; empty: qemu:///system.
	LibvirtURI string
	// Command starts the child; its arguments follow. Such as debvisor-agent freeze.
	Command []string
	// Thaw lets a guest go on (hypervisor.Hypervisor).
	Thaw interface {
		ThawGuest(ctx context.Context, uuid string) error
	}
	Log hclog.Logger
}

// Freezer freezes guests, each at most once at a time. It is safe for concurrent
// use.
type Freezer struct {
	cfg   Config
	marks marks

	mu   sync.Mutex
	held map[string]chan struct{} // by VM; closed when its freeze has ended
	wake chan struct{}

	tried map[string]int // by VM: how often Run could not thaw it
}

// New makes a Freezer; Run thaws what former ones left.
func New(cfg Config) *Freezer {
	return &Freezer{cfg: cfg, marks: marks{filepath.Join(cfg.Dir, "freeze")}, held: map[string]chan struct{}{}, wake: make(chan struct{}, 1), tried: map[string]int{}}
}

// Run thaws every guest that a former freeze may have left frozen, until ctx
// ends; it then returns nil.
func (f *Freezer) Run(ctx context.Context) error {
	tick := time.NewTicker(recoverEvery)
	defer tick.Stop()
	for {
		left, err := f.marks.all()
		if err != nil {
			f.cfg.Log.Warn("guests may be frozen", "error", err)
		}
		for _, k := range left {
			f.recover(ctx, k)
		}
		wait := tick.C
		if len(left) == 0 && err == nil {
			wait = nil // until another freeze leaves something
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-wait:
		}
	}
}

// recover thaws one guest unless its freeze is under way here.
func (f *Freezer) recover(ctx context.Context, k mark) {
	end, ok := f.begin(k.VM)
	if !ok {
		return
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, tryThaw)
	defer cancel()
	err := f.cfg.Thaw.ThawGuest(ctx, k.VM)
	if err == nil || errdefs.KindOf(err) == errdefs.NotFound {
		err = f.marks.drop(k.VM)
	}
	if err != nil {
		if f.tried[k.VM]++; f.tried[k.VM]%60 == 1 {
			f.cfg.Log.Error("a guest may still be frozen; trying on", "vm", k.VM, "name", k.Name, "since", k.At, "error", err)
		}
		return
	}
	delete(f.tried, k.VM)
	f.cfg.Log.Warn("thawed a guest that a former freeze may have left frozen", "vm", k.VM, "name", k.Name, "since", k.At)
}

// begin takes a VM for one freeze; false: another has it.
func (f *Freezer) begin(vm string) (end func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[vm] != nil {
		return nil, false
	}
	ended := make(chan struct{})
	f.held[vm] = ended
	return func() {
		f.mu.Lock()
		delete(f.held, vm)
		f.mu.Unlock()
		close(ended)
	}, true
}

// Frozen calls take while the guest's file systems are frozen, and returns when
// they are thawed or somebody else sees to that. The outcome says whether they
// were frozen for the whole of take. Where no freeze is asked for (nil), or one
// that may fail does, take is called all the same.
//
// FailedPrecondition where the freeze is required: with the code NO_GUEST_AGENT
// or FREEZE_FAILED take was not called; with FREEZE_EXPIRED it was, and what it
// took has to go. Other errors are take's own.
func (f *Freezer) Frozen(ctx context.Context, order *agentv1.Freeze, take func(ctx context.Context) error) (*agentv1.FreezeOutcome, error) {
	if order == nil {
		return nil, take(ctx)
	}
	budget := min(time.Duration(order.GetBudgetMs())*time.Millisecond, MaxBudget)
	if budget <= 0 {
		budget = DefaultBudget
	}
	end, ok := f.begin(order.GetVmUuid())
	for !ok {
		if err := f.awaitEnd(ctx, order.GetVmUuid()); err != nil {
			return nil, err
		}
		end, ok = f.begin(order.GetVmUuid())
	}
	defer end()
	outcome, held, err := f.freeze(ctx, order, budget)
	if err != nil {
		outcome = &agentv1.FreezeOutcome{Reason: errdefs.Of(err).Message}
		if order.GetRequired() {
			return outcome, err
		}
		return outcome, take(ctx)
	}
	taken := f.take(ctx, budget, take)
	f.release(held, order, outcome)
	switch {
	case taken != nil:
		return outcome, taken
	case !outcome.GetFrozen() && order.GetRequired():
		return outcome, errdefs.New(errdefs.FailedPrecondition, CodeExpired, "%s", outcome.GetReason()).With("vm", order.GetVmUuid())
	}
	return outcome, nil
}

// take calls take for no longer than the freeze may last: what hangs then is cut.
func (f *Freezer) take(ctx context.Context, budget time.Duration, take func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, budget, errors.New("the guest's freeze has used up its budget"))
	defer cancel()
	return take(ctx)
}

func (f *Freezer) awaitEnd(ctx context.Context, vm string) error {
	f.mu.Lock()
	ended := f.held[vm]
	f.mu.Unlock()
	if ended == nil {
		return nil
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// child is a process that holds a freeze.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan said // closed when it says no more
}

// freeze starts a child and waits until it says that the guest is frozen.
func (f *Freezer) freeze(ctx context.Context, order *agentv1.Freeze, budget time.Duration) (*agentv1.FreezeOutcome, *child, error) {
	if err := f.marks.put(mark{VM: order.GetVmUuid(), Name: order.GetVmName(), At: time.Now(), Budget: budget}); err != nil {
		return nil, nil, fmt.Errorf("noting that VM %s is to be frozen: %w", order.GetVmUuid(), err)
	}
	// gofail: var freezeMarked struct{}
	c, err := f.start(order, budget)
	if err != nil {
		f.left()
		return nil, nil, err
	}
	late := time.NewTimer(budget + answerIn)
	defer late.Stop()
	var first said
	select {
	case first = <-c.lines:
	case <-ctx.Done():
	case <-late.C:
	}
	if first.Frozen {
		// gofail: var freezeFrozen struct{}
		return &agentv1.FreezeOutcome{Frozen: true, Filesystems: first.Filesystems}, c, nil
	}
	_ = c.stdin.Close() // if it still runs, it thaws
	if first.Code == "" {
		f.left()
		return nil, nil, errdefs.New(errdefs.FailedPrecondition, "FREEZE_FAILED", "the guest was not frozen within %s", budget).With("vm", order.GetVmUuid())
	}
	if err := f.marks.drop(order.GetVmUuid()); err != nil {
		f.cfg.Log.Warn("a mark of no freeze stays", "error", err)
	}
	return nil, nil, errdefs.New(errdefs.FailedPrecondition, first.Code, "%s", first.Message).With("vm", order.GetVmUuid())
}

// release has the child thaw, and completes the outcome by what it says.
func (f *Freezer) release(c *child, order *agentv1.Freeze, outcome *agentv1.FreezeOutcome) {
	// gofail: var freezeTaken struct{}
	_ = c.stdin.Close()
	late := time.NewTimer(tryThaw + time.Second)
	defer late.Stop()
	var last said
	select {
	case last = <-c.lines:
	case <-late.C:
	}
	outcome.FrozenMs = last.FrozenMS
	switch {
	case !last.Thawed:
		outcome.Frozen, outcome.Reason = false, "whoever held the freeze has ended before it told of the thaw"
		f.left()
		return
	case !last.Asked:
		outcome.Frozen, outcome.Reason = false, fmt.Sprintf("the freeze had used up its budget, after %d ms, before the snapshots were taken", last.FrozenMS)
	}
	if err := f.marks.drop(order.GetVmUuid()); err != nil {
		f.cfg.Log.Warn("a mark of no freeze stays", "error", err)
	}
}

// left has Run look: a guest may be frozen still.
func (f *Freezer) left() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// start starts a child, in a process group of its own: what ends the agent's
// leaves it the time to thaw.
func (f *Freezer) start(order *agentv1.Freeze, budget time.Duration) (*child, error) {
	args := append(append([]string(nil), f.cfg.Command[1:]...), "--uri", f.cfg.LibvirtURI, "--vm", order.GetVmUuid(), "--budget", budget.String())
	cmd := exec.Command(f.cfg.Command[0], args...)                                                            //nolint:gosec,noctx // our own program, and it ends by itself: a context that killed it would leave the guest frozen
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GOFAIL_") }) // the agent's own faults
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = f.cfg.Log.StandardWriter(&hclog.StandardLoggerOptions{InferLevels: true})
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting a freeze: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting a freeze: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a freeze: %w", err)
	}
	c := &child{cmd: cmd, stdin: stdin, lines: make(chan said, 4)}
	go func() {
		defer close(c.lines)
		for in := bufio.NewScanner(stdout); in.Scan(); {
			var s said
			if json.Unmarshal(in.Bytes(), &s) == nil {
				select {
				case c.lines <- s:
				default: // it says two things at most
				}
			}
		}
		if err := cmd.Wait(); err != nil {
			f.cfg.Log.Warn("whoever held a freeze has failed", "vm", order.GetVmUuid(), "error", err)
		}
	}()
	return c, nil
}
