package ceph

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// here is the Place of this process's own namespaces.
type here struct{}

// Run is Place's.
func (here) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errs, time.Second
	cmd.Env = append(os.Environ(), "CEPH_ARGS=")
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// Start is Place's. The process dies with this one, however it ends: the kernel sends it the signal when the thread that started
// it ends, so that thread is kept.
func (here) Start(_, log string, args ...string) (Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // it lives until the cluster is stopped
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Env = append(os.Environ(), "CEPH_ARGS=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	p := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- errors.Join(err, file.Close())
		if err == nil {
			p.err = cmd.Wait()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// child is a process that here has started.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // readable when done is closed
}

func (p *child) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *child) Err() error {
	if p.Alive() {
		return nil
	}
	return p.err
}

func (p *child) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

func (p *child) Terminate(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s does not end on SIGTERM: %w", p.cmd.Path, ctx.Err())
	}
}

// Stop waits until every thread stands still: until then a call may still be answered.
func (p *child) Stop(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		stopped, err := stands(p.cmd.Process.Pid)
		if stopped || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not stand still: %w", p.cmd.Path, ctx.Err())
		case <-tick.C:
		}
	}
}

func (p *child) Cont() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// stands says whether all threads of a process are stopped.
func stands(pid int) (bool, error) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, thread := range threads {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, thread.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // it ended
		}
		if err != nil {
			return false, err
		}
		if i := bytes.LastIndexByte(stat, ')'); i < 0 || i+2 >= len(stat) || stat[i+2] != 'T' {
			return false, nil
		}
	}
	return err == nil, err
}
