package freeze

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// connectIn is how long the child may take to reach libvirt, before the budget
	// begins.
	connectIn = 5 * time.Second
	// thawEvery is the pause between two tries to thaw, each of which may take tryThaw.
	thawEvery = 100 * time.Millisecond
	tryThaw   = 10 * time.Second
	// thawFor is how long the child tries; then the agent does, by its mark.
	thawFor = 2 * time.Minute
)

// said is a line that the child tells its agent.
type said struct {
	// Frozen, or Thawed; else Code and Message say why there is no freeze.
	Frozen      bool   `json:"frozen,omitempty"`
	Filesystems uint32 `json:"filesystems,omitempty"`
	Thawed      bool   `json:"thawed,omitempty"`
	// Asked: it was thawed because the agent asked for it, with the budget not
	// used up.
	Asked    bool   `json:"asked,omitempty"`
	FrozenMS uint64 `json:"frozen_ms,omitempty"`
	Code     string `json:"code,omitempty"`
	Message  string `json:"message,omitempty"`
}

// guestAgent is what the child does to a guest (hypervisor.Hypervisor).
type guestAgent interface {
	FreezeGuest(ctx context.Context, uuid string) error
	ThawGuest(ctx context.Context, uuid string) error
	GuestFilesystems(ctx context.Context, uuid string) (int, error)
}

// Main is the child process: one freeze of one guest. It returns once the guest
// is thawed.
func Main(args []string) error {
	flags := flag.NewFlagSet("freeze", flag.ContinueOnError)
	uri := flags.String("uri", "", "libvirt's URI")
	vm := flags.String("vm", "", "the guest's UUID")
	budget := flags.Duration("budget", 0, "how long it may be frozen")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "freeze", Output: os.Stderr, JSONFormat: true}).With("vm", *vm)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	hv := hypervisor.New(hypervisor.Config{URI: *uri, Log: log})
	go func() { _ = hv.Run(ctx) }()
	ready, cancel := context.WithTimeout(ctx, connectIn)
	defer cancel()
	if err := hv.Ready(ready); err != nil {
		return tell(os.Stdout, refusal(err))
	}
	h := holder{guest: hv, vm: *vm, budget: *budget, log: log, out: os.Stdout, release: released(os.Stdin)}
	return h.run(ctx)
}

// released is closed when the agent wants the thaw, or is gone, or the child is
// told to end.
func released(in io.Reader) <-chan struct{} {
	asked, told := make(chan struct{}), make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // the agent may be gone when it is told
	line := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(in).ReadString('\n')
		close(line)
	}()
	go func() {
		select {
		case <-line:
		case <-told:
		}
		close(asked)
	}()
	return asked
}

// holder is one freeze.
type holder struct {
	guest   guestAgent
	vm      string
	budget  time.Duration
	log     hclog.Logger
	out     io.Writer
	release <-chan struct{}
}

// run freezes and thaws. Where the freeze fails or comes too late it thaws all
// the same: an agent that was slow to answer may have frozen the guest since.
func (h *holder) run(ctx context.Context) error {
	begun := time.Now()
	within, cancel := context.WithDeadline(ctx, begun.Add(h.budget))
	defer cancel()
	n, err := h.guest.GuestFilesystems(within, h.vm)
	if err != nil && (errdefs.Of(err).Code == hypervisor.CodeNoGuestAgent || errdefs.KindOf(err) == errdefs.NotFound) {
		return tell(h.out, refusal(err)) // nothing was asked of anybody: there is nothing to thaw
	}
	err = h.guest.FreezeGuest(within, h.vm)
	frozen := time.Now()
	if err != nil {
		if thaw := h.thaw(ctx); thaw != nil {
			return thaw
		}
		return tell(h.out, refusal(err))
	}
	if err := tell(h.out, said{Frozen: true, Filesystems: uint32(max(0, n))}); err != nil {
		h.log.Warn("nobody hears that the guest is frozen", "error", err)
	}
	asked := false
	select {
	case <-h.release:
		asked = time.Since(begun) < h.budget // the timer may be late
	case <-within.Done():
		h.log.Warn("the freeze has used up its budget: thawing", "budget", h.budget)
	}
	if err := h.thaw(ctx); err != nil {
		return err
	}
	return tell(h.out, said{Thawed: true, Asked: asked, FrozenMS: uint64(time.Since(frozen).Milliseconds())})
}

// thaw tries until the guest is thawed or does not run.
func (h *holder) thaw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, thawFor)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, tryThaw)
		err := h.guest.ThawGuest(try, h.vm)
		stop()
		if err == nil || errdefs.KindOf(err) == errdefs.NotFound {
			return nil
		}
		h.log.Warn("the guest is not thawed yet", "error", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("thawing VM %s: %w", h.vm, err)
		case <-time.After(thawEvery):
		}
	}
}

func refusal(err error) said {
	e := errdefs.Of(err)
	return said{Code: e.Code, Message: e.Message}
}

func tell(out io.Writer, s said) error {
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}
