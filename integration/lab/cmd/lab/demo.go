package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// show is a demonstration that is going on.
type show struct {
	lab      *lab.Lab
	guest    *lab.Guest
	from, to *lab.Node
	asked    *lab.Replica // hvctl speaks to it
}

// demo shows the main job and checks it from outside of DebVisor: by both libvirts, both process tables and the guest's disk.
func demo(ctx context.Context, s settings) (err error) {
	begin := time.Now()
	s.replicas, s.nodes = 3, 2
	say("== A cluster on this machine: three replicas of debvisor-rpcd, two hypervisors with libvirt and debvisor-agent")
	l, err := lab.New(ctx, s.options("demo"))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			keepLogs(l)
		}
		err = errors.Join(err, l.Close())
		if err == nil {
			say("\nThe demo took %.0f s. Nothing of the cluster is left; make lab keeps one to play with.", time.Since(begin).Seconds())
		}
	}()
	d := &show{lab: l, from: l.Nodes[0], to: l.Nodes[1]}
	for _, step := range []func(context.Context) error{d.start, d.move, d.evacuate} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// start brings up the cluster and a guest, and waits until the cluster knows both.
func (d *show) start(ctx context.Context) error {
	if err := d.lab.StartCluster(ctx); err != nil {
		return err
	}
	follower, leader, err := d.lab.Follower(ctx)
	if err != nil {
		return err
	}
	d.asked = follower
	say("  %s leads; all that follows is asked of %s, which does not", leader.Name, follower.Name)
	say("\n== A guest on %s: it writes a counter to its disk, with fsync, and says it on its console", d.from.Name)
	if d.guest, err = d.from.StartGuest(ctx, lab.GuestSpec{Name: "demo"}); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = lab.Eventually(wait, "the cluster says that the guest can move", func() error {
		_, err := d.lab.Hvctl(wait, d.asked, "migrate", "plan", d.guest.Name, "--to", d.to.Name)
		return err
	})
	if err != nil {
		return err
	}
	if err := d.hvctl(ctx, "node", "list"); err != nil {
		return err
	}
	if err := d.hvctl(ctx, "vm", "list"); err != nil {
		return err
	}
	return d.hvctl(ctx, "migrate", "plan", d.guest.Name)
}

// move migrates the guest and checks what came of it.
func (d *show) move(ctx context.Context) error {
	say("\n== Before")
	before, err := d.look(d.from, d.to) //nolint:contextcheck // reading a disk ends by itself
	if err != nil {
		return err
	}
	say("\n== The move, live")
	begin := time.Now()
	if err := d.hvctl(ctx, "migrate", "run", d.guest.Name, "--to", d.to.Name); err != nil {
		return err
	}
	say("  (%.1f s)", time.Since(begin).Seconds())

	// The guest has to go on, not only to be there.
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	moved := before.Last().Counter
	if lines := d.guest.Console(); len(lines) > 0 {
		moved = lines[len(lines)-1].Counter
	}
	err = lab.Eventually(wait, "the guest goes on", func() error {
		if lines := d.guest.Console(); lines[len(lines)-1].Counter < moved+20 {
			return fmt.Errorf("its counter is at %d", lines[len(lines)-1].Counter)
		}
		return nil
	})
	if err != nil {
		return err
	}
	silence := d.guest.LongestSilence(begin)
	say("\n== After")
	after, err := d.look(d.to, d.from) //nolint:contextcheck // reading a disk ends by itself
	if err != nil {
		return err
	}
	if err := after.Check(before); err != nil {
		return fmt.Errorf("guest's disk: %w", err)
	}
	say("\nThe guest moved from %s to %s while it ran: its uptime went on from %.1f s to %.1f s, no value of its counter was lost or\n"+
		"written twice (%d values, all in order), and its console was silent for %d ms at most.",
		d.from.Name, d.to.Name, before.Last().Uptime.Seconds(), after.Last().Uptime.Seconds(), len(after), silence.Milliseconds())
	return nil
}

// evacuate empties the node that the guest has moved to, as before a reboot.
func (d *show) evacuate(ctx context.Context) error {
	say("\n== Maintenance of %s: it is emptied", d.to.Name)
	if err := d.hvctl(ctx, "node", "evacuate", d.to.Name, "--reason", "new kernel"); err != nil {
		return err
	}
	_, err := d.look(d.from, d.to) //nolint:contextcheck // reading a disk ends by itself
	return err
}

// look prints who runs the guest, by libvirt and by the process table of both nodes, with the end of its disk and console; it
// fails unless it is exactly the one that should.
func (d *show) look(runs, not *lab.Node) (lab.History, error) {
	for _, n := range []*lab.Node{d.from, d.to} {
		domain, err := n.Domain(d.guest.UUID)
		if err != nil {
			return nil, err
		}
		qemus, err := n.QEMUs(d.guest.UUID)
		if err != nil {
			return nil, err
		}
		say("  libvirt of %s: the guest is %s; QEMU processes of it: %d", n.Name, domain.State, len(qemus))
		if n == runs && (domain.State != lab.DomainRunning || !domain.Persistent || len(qemus) != 1) {
			return nil, fmt.Errorf("%s should run the guest persistently, with one process: %+v, %d", n.Name, domain, len(qemus))
		}
		if n == not && (domain.State != lab.DomainAbsent || len(qemus) != 0) {
			return nil, fmt.Errorf("%s should not know the guest: %+v, %d processes", n.Name, domain, len(qemus))
		}
	}
	history, err := d.guest.History()
	if err != nil {
		return nil, err
	}
	last := history.Last()
	say("  its disk: the counter is at %d, written %.3f s after its boot", last.Counter, last.Uptime.Seconds())
	if lines := d.guest.Console(); len(lines) > 0 {
		line := lines[len(lines)-1]
		say("  its console: counter %d, uptime %.3f s", line.Counter, line.Uptime.Seconds())
	}
	return history, nil
}

// hvctl runs the real hvctl and shows what it prints.
func (d *show) hvctl(ctx context.Context, args ...string) error {
	say("$ hvctl %s", strings.Join(args, " "))
	return d.lab.Operator.RunTo(ctx, d.lab.HvctlEnv(d.asked), os.Stdout, append([]string{d.lab.Program("hvctl")}, args...)...)
}
