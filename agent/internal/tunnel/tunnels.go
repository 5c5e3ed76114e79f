package tunnel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

const (
	// DefaultRoot holds a directory a tunnel.
	DefaultRoot = "/run/debvisor/tunnel"
	startWithin = 10 * time.Second
	stopWithin  = 2 * time.Second
)

// Tunnels makes and finds this host's ends of tunnels.
type Tunnels struct {
	// Root is a directory for them; its path must be the same on all hosts.
	Root string
	// Command starts a child: the program and its arguments up to where Main's
	// begin. Empty: this program's own "tunnel" subcommand.
	Command []string
	Log     hclog.Logger
}

// Tunnel is one end on this host.
type Tunnel struct {
	layout  layout
	command []string
	log     hclog.Logger
}

// Open makes this host's end, or finds the one that a former process made with
// the same right. It returns when the end listens.
func (t *Tunnels) Open(ctx context.Context, cfg Config) (_ *Tunnel, err error) {
	ctx, span := obs.Start(ctx, "open tunnel")
	span.Set("debvisor.peer", cfg.Peer)
	defer func() { span.End(err) }()
	tun := t.Find(cfg.RightID)
	cfg.TraceID, tun.log = obs.IDsOf(ctx).Trace, obs.Logger(ctx, tun.log)
	if tun.Alive() && tun.Address() != "" {
		return tun, nil
	}
	if err := t.prepare(tun.layout, cfg); err != nil {
		return nil, err
	}
	if err := tun.start(ctx, cfg.TaskID); err != nil {
		return nil, errors.Join(err, tun.Close())
	}
	return tun, nil
}

// Find gives the end of a right, whether or not there is one.
func (t *Tunnels) Find(rightID string) *Tunnel {
	root, command := t.Root, t.Command
	if root == "" {
		root = DefaultRoot
	}
	if len(command) == 0 {
		command = []string{"/proc/self/exe", "tunnel"} // also while it is being replaced
	}
	return &Tunnel{layoutOf(root, rightID), command, t.Log}
}

// prepare lays the directory out. Nobody but root reads it; others may pass
// through. In a part of it, QEMU makes its sockets on the target; it finds ours
// there on the source, and cannot put others in their place.
func (t *Tunnels) prepare(l layout, cfg Config) error {
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("clearing a tunnel's directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(l.dir), 0o755); err != nil {
		return fmt.Errorf("making the tunnels' directory: %w", err)
	}
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{{l.dir, 0o711}, {l.io(), 0o700}} {
		if err := os.Mkdir(d.path, d.mode); err != nil {
			return fmt.Errorf("making a tunnel's directory: %w", err)
		}
		if err := os.Chmod(d.path, d.mode); err != nil { // whatever the umask
			return fmt.Errorf("making a tunnel's directory: %w", err)
		}
	}
	if cfg.Role == Target {
		if err := os.Chown(l.io(), cfg.QEMUUser, cfg.QEMUGroup); err != nil {
			return fmt.Errorf("giving QEMU its directory: %w", err)
		}
	} else if err := os.Chmod(l.io(), 0o711); err != nil {
		return fmt.Errorf("letting QEMU into its directory: %w", err)
	}
	data, err := json.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("writing a tunnel's configuration: %w", err)
	}
	return writeFile(l.config(), string(data))
}

// start runs the child in a session of its own, so that it outlives the agent.
func (t *Tunnel) start(ctx context.Context, taskID string) error {
	logFile, err := os.OpenFile(t.layout.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening a tunnel's log: %w", err)
	}
	defer func() { _ = logFile.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting a tunnel: %w", err)
	}
	defer func() { _ = r.Close() }()
	args := append(append([]string{}, t.command[1:]...), "--dir", t.layout.dir, "--task", taskID)
	cmd := exec.Command(t.command[0], args...) //nolint:noctx // it must outlive every context of this process
	if t.command[0] == "/proc/self/exe" {
		cmd.Args[0] = os.Args[0]
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = childEnv()
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("starting a tunnel: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it is reaped whenever it ends
	if underSystemd() {
		if err := ownScope(ctx, t.layout, taskID, cmd.Process.Pid); err != nil {
			// It lives on in the agent's unit, which leaves it alone as well
			// (KillMode=process), but for a stop by force.
			t.log.Warn("the tunnel has no scope of its own", "error", err)
		}
	}
	if err := awaitReady(ctx, r); err != nil {
		return errdefs.New(errdefs.Unavailable, "TUNNEL_FAILED", "the tunnel did not start").
			WithCause(fmt.Errorf("%w; its log ends: %s", err, lastLine(t.layout.log())))
	}
	return nil
}

// childEnv keeps what the program may need to run, and neither fail points, whose
// listener is the agent's, nor the agent's place under systemd.
func childEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "INVOCATION_ID", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID":
			return true
		default:
			return strings.HasPrefix(name, "GOFAIL_")
		}
	})
}

