package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrOff is what processes of a machine end with that has no power any more.
var ErrOff = errors.New("the machine is off")

// A Command says what to run in a machine.
type Command struct {
	Args   []string  // the program, looked for in the machine's PATH, and its arguments
	Env    []string  // "KEY=value", besides PATH, HOME and LANG
	Dir    string    // working directory; empty: /
	Stdin  io.Reader // nil: empty
	Stdout io.Writer // nil: discarded
	Stderr io.Writer // nil: discarded; may be the same as Stdout
}

// An ExitError is how a process ended that did not end well.
type ExitError struct {
	Args   []string
	Status int    // 128 and more: ended by the signal Status-128
	Stderr string // with Run only
}

// Error has the command, its status and what it said on standard error.
func (e *ExitError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%s: exit status %d: %s", strings.Join(e.Args, " "), e.Status, e.Stderr))
}

// A Process is one that was started in a machine.
type Process struct {
	Pid int // as the machine numbers it

	machine *Machine
	number  uint32
	command Command
	out     func([]byte)  // takes standard output
	started chan struct{} // closed when Pid is known, or err
	done    chan struct{}
	once    sync.Once
	err     error // readable when done is closed
}

// Start starts a process in the machine. It ends with the machine's power at the latest; cancelling ctx ends only the start.
func (m *Machine) Start(ctx context.Context, c Command) (*Process, error) {
	p, err := m.start(c, ctx.Done())
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return p, err
}

// Launch is Start for who has no context: it gives up after half a minute.
func (m *Machine) Launch(c Command) (*Process, error) {
	stop, timer := stopAfter(startLimit)
	defer timer.Stop()
	return m.start(c, stop)
}

// startLimit bounds what has no context.
const startLimit = 30 * time.Second

func stopAfter(limit time.Duration) (<-chan struct{}, *time.Timer) {
	stop := make(chan struct{})
	return stop, time.AfterFunc(limit, func() { close(stop) })
}

func (m *Machine) start(c Command, stop <-chan struct{}) (*Process, error) {
	if len(c.Args) == 0 {
		return nil, fmt.Errorf("start in %s: no command", m.spec.Name)
	}
	p := m.newProcess(c, func(raw []byte) { write(c.Stdout, raw) })
	if err := p.begin(kindStart, order{Args: c.Args, Env: c.Env, Dir: c.Dir, Input: c.Stdin != nil}, stop); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", c.Args[0], m.spec.Name, err)
	}
	if c.Stdin != nil {
		go p.feed(c.Stdin)
	}
	return p, nil
}

func (m *Machine) newProcess(c Command, out func([]byte)) *Process {
	return &Process{machine: m, command: c, out: out, started: make(chan struct{}), done: make(chan struct{})}
}

// errGivenUp is what a beginning ends with that was not waited for any longer.
var errGivenUp = errors.New("it does not answer")

// begin has the machine begin a process, or a connection, and waits until it has.
func (p *Process) begin(k kind, what any, stop <-chan struct{}) error {
	w, err := p.machine.enlist(p)
	if err != nil {
		return err
	}
	if err := w.sendJSON(k, p.number, what); err != nil {
		return err
	}
	select {
	case <-p.started:
		return nil
	case <-p.done:
		select {
		case <-p.started: // and has ended since
			return nil
		default:
			return p.err
		}
	case <-stop:
		return errGivenUp
	}
}

// Run runs a command in the machine until it ends and returns its standard output. An *ExitError of one that fails holds what it
// said on standard error. Cancelling ctx kills it, with its process group.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	var out, errs bytes.Buffer
	err := m.RunCommand(ctx, Command{Args: args, Stdout: &out, Stderr: &errs})
	if exit := (*ExitError)(nil); errors.As(err, &exit) {
		exit.Stderr = strings.TrimSpace(errs.String())
	}
	return out.String(), err
}

// RunCommand runs a command in the machine until it ends, or ctx does, which kills it with its process group.
func (m *Machine) RunCommand(ctx context.Context, c Command) error {
	p, err := m.Start(ctx, c)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		if err := p.signal(byte(syscall.SIGKILL) | toGroup); err != nil {
			return errors.Join(ctx.Err(), err)
		}
		// A machine that is paused answers nothing.
		return fmt.Errorf("%s in %s: %w", c.Args[0], m.spec.Name, ctx.Err())
	}
	if p.err != nil {
		return fmt.Errorf("in %s: %w", m.spec.Name, p.err)
	}
	return nil
}

// Kill sends the process a signal.
func (p *Process) Kill(sig syscall.Signal) error { return p.signal(byte(sig)) }

// toGroup in a signal's byte has the process's group get it.
const toGroup = 128

func (p *Process) signal(b byte) error {
	w, err := p.machine.line()
	if err == nil {
		err = w.send(kindSignal, p.number, []byte{b})
	}
	if err != nil {
		return fmt.Errorf("signal %d to %s in %s: %w", b&^toGroup, p.command.Args[0], p.machine.spec.Name, err)
	}
	return nil
}

// Done is closed when the process has ended and all that it said has been written.
func (p *Process) Done() <-chan struct{} { return p.done }

// Alive says whether the process has not ended yet.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err returns how the process ended: nil while it runs and after status 0, ErrOff when the machine's power went, else an *ExitError.
func (p *Process) Err() error {
	if p.Alive() {
		return nil
	}
	return p.err
}

// feed gives the process what a reader has, and then the end of its standard input.
func (p *Process) feed(from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		w, off := p.machine.line()
		if off != nil || n > 0 && w.send(kindIn, p.number, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = w.send(kindIn, p.number, nil)
			return
		}
	}
}

func (p *Process) end(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.done)
	})
}

// take handles a frame about the process and says whether it was the last one.
func (p *Process) take(f frame) (last bool) {
	switch f.kind {
	case kindStarted:
		p.Pid, _ = strconv.Atoi(string(f.contents))
		close(p.started)
	case kindOut:
		p.out(f.contents)
	case kindErr:
		write(p.command.Stderr, f.contents)
	case kindFailed:
		p.end(errors.New(string(f.contents)))
		return true
	case kindExit:
		status, err := strconv.Atoi(string(f.contents))
		if err == nil && status != 0 {
			err = &ExitError{Args: p.command.Args, Status: status}
		}
		p.end(err)
		return true
	}
	return false
}

// write gives a writer what a process said. One that takes no more is left behind, as a closed pipe would be.
func write(w io.Writer, raw []byte) {
	if w != nil {
		_, _ = w.Write(raw)
	}
}
