package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"
)

// bootID is the boot id that processes of the node see.
func bootID(t *testing.T, n *Node) string {
	t.Helper()
	id, err := n.Run(t.Context(), "cat", "/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestDisks runs one guest with a disk of each kind, shuts it down by its power button, and boots its node anew.
func TestDisks(t *testing.T) {
	where := base(t)
	l, err := New(t.Context(), Options{Nodes: 2, Base: where})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	n := l.Nodes[0]
	g, err := n.StartGuest(t.Context(), GuestSpec{Name: "g", Disks: []DiskSpec{
		{Kind: DiskLocal}, {Kind: DiskLocal, Format: "qcow2", MiB: 20}, {Kind: DiskShared}, {Kind: DiskDevice}, {Kind: DiskLocal, Media: true, MiB: 1},
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = Within(20*time.Second, "ten values", func() error {
		if h, err := g.History(); err != nil || len(h) < 10 {
			return fmt.Errorf("%d: %w", len(h), err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before, err := g.History()
	if err := errors.Join(err, before.Check(nil)); err != nil {
		t.Error(err)
	}
	for _, d := range g.Disks {
		if d.Media {
			continue
		}
		if h, err := g.HistoryAt(n, d); err != nil || len(h) < len(before) || h.Check(before) != nil {
			t.Errorf("%s has %d records of %d: %v %v", d.Target, len(h), len(before), err, h.Check(before))
		}
	}
	if err := n.withDomain(g.UUID, (*libvirt.Domain).Shutdown); err != nil {
		t.Fatal(err)
	}
	err = Within(20*time.Second, "the guest shuts down", func() error {
		if d, err := n.Domain(g.UUID); err != nil || d.State != DomainShutOff {
			return fmt.Errorf("it is %v, %w", d, err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v: %s", err, g.ConsoleText())
	}
	id, other := bootID(t, n), bootID(t, l.Nodes[1])
	if err := errors.Join(n.PowerOff(t.Context()), n.PowerOn(t.Context())); err != nil {
		t.Fatal(err)
	}
	if now := bootID(t, n); now == id || now == other || strings.TrimSpace(now) == "" {
		t.Errorf("the boot id was %s, the other node's is %s, and now it is %s", id, other, now)
	}
	if err := errors.Join(n.Boot(g.UUID), g.Ticks(t.Context())); err != nil {
		t.Fatal(err)
	}
	after, err := g.History()
	if err := errors.Join(err, after.CheckRestarted(before)); err != nil {
		t.Error(err)
	}
	if after.Check(before) == nil {
		t.Error("a guest that was started anew goes unnoticed")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	gone(t, l.Dir)
	noLoops(t, l.Dir)
}

// noLoops checks that no loop device has a file below a directory.
func noLoops(t *testing.T, dir string) {
	t.Helper()
	for i := range 64 {
		file, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", i))
		if err == nil && strings.HasPrefix(string(file), dir+"/") {
			t.Errorf("loop device %d is left with %s", i, file)
		}
	}
}

// TestPartitions takes links down and drops packets, and takes both back.
func TestPartitions(t *testing.T) {
	where := base(t)
	l, err := New(t.Context(), Options{Replicas: 1, Nodes: 2, Base: where})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, b, r := l.Nodes[0].Place, l.Nodes[1].Place, l.Replicas[0].Place
	hear := func(p, q *Place) bool {
		_, err := p.Run(t.Context(), "bash", "-c", "timeout 1 bash -c '</dev/tcp/"+q.Addr+"/1' 2>&1 | grep -q refused")
		return err == nil
	}
	for _, step := range []struct {
		what string
		do   func() error
		ab   bool // a and b hear each other
		ar   bool // a and r do
	}{
		{"whole", func() error { return nil }, true, true},
		{"dropped", func() error { return Drop(t.Context(), a, b) }, false, true},
		{"healed", func() error { return Heal(t.Context(), a, b) }, true, true},
		{"unplugged", func() error { return a.LinkDown(t.Context()) }, false, false},
		{"plugged in", func() error { return a.LinkUp(t.Context()) }, true, true},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		err := Within(10*time.Second, step.what, func() error { // the neighbours have to be found again
			if ab, ba, ar := hear(a, b), hear(b, a), hear(a, r); ab != step.ab || ba != step.ab || ar != step.ar {
				return fmt.Errorf("a hears b %t, b hears a %t, a hears r %t", ab, ba, ar)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
