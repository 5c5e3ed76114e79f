package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bootLimit is how long a machine may take to come up, on a host that is busy.
const bootLimit = 90 * time.Second

// A power is one time that a machine is on.
type power struct {
	wire   *wire
	pacer  *pacer
	conn   net.Conn
	alive  *os.File // its being open keeps the keeper waiting
	keeper *exec.Cmd
	up     chan error    // gets how the boot went
	off    chan struct{} // closed when everything of it has ended
}

// PowerOn boots the machine, which has to be off, with the disks that it had.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.mu.Lock()
	if m.power != nil {
		m.mu.Unlock()
		return fmt.Errorf("power on %s: it is on", m.spec.Name)
	}
	p, err := m.launch()
	if err == nil {
		m.power, m.processes = p, map[uint32]*Process{}
		go m.listen(p)
	}
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("power on %s: %w", m.spec.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	select {
	case err = <-p.up:
	case <-p.off:
		err = ErrOff
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("power on %s: %w; its console: %s", m.spec.Name, err, tail(m.spec.Log)), m.PowerOff())
}

// launch starts the kernel, in a PID namespace that ends with its keeper.
func (m *Machine) launch() (*power, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	conn, line, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = line.Close() }()
	waiting, alive, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer func() { _ = waiting.Close() }()
	failed := func(err error) (*power, error) { return nil, errors.Join(err, conn.Close(), alive.Close()) }
	log, err := os.OpenFile(m.spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = log.Close() }()
	if err := os.RemoveAll(filepath.Join(m.spec.Dir, "uml")); err != nil {
		return failed(err)
	}
	if err := os.Mkdir(filepath.Join(m.spec.Dir, "uml"), 0o755); err != nil {
		return failed(err)
	}
	args := append([]string{filepath.Join(m.Built, "keeper")}, m.arguments(program)...)
	if m.spec.NetNS != "" {
		args = append([]string{"/usr/bin/nsenter", "--net=" + m.spec.NetNS, "--"}, args...)
	}
	// A kernel that panics dumps its core, all of the machine's memory.
	args = append([]string{"/usr/bin/prlimit", "--core=0", "--"}, args...)
	if cpu, ok := quietCPU(); ok && m.spec.pinned {
		args = append([]string{"/usr/bin/taskset", "--cpu-list", strconv.Itoa(cpu)}, args...)
	}
	cmd := &exec.Cmd{Path: args[0], Args: args, Dir: "/", Stdin: waiting, Stdout: log, Stderr: log, ExtraFiles: []*os.File{line}}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + m.spec.Dir, "TMPDIR=" + m.memoryDir()}
	if m.owned != nil {
		cmd.Env = append(cmd.Env, "KEEPER_REMOVES="+m.spec.Dir)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return failed(err)
	}
	pacer := newPacer(conn)
	return &power{
		wire: &wire{w: pacer, r: conn}, pacer: pacer, conn: conn, alive: alive, keeper: cmd, up: make(chan error, 1), off: make(chan struct{}),
	}, nil
}

// memoryDir is where the kernel keeps the machine's memory, in a file without a name: in memory, if there is room for it.
func (m *Machine) memoryDir() string {
	var at syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &at); err == nil && at.Bavail*uint64(at.Bsize) > uint64(m.spec.MemoryMiB)<<20 {
		return "/dev/shm"
	}
	return "/var/tmp"
}

// socketPair returns this process's end of the serial line and the machine's.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "line"), os.NewFile(uintptr(fds[1]), "line")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn, theirs, nil
}

// listen takes what the machine says until it is off, and then ends all that ran in it.
func (m *Machine) listen(p *power) {
	gone := make(chan struct{})
	go func() {
		_ = p.keeper.Wait() // killed, most often
		_ = p.alive.Close()
		_ = p.conn.Close()
		p.pacer.close()
		close(gone)
	}()
	for {
		f, err := p.wire.receive()
		if err != nil {
			break
		}
		switch {
		case f.kind == kindReady:
			p.up <- nil
		case f.kind == kindAck:
			p.pacer.ack(f.contents)
		case f.number == 0:
			p.up <- errors.New(string(f.contents))
		default:
			m.mu.Lock()
			proc := m.processes[f.number]
			m.mu.Unlock()
			if proc != nil && proc.take(f) {
				m.mu.Lock()
				delete(m.processes, f.number)
				m.mu.Unlock()
			}
		}
	}
	<-gone
	m.mu.Lock()
	ended := m.processes
	m.power, m.processes = nil, nil
	m.mu.Unlock()
	for _, proc := range ended {
		proc.end(ErrOff)
	}
	close(p.off)
}

// line returns the serial line to the machine.
func (m *Machine) line() (*wire, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.power == nil {
		return nil, ErrOff
	}
	return m.power.wire, nil
}

// enlist gives a process its number.
func (m *Machine) enlist(p *Process) (*wire, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.power == nil {
		return nil, ErrOff
	}
	m.numbers++
	p.number = m.numbers
	m.processes[p.number] = p
	return m.power.wire, nil
}

// On says whether the machine has power. One whose kernel panicked has none.
func (m *Machine) On() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.power != nil
}

// PowerOff takes the machine's power at once: nothing in it gets to know, nothing is flushed. It returns when all of the machine has
// ended; one that is off stays so.
func (m *Machine) PowerOff() error {
	m.mu.Lock()
	p := m.power
	m.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.keeper.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("power off %s: %w", m.spec.Name, err)
	}
	<-p.off
	return nil
}

// Pause makes the machine stand still, network and disks and all, as a hung host does.
func (m *Machine) Pause() error { return m.signal(syscall.SIGSTOP) }

// Continue lets a paused machine go on.
func (m *Machine) Continue() error { return m.signal(syscall.SIGCONT) }

// signal sends a signal to all that the machine consists of on the host.
func (m *Machine) signal(sig syscall.Signal) error {
	m.mu.Lock()
	p := m.power
	m.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%v to %s: %w", sig, m.spec.Name, ErrOff)
	}
	for _, pid := range descendants(p.keeper.Process.Pid) {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("%v to %s: %w", sig, m.spec.Name, err)
		}
	}
	return nil
}

// descendants returns the processes below another, parents first.
func descendants(pid int) []int {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var all []int
	for _, field := range strings.Fields(string(raw)) {
		if child, err := strconv.Atoi(field); err == nil {
			all = append(append(all, child), descendants(child)...)
		}
	}
	return all
}

// tail returns the end of a log for an error message.
func tail(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-2000):])
}
