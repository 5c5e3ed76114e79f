package obs

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// manager is a service manager that listens.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func listen(t *testing.T, watchdog string) manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", watchdog)
	return manager{t, conn}
}

// next is the next message; "" when none comes in time.
func (m manager) next(within time.Duration) string {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		m.t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := m.conn.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func (m manager) expect(want string) {
	m.t.Helper()
	if got := m.next(20 * time.Second); !strings.HasPrefix(got, want) {
		m.t.Errorf("the service manager was told %q, want %q", got, want)
	}
}

func TestTheServiceManagerIsTold(t *testing.T) {
	m := listen(t, "")
	n := NewNotifier()
	reloaded := false
	n.Reload(func() { reloaded = true }) // nobody is told before READY
	n.Status("starting")
	n.Status("starting")
	n.Remark("file is broken")
	n.Ready()
	n.Reload(func() {})
	n.Stopping("stopping")
	n.Ready()
	n.Status("late")
	for _, want := range []string{
		"STATUS=starting", "STATUS=starting; file is broken", "READY=1", "RELOADING=1\nMONOTONIC_USEC=", "READY=1", "STOPPING=1\nSTATUS=stopping",
	} {
		m.expect(want)
	}
	if late := m.next(50 * time.Millisecond); late != "" {
		t.Errorf("told after the end: %q", late)
	}
	if !reloaded {
		t.Error("nothing was reloaded")
	}
	if got := n.Watchdog(); got != 0 {
		t.Errorf("a watchdog that nobody asked for: %s", got)
	}
}

func TestNobodyToTell(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	var none *Notifier
	for _, n := range []*Notifier{none, NewNotifier()} {
		done := false
		n.Ready()
		n.Status("x")
		n.Remark("x")
		n.Reload(func() { done = true })
		n.Stopping("x")
		if !done || n.Watchdog() != 0 {
			t.Error("a daemon without a service manager does not work")
		}
	}
}

// The watchdog is fed by what looks at the daemon, and by nothing else.
func TestAHangingDaemonStarvesItsWatchdog(t *testing.T) {
	m := listen(t, "400000") // 400 ms
	var wrong atomic.Pointer[error]
	failed := make(chan error, 100)
	begun := make(chan struct{})
	p := &Pulse{Notify: NewNotifier(), Failed: func(err error) { failed <- err }, Check: func(ctx context.Context) error {
		if err := wrong.Load(); err != nil {
			return *err
		}
		return ctx.Err()
	}}
	notYet := errors.New("not yet")
	wrong.Store(&notYet)
	if p.Alive() == nil {
		t.Error("it lives before it has begun")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx, func() { close(begun) }) }()
	if err := <-failed; !errors.Is(err, notYet) {
		t.Errorf("it failed by %v", err)
	}
	if early := m.next(50 * time.Millisecond); early != "" {
		t.Errorf("told before it works: %q", early)
	}
	wrong.Store(nil)
	<-begun
	m.expect("WATCHDOG=1")
	m.expect("READY=1")
	m.expect("WATCHDOG=1")
	if err := p.Alive(); err != nil {
		t.Errorf("alive: %v", err)
	}
	stuck := errors.New("stuck")
	wrong.Store(&stuck)
	if err := <-failed; !errors.Is(err, stuck) {
		t.Errorf("it failed by %v", err)
	}
	for m.next(0) != "" {
		continue // what was on its way
	}
	if fed := m.next(600 * time.Millisecond); fed != "" {
		t.Errorf("a daemon that is stuck feeds its watchdog: %q", fed)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
