package machine

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// afterExit is how long what is left of a process's children may go on writing to its output.
const afterExit = 500 * time.Millisecond

// dialLimit bounds the opening of a connection inside of a machine.
const dialLimit = 2 * time.Second

// children are the processes that the host had process 1 of a machine start.
type children struct {
	wire *wire
	env  []string

	mu       sync.Mutex // held while one starts, so that none is reaped unknown
	byPid    map[int]*child
	byNumber map[uint32]*child
}

// A child is a process or, without a pid, a connection.
type child struct {
	number uint32
	pid    int
	conn   net.Conn
	input  *queue // nil: has none
	ended  chan syscall.WaitStatus
}

func newChildren(w *wire, env []string) *children {
	return &children{wire: w, env: env, byPid: map[int]*child{}, byNumber: map[uint32]*child{}}
}

// serve does what the host asks for. It returns when the host is gone, which takes the machine's power.
func (c *children) serve() error {
	for {
		f, err := c.wire.receive()
		if err != nil {
			return fmt.Errorf("serial line: %w", err)
		}
		c.mu.Lock()
		one := c.byNumber[f.number]
		c.mu.Unlock()
		switch {
		case f.kind == kindStart || f.kind == kindDial:
			begin := c.start
			if f.kind == kindDial {
				begin = c.dial
			}
			if err := begin(f); err != nil {
				if err := c.wire.send(kindFailed, f.number, []byte(err.Error())); err != nil {
					return err
				}
			}
		case one == nil:
		case f.kind == kindSignal && one.conn != nil:
			_ = one.conn.Close() // which ends what follows it
		case f.kind == kindSignal && len(f.contents) == 1:
			c.signal(one, f.contents[0])
		case f.kind == kindIn && one.input != nil:
			one.input.put(f.contents)
		}
	}
}

// dial opens a connection. That nobody answers must not hold up the others, so there is a limit, and it is all that is local.
func (c *children) dial(f frame) error {
	var to [2]string
	if err := json.Unmarshal(f.contents, &to); err != nil {
		return err
	}
	conn, err := (&net.Dialer{Timeout: dialLimit}).Dial(to[0], to[1])
	if err != nil {
		return err
	}
	one := &child{number: f.number, conn: conn, input: newQueue()}
	c.mu.Lock()
	c.byNumber[f.number] = one
	c.mu.Unlock()
	if err := c.wire.send(kindStarted, f.number, nil); err != nil {
		return err
	}
	go func() {
		one.input.drain(conn)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	go func() {
		c.pass(f.number, kindOut, conn)
		_ = conn.Close()
		c.ended(one, 0)
	}()
	return nil
}

// ended forgets a child and tells the host how it ended.
func (c *children) ended(one *child, status int) {
	c.mu.Lock()
	delete(c.byNumber, one.number)
	c.mu.Unlock()
	if one.input != nil {
		one.input.put(nil)
	}
	_ = c.wire.send(kindExit, one.number, []byte(strconv.Itoa(status)))
}

// signal signals a child, or its group, unless it was reaped: its number may be another's then.
func (c *children) signal(one *child, b byte) {
	pid := one.pid
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byPid[pid] != one {
		return
	}
	if b&toGroup != 0 {
		pid = -pid
	}
	_ = syscall.Kill(pid, syscall.Signal(b&^toGroup)) // one that ended this moment
}

// start starts a process.
func (c *children) start(f frame) error {
	var o order
	if err := json.Unmarshal(f.contents, &o); err != nil {
		return err
	}
	if o.Dir == "" {
		o.Dir = "/"
	}
	env := append(slices.Clone(c.env), o.Env...)
	program, err := lookPath(o.Args[0], env)
	if err != nil {
		return err
	}
	in, input, err := standardInput(o.Input)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	var reads, writes [2]*os.File
	for i := range reads {
		if reads[i], writes[i], err = os.Pipe(); err != nil {
			return err
		}
		defer func() { _ = writes[i].Close() }()
	}
	attr := &syscall.ProcAttr{Dir: o.Dir, Env: env, Sys: &syscall.SysProcAttr{Setsid: true}}
	attr.Files = []uintptr{in.Fd(), writes[0].Fd(), writes[1].Fd()}
	one := &child{number: f.number, ended: make(chan syscall.WaitStatus, 1)}
	c.mu.Lock()
	one.pid, err = syscall.ForkExec(program, o.Args, attr)
	if err == nil {
		c.byPid[one.pid], c.byNumber[f.number] = one, one
	}
	c.mu.Unlock()
	if err != nil {
		_, _ = reads[0].Close(), reads[1].Close()
		if input != nil {
			_ = input.Close()
		}
		return fmt.Errorf("%s: %w", program, err)
	}
	if input != nil {
		one.input = newQueue()
		go func() {
			one.input.drain(input)
			_ = input.Close()
		}()
	}
	if err := c.wire.send(kindStarted, f.number, []byte(strconv.Itoa(one.pid))); err != nil {
		return err
	}
	go c.follow(one, reads)
	return nil
}

// standardInput returns what a process reads from and, if it is to be given anything, what that is written to.
func standardInput(given bool) (in, to *os.File, err error) {
	if given {
		return os.Pipe()
	}
	in, err = os.Open(os.DevNull)
	return in, nil, err
}

// lookPath finds a program in the PATH of an environment; of two PATHs the last one counts.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var path string
	for _, e := range env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			path = p
		}
	}
	for _, dir := range filepath.SplitList(path) {
		candidate := filepath.Join(dir, name)
		if at, err := os.Stat(candidate); err == nil && at.Mode().IsRegular() && at.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("%s: no such program in %s", name, path)
}

// follow passes on what a child says and how it ends, which is last.
func (c *children) follow(one *child, reads [2]*os.File) {
	var group sync.WaitGroup
	for i, k := range []kind{kindOut, kindErr} {
		group.Go(func() { c.pass(one.number, k, reads[i]) })
	}
	said := make(chan struct{})
	go func() { group.Wait(); close(said) }()
	status := <-one.ended
	select {
	case <-said:
	case <-time.After(afterExit):
	}
	for _, r := range reads {
		_ = r.Close()
	}
	<-said
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	c.ended(one, code)
}

func (c *children) pass(number uint32, k kind, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && c.wire.send(k, number, buf[:n]) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

// reap waits for everything that ends, also for what was left to process 1.
func (c *children) reap() {
	for {
		var info unix.Siginfo
		// First without taking it, so that start can still make it known.
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			if err == unix.ECHILD {
				time.Sleep(10 * time.Millisecond)
			}
			continue
		}
		c.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		one := c.byPid[pid]
		delete(c.byPid, pid)
		c.mu.Unlock()
		if err == nil && one != nil {
			one.ended <- status
		}
	}
}