func awaitReady(ctx context.Context, r *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(r).ReadString('\n')
	switch {
	case line == "ready\n":
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return fmt.Errorf("the child ended: %w", err)
	}
}

func lastLine(path string) string {
	lines := strings.Split(readFile(path), "\n")
	return lines[len(lines)-1]
}

// Address is where the target's end listens, host:port.
func (t *Tunnel) Address() string { return readFile(t.layout.address()) }

// LibvirtURI is the target's libvirtd for the source's.
func (t *Tunnel) LibvirtURI() string { return "qemu+unix:///system?socket=" + t.layout.libvirt() }

// DataURI is QEMU's socket, for both hosts.
func (t *Tunnel) DataURI() string { return "unix://" + t.layout.memory() }

// DisksURI is where the target's QEMU listens for disks (NBD), for both hosts.
func (t *Tunnel) DisksURI() string { return "unix://" + t.layout.disks() }

// CopySocket carries our own copy of disks: the source's agent connects to it,
// the target's listens on it. It is root's.
func (t *Tunnel) CopySocket() string { return t.layout.copy() }

// DialCopy connects the source's agent with the target's, for a copy of disks.
// It fails where nobody listens there only by the connection's end.
func (t *Tunnel) DialCopy(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", t.layout.copy())
}

// ListenCopy listens on the target for the source's agent. It takes the place of
// a listener of an agent that has ended; the tunnel must be open.
func (t *Tunnel) ListenCopy(ctx context.Context) (net.Listener, error) {
	return listenUnix(ctx, t.layout.copy())
}

// Broken tells what failed on the way to the other host; empty: nothing did.
func (t *Tunnel) Broken() string { return readFile(t.layout.broken()) }

// HungUp tells whether the target's QEMU hung up before the source had sent all.
// It does so too when all has come, so it counts only where nothing arrived.
func (t *Tunnel) HungUp() bool { return readFile(t.layout.hungUp()) != "" }

// Arrived tells when the guest's memory was complete on the target; the zero
// time where it is not, or nobody noted it.
func (t *Tunnel) Arrived() time.Time {
	at, err := time.Parse(time.RFC3339Nano, readFile(t.layout.arrived()))
	if err != nil {
		return time.Time{}
	}
	return at
}

// Alive tells whether the end's process lives.
func (t *Tunnel) Alive() bool { return t.pid() != 0 }

// pid is the child's process id, 0 without one: the lock is held as long as the
// process lives, so that the id cannot be another's.
func (t *Tunnel) pid() int {
	f, err := os.OpenFile(t.layout.lock(), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		return 0
	}
	pid, err := strconv.Atoi(readFile(t.layout.lock()))
	if err != nil {
		return 0
	}
	return pid
}

// Pending tells whether libvirtd was asked through the target's end to prepare
// for the VM, and has not answered: the VM may appear though the tunnel has
// ended.
func (t *Tunnel) Pending() bool { return readFile(t.layout.pending()) != "" }

// Stop ends the child and leaves the directory. When it returns nil nothing
// passes any more.
func (t *Tunnel) Stop() error { return t.kill() }

// Close ends the child and removes all that the tunnel left. When it returns
// nil nothing passes any more.
func (t *Tunnel) Close() error {
	if err := t.kill(); err != nil {
		return err
	}
	t.audit()
	if err := os.RemoveAll(t.layout.dir); err != nil {
		return fmt.Errorf("removing a tunnel's directory: %w", err)
	}
	return nil
}

func (t *Tunnel) kill() error {
	begun := time.Now()
	signal := syscall.SIGTERM
	for {
		pid := t.pid()
		if pid == 0 {
			return nil
		}
		switch waited := time.Since(begun); {
		case waited > 2*stopWithin:
			return fmt.Errorf("the tunnel's process %d does not end", pid)
		case waited > stopWithin:
			signal = syscall.SIGKILL
		}
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ending the tunnel's process %d: %w", pid, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Sweep removes what ends left whose process is dead and whose task keep does
// not know. One that lives without a task is let be until its right expires:
// the leader may yet ask what came of a task that a lost journal had.
func (t *Tunnels) Sweep(keep func(taskID string) bool) error {
	root := filepath.Dir(t.Find("").layout.dir)
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listing tunnels: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		l := layout{filepath.Join(root, entry.Name())}
		var cfg Config
		if data, err := os.ReadFile(l.config()); err == nil {
			_ = json.Unmarshal(data, &cfg)
		}
		left := &Tunnel{layout: l, log: t.Log}
		if left.Alive() || cfg.TaskID != "" && keep(cfg.TaskID) {
			continue
		}
		cfg.ids().Logger(t.Log).Info("removing what a tunnel left")
		errs = append(errs, left.Close())
	}
	return errors.Join(errs...)
}
