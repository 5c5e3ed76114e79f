package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// kindUp marks the labs that "up" keeps, which are those that "down" ends.
const kindUp = "up"

// readyLine is the last that a holder says.
const readyLine = "ready"

// up starts this program again as the lab's holder, passes on what it says until the lab is ready, and leaves it.
func up(ctx context.Context, s settings) error {
	holder := exec.CommandContext(ctx, "/proc/self/exe", "hold", "--bin", s.bin, "--base", s.base,
		"--replicas", fmt.Sprint(s.replicas), "--nodes", fmt.Sprint(s.nodes), "--machines", fmt.Sprint(s.machines),
		fmt.Sprintf("--ceph=%t", s.ceph))
	holder.Cancel = func() error { return holder.Process.Signal(syscall.SIGTERM) }
	holder.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	holder.Stderr = os.Stderr
	out, err := holder.StdoutPipe()
	if err != nil {
		return err
	}
	if err := holder.Start(); err != nil {
		return err
	}
	in := bufio.NewScanner(out)
	for in.Scan() {
		if in.Text() == readyLine {
			return holder.Process.Release()
		}
		say("%s", in.Text())
	}
	return errors.Join(in.Err(), holder.Wait(), errors.New("the lab did not come up"))
}

// hold owns a lab until it is told to end.
func hold(ctx context.Context, s settings) error {
	say("bringing up %d replicas, %d hypervisors and %d machines", s.replicas, s.nodes, s.machines)
	l, err := lab.New(ctx, s.options(kindUp))
	if err != nil {
		return err
	}
	err = prepare(ctx, l)
	if err == nil {
		say("%s", readyLine) // nobody listens after this
		<-ctx.Done()
	} else {
		keepLogs(l)
	}
	return errors.Join(err, l.Close())
}

func prepare(ctx context.Context, l *lab.Lab) error {
	if len(l.Replicas) > 0 {
		if err := l.StartCluster(ctx); err != nil {
			return err
		}
		if _, err := l.Leader(ctx); err != nil {
			return err
		}
	}
	if len(l.Nodes) > 0 {
		if _, err := l.Nodes[0].StartGuest(ctx, lab.GuestSpec{Name: "demo"}); err != nil {
			return err
		}
		say("  the guest demo runs on %s", l.Nodes[0].Name)
	}
	if len(l.Nodes) > 0 && l.Ceph != nil {
		if _, err := l.Nodes[0].StartGuest(ctx, lab.GuestSpec{Name: "images", Disks: []lab.DiskSpec{{Kind: lab.DiskRBD}, {Kind: lab.DiskRBD}}}); err != nil {
			return err
		}
		say("  the guest images runs on %s, from rbd:vms/images-vda and rbd:vms/images-vdb", l.Nodes[0].Name)
	}
	scripts, err := l.WriteEnter()
	if err != nil {
		return err
	}
	say("")
	say("The lab is up and stays until make lab-down.")
	if len(l.Replicas) > 0 {
		say("In it, hvctl is the operator:")
		say("  %s hvctl node list", scripts[0])
		say("  %s hvctl migrate run demo --to n2", scripts[0])
	}
	say("A shell on a place of it, where virsh and the like work:")
	say("  %s", strings.Join(scripts[1:], "\n  "))
	if l.Ceph != nil {
		say("Ceph's own commands, as its administrator:")
		say("  %s rbd -c %s ls vms", scripts[0], l.Ceph.Conf())
	}
	say("Logs: %s/logs", l.Dir)
	return nil
}

// down ends all labs that up started, and waits until nothing is left of them.
func down(ctx context.Context, s settings) error {
	owners, err := lab.Owners(s.base)
	if err != nil {
		return err
	}
	for _, o := range owners {
		if o.Kind != kindUp {
			continue
		}
		if err := syscall.Kill(o.Pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end the lab in %s: %w", o.Dir, err)
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		err := lab.Eventually(ctx, "the lab in "+o.Dir+" ends", func() error {
			if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
				return errors.Join(err, errors.New("its directory is still there"))
			}
			return nil
		})
		cancel()
		if err != nil {
			return err
		}
		say("the lab in %s is gone", o.Dir)
	}
	return lab.Sweep(ctx, s.base)
}
