package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/machine"
)

// procStat is what the lab reads of /proc/<pid>/stat.
type procStat struct {
	state byte
	start string // clock ticks since boot; with the pid it names a process for ever
}

func statOf(pid int) (procStat, error) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return procStat{}, err
	}
	// The command's name is in parentheses and may hold anything.
	_, rest, found := bytes.Cut(raw, []byte(") "))
	if i := bytes.LastIndex(raw, []byte(") ")); i >= 0 {
		rest = raw[i+2:]
	}
	fields := strings.Fields(string(rest))
	if !found || len(fields) < 20 {
		return procStat{}, fmt.Errorf("process %d: cannot read its stat", pid)
	}
	return procStat{state: fields[0][0], start: fields[19]}, nil
}

// A Task is a line of the process table.
type Task struct {
	Pid  int // as the host numbers it, of a machine's as the machine does
	UID  int // effective user
	Args []string

	start  string // see procStat
	within *machine.Machine
}

// Kill ends the process by SIGKILL and waits until it is gone. One that has ended already is no error.
func (t Task) Kill() error {
	if err := t.signal(syscall.SIGKILL); err != nil {
		return err
	}
	return Within(10*time.Second, t.Args[0]+" is gone", func() error {
		if t.within != nil {
			return t.goneInMachine()
		}
		if sameProcess(t.Pid, t.start) {
			return errors.New("it is not")
		}
		return nil
	})
}

// Stop makes the process stand still (SIGSTOP) and waits until it does.
func (t Task) Stop(ctx context.Context) error {
	if err := t.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if t.within != nil {
		return standsStillInMachine(ctx, t.within, t.Pid, t.Args[0])
	}
	return standsStill(ctx, t.Pid, t.Args[0])
}

// Cont lets a stopped process go on.
func (t Task) Cont() error { return t.signal(syscall.SIGCONT) }

func (t Task) signal(sig syscall.Signal) error {
	if t.within != nil {
		return t.signalInMachine(sig)
	}
	if !sameProcess(t.Pid, t.start) {
		return nil
	}
	if err := syscall.Kill(t.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %v to %s: %w", sig, t.Args[0], err)
	}
	return nil
}

// standsStill waits until a process that was sent SIGSTOP has stopped.
func standsStill(ctx context.Context, pid int, name string) error {
	return Eventually(ctx, name+" stands still", func() error {
		stat, err := statOf(pid)
		if err != nil {
			return err
		}
		if stat.state != 'T' {
			return fmt.Errorf("its state is %c", stat.state)
		}
		return nil
	})
}

// tasks returns the processes of a PID namespace, not those of namespaces inside it.
func tasks(pidns string) ([]Task, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var found []Task
	for _, dir := range dirs {
		// A process may end between any two of these reads; it is then in nobody's table.
		ns, err := os.Readlink(dir + "/ns/pid")
		if err != nil || ns != pidns {
			continue
		}
		task, err := taskOf(dir)
		if errors.Is(err, os.ErrNotExist) || len(task.Args) == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, task)
	}
	return found, nil
}

func taskOf(dir string) (Task, error) {
	var t Task
	var err error
	if t.Pid, err = strconv.Atoi(filepath.Base(dir)); err != nil {
		return t, err
	}
	stat, err := statOf(t.Pid)
	if err != nil {
		return t, os.ErrNotExist
	}
	t.start = stat.start
	cmdline, err := os.ReadFile(dir + "/cmdline")
	if err != nil || len(cmdline) == 0 {
		return t, os.ErrNotExist // ended, or a zombie
	}
	t.Args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return t, os.ErrNotExist
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Uid:" {
			t.UID, err = strconv.Atoi(f[2])
			return t, err
		}
	}
	return t, fmt.Errorf("%s: no user", dir)
}

// onlyChild returns the pid of the one child that a process of one thread has.
func onlyChild(pid int) (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}
