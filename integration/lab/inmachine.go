package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/machine"
)

// startInMachine is Start of a place that is a machine.
func (p *Place) startInMachine(c Command) (*Process, error) {
	proc := &Process{Name: c.Name, Log: c.Log, within: p.machine}
	command := machine.Command{Args: c.Args, Env: c.Env}
	var log *os.File
	if c.Log != "" {
		var err error
		if log, err = os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
			return nil, fmt.Errorf("log of %s: %w", c.Name, err)
		}
		command.Stdout, command.Stderr = log, log
	}
	remote, err := p.machine.Launch(command)
	if err != nil {
		if log != nil {
			_ = log.Close()
		}
		return nil, fmt.Errorf("start %s in %s: %w", c.Name, p.Name, err)
	}
	proc.remote, proc.Pid = remote, remote.Pid
	if log != nil {
		go func() {
			<-remote.Done()
			_ = log.Close()
		}()
	}
	return proc, nil
}

func (p *Process) signalInMachine(sig syscall.Signal) error {
	if !p.Alive() {
		return fmt.Errorf("signal %v to %s: %w", sig, p.Name, os.ErrProcessDone)
	}
	if p.remote.Pid != p.Pid { // it is systemd's, see startUnit
		return Task{Pid: p.Pid, within: p.within}.signalInMachine(sig)
	}
	return p.remote.Kill(sig)
}

// standsStillInMachine waits until a process in a machine that was sent SIGSTOP has stopped.
func standsStillInMachine(ctx context.Context, m *machine.Machine, pid int, name string) error {
	return Eventually(ctx, name+" stands still", func() error {
		out, err := m.Run(ctx, "sed", "-n", "s/^State:[[:space:]]*//p", fmt.Sprintf("/proc/%d/status", pid))
		if err == nil && !strings.HasPrefix(out, "T") {
			err = fmt.Errorf("its state is %s", out)
		}
		return err
	})
}

// said runs a command in a machine for who has no context, and returns what it printed.
func said(m *machine.Machine, args ...string) (string, error) {
	var out, errs bytes.Buffer
	p, err := m.Launch(machine.Command{Args: args, Stdout: &out, Stderr: &errs})
	if err != nil {
		return "", err
	}
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		return "", fmt.Errorf("in %s: %s takes more than a minute", m.Name(), strings.Join(args, " "))
	}
	if err := p.Err(); err != nil {
		return out.String(), fmt.Errorf("in %s: %w: %s", m.Name(), err, &errs)
	}
	return out.String(), nil
}

// tasksInMachine is the process table of a machine, its kernel's threads left out. Arguments with spaces in them come apart.
func (n *Node) tasksInMachine() ([]Task, error) {
	out, err := said(n.Machine, "ps", "-e", "-ww", "-o", "pid=,euid=,args=")
	if err != nil {
		return nil, fmt.Errorf("process table: %w", err)
	}
	var all []Task
	for line := range strings.Lines(out) {
		t := Task{within: n.Machine}
		fields := strings.Fields(line)
		if len(fields) < 3 || strings.HasPrefix(fields[2], "[") {
			continue
		}
		if _, err := fmt.Sscan(line, &t.Pid, &t.UID); err != nil {
			return nil, fmt.Errorf("process table of %s: %q: %w", n.Name, line, err)
		}
		t.Args = fields[2:]
		all = append(all, t)
	}
	return all, nil
}

// signalInMachine signals a process; one that has ended is no error.
func (t Task) signalInMachine(sig syscall.Signal) error {
	_, err := said(t.within, "sh", "-c", fmt.Sprintf("kill -%d %d 2>/dev/null || ! test -e /proc/%[2]d", sig, t.Pid))
	return err
}

func (t Task) goneInMachine() error {
	_, err := said(t.within, "sh", "-c", fmt.Sprintf("! test -e /proc/%[1]d || grep -q '^State:.Z' /proc/%[1]d/status", t.Pid))
	return err
}
