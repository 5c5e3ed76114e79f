package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/machine"
)

// A Command says what to run in a place.
type Command struct {
	Name string   // for messages
	Args []string // the program and its arguments
	Env  []string // "KEY=value", besides PATH, HOME and LANG, which are all that is passed on
	Log  string   // file that standard output and error are appended to; empty: discarded
}

// A Process is a running or ended child of the lab.
type Process struct {
	Name string
	Pid  int // as the host numbers it, of a machine's as the machine does
	Log  string

	cmd    *exec.Cmd
	remote *machine.Process // instead of cmd, in a machine
	within *machine.Machine
	done   chan struct{}
	err    error // how it ended, readable when done is closed
}

// Start starts a process in all of the place's namespaces.
func (p *Place) Start(c Command) (*Process, error) {
	if p.machine != nil {
		return p.startInMachine(c)
	}
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	cmd := &exec.Cmd{Path: path, Args: c.Args} // no context: it lives until the lab ends it
	proc := &Process{Name: c.Name, Log: c.Log, cmd: cmd, done: make(chan struct{})}
	cmd.Env, cmd.Dir = environment(c.Env), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.Log != "" {
		log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, fmt.Errorf("log of %s: %w", c.Name, err)
		}
		defer func() { _ = log.Close() }()
		cmd.Stdout, cmd.Stderr = log, log
	}
	if err := p.within(cmd.Start, "uts", "ipc", "pid", "mnt"); err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", c.Name, p.Name, err)
	}
	proc.watch()
	return proc, nil
}

// watch makes the process reaped when it ends.
func (p *Process) watch() {
	p.Pid = p.cmd.Process.Pid
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
}

// Run runs a command in the place until it ends and returns its standard output. The error of one that fails holds what it
// said on standard error. Cancelling the context kills it.
func (p *Place) Run(ctx context.Context, args ...string) (string, error) {
	return p.RunInput(ctx, nil, nil, args...)
}

// RunInput is Run with additional environment and with standard input.
func (p *Place) RunInput(ctx context.Context, env []string, stdin io.Reader, args ...string) (string, error) {
	var out, errs strings.Builder
	if err := p.run(ctx, env, stdin, &out, &errs, args); err != nil {
		return out.String(), fmt.Errorf("%s in %s: %w: %s", strings.Join(args, " "), p.Name, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// RunTo is Run with additional environment, and with standard output and error going to w as they come.
func (p *Place) RunTo(ctx context.Context, env []string, w io.Writer, args ...string) error {
	if err := p.run(ctx, env, nil, w, w, args); err != nil {
		return fmt.Errorf("%s in %s: %w", strings.Join(args, " "), p.Name, err)
	}
	return nil
}

func (p *Place) run(ctx context.Context, env []string, stdin io.Reader, out, errs io.Writer, args []string) error {
	if p.machine != nil {
		return p.machine.RunCommand(ctx, machine.Command{Args: args, Env: env, Stdin: stdin, Stdout: out, Stderr: errs})
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = environment(env), "/", stdin, out, errs
	cmd.WaitDelay = time.Second
	if err := p.within(cmd.Start, "uts", "ipc", "pid", "mnt"); err != nil {
		return err
	}
	return cmd.Wait()
}

func environment(extra []string) []string {
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C"}, extra...)
}

// Done is closed when the process has ended and is reaped.
func (p *Process) Done() <-chan struct{} {
	if p.remote != nil {
		return p.remote.Done()
	}
	return p.done
}

// Alive says whether the process has not ended yet; a stopped one is alive.
func (p *Process) Alive() bool {
	select {
	case <-p.Done():
		return false
	default:
		return true
	}
}

// Err returns how the process ended: nil while it runs and after an exit with status 0.
func (p *Process) Err() error {
	if p.Alive() {
		return nil
	}
	if p.remote != nil {
		return p.remote.Err()
	}
	return p.err
}

// Kill ends the process by SIGKILL and waits until it is gone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// Terminate sends SIGTERM and waits until the process is gone, or ctx is done.
func (p *Process) Terminate(ctx context.Context) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not end on SIGTERM: %w", p.Name, ctx.Err())
	}
}

// Stop makes the process stand still (SIGSTOP) and waits until it does.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if p.remote != nil {
		return standsStillInMachine(ctx, p.within, p.Pid, p.Name)
	}
	return standsStill(ctx, p.Pid, p.Name)
}

// HangUp sends SIGHUP: daemons read their configuration anew.
func (p *Process) HangUp() error { return p.signal(syscall.SIGHUP) }

// Cont lets a stopped process go on.
func (p *Process) Cont() error { return p.signal(syscall.SIGCONT) }

func (p *Process) end(sig syscall.Signal) error {
	if err := p.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.Done()
	return nil
}

func (p *Process) signal(sig syscall.Signal) error {
	if p.remote != nil {
		return p.signalInMachine(sig)
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %v to %s: %w", sig, p.Name, err)
	}
	return nil
}
