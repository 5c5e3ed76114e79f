package obs

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Notifier tells the service manager how the daemon is, as sd_notify(3) does. A
// nil one, and one that no service manager listens to, tell nobody. It is safe
// for concurrent use.
type Notifier struct {
	every time.Duration
	send  func(state string)

	mu       sync.Mutex
	status   string
	remark   string
	ready    bool
	stopping bool
}

// NewNotifier reads what the service manager has put into the environment, and
// how often it wants to be told that the daemon works.
func NewNotifier() *Notifier {
	n := &Notifier{send: func(state string) {
		_, _ = daemon.SdNotify(false, state) // no service manager, or one that is gone: nobody to tell
	}}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		n.send = func(string) {}
	}
	if every, err := daemon.SdWatchdogEnabled(false); err == nil {
		n.every = every
	}
	return n
}

// Watchdog is the time within which the service manager must be told that the
// daemon works, or it ends it; 0: it need not be told.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.every
}

// Ready says that the daemon serves.
func (n *Notifier) Ready() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ready = true
	if !n.stopping {
		n.send(daemon.SdNotifyReady)
	}
}

// Status is the line that systemctl status shows; the same again is not sent.
func (n *Notifier) Status(line string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if line == n.status || n.stopping {
		return
	}
	n.status = line
	n.send("STATUS=" + n.line())
}

// Remark adds something to the status, until it is taken away with an empty one.
func (n *Notifier) Remark(remark string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if remark == n.remark || n.stopping {
		return
	}
	n.remark = remark
	n.send("STATUS=" + n.line())
}

// line is the status with the remark; n.mu is held.
func (n *Notifier) line() string {
	switch {
	case n.remark == "":
		return n.status
	case n.status == "":
		return n.remark
	}
	return n.status + "; " + n.remark
}

// Reload tells of a reload around do, whatever comes of it.
func (n *Notifier) Reload(do func()) {
	if n == nil {
		do()
		return
	}
	n.mu.Lock()
	telling := n.ready && !n.stopping
	if telling {
		n.send(daemon.SdNotifyReloading + "\nMONOTONIC_USEC=" + monotonic())
	}
	n.mu.Unlock()
	defer func() {
		if telling {
			n.Ready()
		}
	}()
	do()
}

// Stopping says that the daemon stops; nothing else is told after it.
func (n *Notifier) Stopping(line string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopping = true
	n.send(daemon.SdNotifyStopping + "\nSTATUS=" + line)
}

// works feeds the watchdog.
func (n *Notifier) works() {
	if n != nil && n.every > 0 {
		n.send(daemon.SdNotifyWatchdog)
	}
}

// monotonic is the kernel's clock as systemd wants it, microseconds.
func monotonic() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return "0"
	}
	return strconv.FormatInt(t.Nano()/int64(time.Microsecond), 10)
}

// aliveEvery is how often a Pulse looks where no watchdog wants it more often,
// and aliveFor how long a look holds.
const (
	aliveEvery = 5 * time.Second
	aliveFor   = 30 * time.Second
)

// Pulse looks again and again whether the daemon does its work, and only where
// it does feeds the service manager's watchdog: one that hangs is ended.
type Pulse struct {
	// Check asks the daemon's own parts, within its context's time.
	Check func(context.Context) error
	// Notify may be nil.
	Notify *Notifier
	// Failed is told why a look failed; nil: nobody is.
	Failed func(error)

	mu   sync.Mutex
	born time.Time
	last time.Time
	err  error
}

// Run looks until ctx ends. The first look that is good makes the daemon ready:
// then begun is called, and the service manager is told.
func (p *Pulse) Run(ctx context.Context, begun func()) error {
	every := aliveEvery
	if w := p.Notify.Watchdog(); w > 0 {
		every = min(every, w/4)
	}
	p.mu.Lock()
	p.born = time.Now()
	p.mu.Unlock()
	for first := true; ; {
		err := p.look(ctx, every)
		wait := every
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			wait = min(every, 100*time.Millisecond)
		case first:
			first = false
			if begun != nil {
				begun()
			}
			p.Notify.Ready()
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// look asks once.
func (p *Pulse) look(ctx context.Context, within time.Duration) error {
	asking, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := p.Check(asking)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.mu.Lock()
	was := p.err
	p.err = err
	if err == nil {
		p.last = time.Now()
	}
	p.mu.Unlock()
	if err == nil {
		p.Notify.works()
	} else if p.Failed != nil && was == nil {
		p.Failed(err)
	}
	return err
}

// Alive tells why the daemon is not known to do its work.
func (p *Pulse) Alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := p.last
	if since.IsZero() {
		since = p.born
	}
	switch age := time.Since(since); {
	case p.born.IsZero():
		return fmt.Errorf("it has not begun yet")
	case age > aliveFor && p.err != nil:
		return fmt.Errorf("it has not done its work for %s: %w", age.Truncate(time.Second), p.err)
	case age > aliveFor:
		return fmt.Errorf("it has not done its work for %s", age.Truncate(time.Second))
	}
	return nil
}
