package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/integration/machine"
)

// A Place is a set of the lab's namespaces in which processes can be started.
type Place struct {
	Name string // unique in the lab: "operator", "r1", "n1"…
	Addr string // its IPv4 address on the lab's bridge

	first atomic.Int64 // process whose mount, UTS, IPC and PID namespaces these are, as the host numbers it; a node's changes
	netns string       // path of the network namespace
	// bridge is the place that has the other end of the link.
	bridge *Place
	// machine is what the place is, instead of namespaces.
	machine *machine.Machine
}

// newPlace is the place of a process and of the network namespace at a path.
func newPlace(name, addr string, first int, netns string) *Place {
	p := &Place{Name: name, Addr: addr, netns: netns}
	p.first.Store(int64(first))
	return p
}

// namespace is an open namespace and its kind, a CLONE_NEW flag.
type namespace struct {
	file *os.File
	kind int
}

// open returns the namespaces of the place, in the order in which they can be entered.
func (p *Place) open(network bool, others ...string) ([]namespace, error) {
	kinds := map[string]int{"uts": unix.CLONE_NEWUTS, "ipc": unix.CLONE_NEWIPC, "pid": unix.CLONE_NEWPID, "mnt": unix.CLONE_NEWNS}
	var opened []namespace
	add := func(path string, kind int) error {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("namespace of %s: %w", p.Name, err)
		}
		opened = append(opened, namespace{f, kind})
		return nil
	}
	if network {
		if err := add(p.netns, unix.CLONE_NEWNET); err != nil {
			return opened, err
		}
	}
	for _, name := range others {
		if err := add(filepath.Join("/proc", fmt.Sprint(p.first.Load()), "ns", name), kinds[name]); err != nil {
			return opened, err
		}
	}
	return opened, nil
}

// within runs f on a thread of its own that is in the place's network namespace and in the others named.
func (p *Place) within(f func() error, others ...string) error {
	if p.machine != nil {
		return fmt.Errorf("%s is a machine: nobody can enter it", p.Name)
	}
	spaces, err := p.open(true, others...)
	defer func() {
		for _, s := range spaces {
			_ = s.file.Close()
		}
	}()
	if err != nil {
		return err
	}
	return onThread(func() error {
		// The mount namespace can be entered only by a thread that shares its root and directory with no other.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		for _, s := range spaces {
			if err := unix.Setns(int(s.file.Fd()), s.kind); err != nil {
				return fmt.Errorf("enter %s (%s): %w", p.Name, s.file.Name(), err)
			}
		}
		return f()
	})
}

// InNetns runs f on a thread that is in the place's network namespace: sockets that f itself opens belong to it. The thread
// is thrown away after it. Goroutines that f starts run elsewhere.
func (p *Place) InNetns(f func() error) error {
	return p.within(f)
}

// DialContext opens a connection from the place's network namespace. The address has to be an IP literal with its port, as
// resolving a name would leave the thread. It fits grpc.WithContextDialer and http.Transport. Into a machine it takes the way past
// the network.
func (p *Place) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if p.machine != nil {
		return p.machine.DialContext(ctx, network, addr)
	}
	var conn net.Conn
	err := p.InNetns(func() error {
		var err error
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Root returns the path by which the host sees a path of the place's own file system, which it cannot of a machine's.
func (p *Place) Root(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", p.first.Load(), path)
}

// onThread runs f on an operating system thread that nothing else runs on before or after. It never takes the process's
// first thread, which /proc/self describes and which cannot be thrown away.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f() // still locked when the goroutine ends, so that the thread ends with it
	}()
	return <-done
}
