package zfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

const (
	// maxOutput is what an answer that is not streamed may have, maxErrors what is
	// kept of a command's complaints, bytes.
	maxOutput, maxErrors = 4 << 20, 16 << 10
	// maxLine is the longest line of a listing, bytes: that of a snapshot with
	// thousands of clones.
	maxLine = 4 << 20
	// patience is how long a command that was killed may take to end. One that waits
	// in the kernel for a pool that hangs cannot be killed, and is left to itself.
	patience = 10 * time.Second
	// maxLeft is how many commands may hang so before no more are started: a pool that
	// is suspended for days must not fill the host with them.
	maxLeft = 16
	// pipeSize is the room of a pipe, bytes.
	pipeSize = 1 << 20
)

// command is a run of zfs or zpool.
type command struct {
	program string
	args    []string
	// about is the dataset that an error names where zfs itself does not.
	about  string
	stdin  io.Reader
	stdout io.Writer
	// bearable tells that what the command complains of is no error; nil: all is one.
	bearable func(complaints string) bool
	// ours is our end of a pipe, which does not wait for ever for a command that cannot
	// be killed.
	ours *os.File
}

// verb is what the command does, such as "zfs send".
func (c command) verb() string { return c.program + " " + c.args[0] }

// meaning is what verb the words of its errors are to be read for.
func (c command) meaning() string {
	if c.args[0] == "send" && slices.Contains(c.args, "-t") {
		return "resume"
	}
	return c.args[0]
}

// running is a command that has been started.
type running struct {
	command
	z *ZFS
	// ended is closed when the command's context ends; why says why.
	ended  <-chan struct{}
	why    func() error
	cmd    *exec.Cmd
	stderr beginning
	done   chan struct{}
	err    error // of the command; written before done is closed
}

// start starts a command, in a process group of its own, which is killed when ctx
// ends.
func (z *ZFS) start(ctx context.Context, c command) (*running, error) {
	if n := z.left.Load(); n >= maxLeft {
		return nil, errdefs.New(errdefs.Unavailable, CodePoolSuspended, "%d commands of ZFS hang in the kernel, as with a pool that is suspended: no more are started", n)
	}
	ctx, span := obs.Start(ctx, c.verb())
	span.Set("debvisor.dataset", c.about)
	r := &running{command: c, z: z, ended: ctx.Done(), why: ctx.Err, done: make(chan struct{})}
	r.cmd = exec.CommandContext(ctx, c.program, c.args...)
	r.cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=" + os.Getenv("PATH")}
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = c.stdin, c.stdout, &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.cmd.Cancel = r.kill
	r.cmd.WaitDelay = patience
	if err := r.cmd.Start(); err != nil {
		span.EndAs(CodeZFS)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", c.verb(), ctx.Err())
		}
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errdefs.New(errdefs.Unimplemented, CodeAbsent, "this host has no ZFS: there is no command %s", c.program).WithCause(err)
		}
		return nil, fmt.Errorf("starting %s: %w", c.verb(), err)
	}
	stop := context.AfterFunc(ctx, func() {
		if c.ours != nil {
			_ = c.ours.SetDeadline(time.Now().Add(patience))
		}
	})
	go func() {
		r.err = r.cmd.Wait()
		if r.err != nil {
			span.EndAs(CodeZFS)
		} else {
			span.EndAs("")
		}
		stop()
		close(r.done)
	}()
	return r, nil
}

func (r *running) kill() error {
	err := syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// wait waits for the end and gives what zfs refused, or ctx's error where that
// ended it.
func (r *running) wait() error {
	select {
	case <-r.done:
	case <-r.ended:
		select {
		case <-r.done:
		case <-time.After(patience):
			r.z.log.Warn("a command hangs in the kernel and is left to itself", "command", r.verb(), "dataset", r.about, "pid", r.cmd.Process.Pid)
			r.z.left.Add(1)
			go func() { // the kernel says how long
				<-r.done
				r.z.left.Add(-1)
			}()
			return fmt.Errorf("%s: killed, and hangs: %w", r.verb(), r.why())
		}
	}
	if r.err == nil {
		return nil
	}
	if r.why() != nil {
		return fmt.Errorf("%s: %w", r.verb(), r.why())
	}
	if r.cmd.ProcessState.ExitCode() == 1 && r.bearable != nil && r.stderr.Len() < maxErrors && r.bearable(r.stderr.String()) {
		return nil
	}
	err := translate(r.meaning(), r.about, r.stderr.String(), r.err)
	r.z.log.Debug("zfs refused", "command", r.verb(), "dataset", r.about, "error", err)
	return err
}

// failed is how the process ended, nil where it has not or ended well.
func (r *running) failed() error {
	select {
	case <-r.done:
		return r.err
	default:
		return nil
	}
}

// output runs a command and gives what it prints.
func (z *ZFS) output(ctx context.Context, c command) (string, error) {
	out := limited{left: maxOutput}
	c.stdout = &out
	err := z.do(ctx, c)
	if err == nil && out.left < 0 {
		err = errdefs.New(errdefs.Internal, CodeZFS, "%s printed more than %d bytes", c.verb(), maxOutput)
	}
	return out.String(), err
}

// do runs a command.
func (z *ZFS) do(ctx context.Context, c command) error {
	r, err := z.start(ctx, c)
	if err != nil {
		return err
	}
	return r.wait()
}

// lines runs a command and hands each line that it prints to yield, whose error
// ends the command.
func (z *ZFS) lines(ctx context.Context, c command, yield func(string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read, write, err := pipe()
	if err != nil {
		return fmt.Errorf("a pipe for %s: %w", c.verb(), err)
	}
	defer func() { _ = read.Close() }()
	c.stdout, c.ours = write, read
	r, err := z.start(ctx, c)
	_ = write.Close()
	if err != nil {
		return err
	}
	if err := eachLine(read, yield); err != nil {
		cancel()
		_ = r.wait()
		return err
	}
	return r.wait()
}

func eachLine(from io.Reader, yield func(string) error) error {
	s := bufio.NewScanner(from)
	s.Buffer(make([]byte, 64<<10), maxLine)
	for s.Scan() {
		if err := yield(s.Text()); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("reading a listing: %w", err)
	}
	return nil
}

// fields hands yield the fields of each line of a listing, whose number is known.
func (z *ZFS) fields(ctx context.Context, c command, number int, yield func([]string) error) error {
	return z.lines(ctx, c, func(line string) error {
		f := strings.Split(line, "\t")
		if len(f) != number {
			return errdefs.New(errdefs.Internal, CodeZFS, "%s lists a line of %d fields, not %d: %q", c.verb(), len(f), number, shortened(line))
		}
		return yield(f)
	})
}

// pipe is a pipe with room enough that neither end waits for the other at every
// turn.
func pipe() (read, write *os.File, err error) {
	read, write, err = os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	// Not by Fd, which would make our end wait for ever.
	if conn, err := read.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) {
			// Past the limit of pipe-user-pages-soft it keeps the room that it has.
			_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize)
		})
	}
	return read, write, nil
}

// limited keeps what it is given up to a limit; left is negative when that was
// passed.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if take := min(len(p), max(l.left, 0)); take > 0 {
		l.Buffer.Write(p[:take])
	}
	l.left -= len(p)
	return len(p), nil
}

// beginning keeps the beginning of what it is given; zfs says first what is wrong.
type beginning struct{ bytes.Buffer }

func (b *beginning) Write(p []byte) (int, error) {
	if take := min(len(p), maxErrors-b.Len()); take > 0 {
		b.Buffer.Write(p[:take])
	}
	return len(p), nil
}
