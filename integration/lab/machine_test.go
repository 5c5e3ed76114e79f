package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// hears says whether a machine gets an answer from another.
func hears(t *testing.T, n *Node, addr string) bool {
	_, err := n.Run(t.Context(), "busybox", "ping", "-c", "1", "-W", "1", addr)
	return err == nil
}

// willHear says whether a machine gets an answer from another before long: a link that was down may take a moment.
func willHear(t *testing.T, n *Node, addr string) bool {
	return Within(20*time.Second, n.Name+" hears "+addr, func() error {
		if !hears(t, n, addr) {
			return errors.New("it does not")
		}
		return nil
	}) == nil
}

func TestMachines(t *testing.T) {
	before, where := outside(t), base(t)
	l, err := New(t.Context(), Options{Replicas: 1, Machines: 2, Base: where})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, b := l.Machines[0], l.Machines[1]
	do := func(n *Node, args ...string) string {
		t.Helper()
		out, err := n.Run(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	fine := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if !willHear(t, a, "m2") || !willHear(t, b, l.Replicas[0].Name) {
		t.Fatal("the machines have no network")
	}

	// Between machines, and between a machine and another place.
	fine(Drop(t.Context(), a.Place, b.Place))
	if hears(t, a, b.Addr) || !willHear(t, a, l.Replicas[0].Addr) {
		t.Error("dropped between the machines: m1 hears m2, or not r1")
	}
	fine(Heal(t.Context(), a.Place, b.Place))
	fine(Drop(t.Context(), a.Place, l.Replicas[0].Place))
	if !willHear(t, a, b.Addr) || hears(t, a, l.Replicas[0].Addr) {
		t.Error("dropped between m1 and r1: m1 does not hear m2, or hears r1")
	}
	fine(Heal(t.Context(), a.Place, l.Replicas[0].Place))

	// Power.
	log := filepath.Join(l.Dir, "logs", "sleeper")
	p, err := a.Start(Command{Name: "sleeper", Args: []string{"sh", "-c", "echo asleep; exec sleep 1000"}, Log: log})
	fine(err)
	fine(p.Stop(t.Context()))
	fine(p.Cont())
	tasks, err := a.Tasks()
	fine(err)
	if !slices.ContainsFunc(tasks, func(t Task) bool {
		return t.Pid == p.Pid && slices.Equal(t.Args, []string{"sleep", "1000"}) && t.UID == 0
	}) {
		t.Errorf("the process table of m1 is %+v", tasks)
	}
	fine(Within(10*time.Second, "its log is written", func() error {
		if raw, err := os.ReadFile(log); err != nil || string(raw) != "asleep\n" {
			return fmt.Errorf("it is %q, %w", raw, err)
		}
		return nil
	}))
	do(a, "zfs", "create", PoolName+"/kept")
	do(a, "sh", "-c", "echo kept >/var/lib/debvisor/agent/file && sync /var/lib/debvisor/agent/file")
	boot := do(a, "cat", "/proc/sys/kernel/random/boot_id", "/etc/machine-id")
	other, err := a.Start(Command{Name: "other", Args: []string{"sleep", "2000"}})
	fine(err)
	fine(Task{Pid: other.Pid, Args: []string{"sleep"}, within: a.Machine}.Kill())
	if <-other.Done(); other.Err() == nil {
		t.Error("a process that was killed ended well")
	}
	fine(a.PowerOff(t.Context()))
	if <-p.Done(); a.On() || p.Alive() || p.Err() == nil || hears(t, b, a.Addr) {
		t.Errorf("m1 is off: on %t, its process alive %t with %v", a.On(), p.Alive(), p.Err())
	}
	if err := p.Kill(); err != nil {
		t.Errorf("killing a process that went with its machine: %v", err)
	}
	fine(a.PowerOn(t.Context()))
	if got := do(a, "zfs", "list", "-H", "-o", "name,mounted", PoolName+"/kept") + do(a, "cat", "/var/lib/debvisor/agent/file"); got != PoolName+"/kept\tyeskept" {
		t.Errorf("after power on there is %q", got)
	}
	again := do(a, "cat", "/proc/sys/kernel/random/boot_id", "/etc/machine-id")
	if was, is := strings.Fields(boot), strings.Fields(again); was[0] == is[0] || was[1] != is[1] {
		t.Errorf("boot and machine id were %v and are %v", was, is)
	}
	if !willHear(t, b, a.Addr) {
		t.Error("m1 is on again and m2 does not hear it")
	}
	fine(b.Pause())
	if hears(t, a, b.Addr) {
		t.Error("a machine that stands still answers")
	}
	fine(b.Continue())
	if !willHear(t, a, b.Addr) {
		t.Error("m2 goes on and does not answer")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	gone(t, l.Dir)
	if now := outside(t); strings.Join(now, "\n") != strings.Join(before, "\n") {
		t.Errorf("the machine has changed: %v, was %v", now, before)
	}
}

// TestMachineRunsGuestOnZvol: a hypervisor of its own kernel, libvirtd and QEMU in it, and a guest whose disk is a volume.
func TestMachineRunsGuestOnZvol(t *testing.T) {
	l, err := New(t.Context(), Options{Machines: 1, MachineLibvirt: true, Base: base(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	g, err := l.Machines[0].DefineGuest(t.Context(), GuestSpec{Name: "g", Disks: []DiskSpec{{Kind: DiskZvol}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Machines[0].Boot(g.UUID); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := Within(3*time.Minute, "the guest ticks", func() error {
		if len(g.Console()) == 0 {
			return fmt.Errorf("its console: %s", g.ConsoleText())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest ticks after %v", time.Since(begin))
	if qemus, err := l.Machines[0].QEMUs(g.UUID); err != nil || len(qemus) != 1 || qemus[0].UID == 0 {
		t.Errorf("its processes are %+v, %v", qemus, err)
	}
	h, err := g.History()
	if err := errors.Join(err, h.Check(nil)); err != nil || len(h) == 0 {
		t.Errorf("%d records: %v", len(h), err)
	}
}
