package lab

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"
)

// TestMovedMemory moves a guest that keeps writing to the same pages, slowly and in several rounds, by libvirt's own means. With
// memory of a size that QEMU is not good at (see oddram.c) the guest's kernel broke down in two runs of three.
func TestMovedMemory(t *testing.T) {
	l, err := New(t.Context(), Options{Nodes: 2, Base: base(t), LibvirtTCP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	from, to := l.Nodes[0], l.Nodes[1]
	g, err := from.StartGuest(t.Context(), GuestSpec{Name: "g", Period: 10 * time.Millisecond, KeptPages: 160})
	if err != nil {
		t.Fatal(err)
	}
	oddMemory(t, from, g)

	// The copy ends when no more is left than can be sent in a millisecond, which the guest does not let happen at this speed.
	err = from.withDomain(g.UUID, func(dom *libvirt.Domain) error {
		return errors.Join(dom.MigrateSetMaxDowntime(1, 0), dom.MigrateSetMaxSpeed(12, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	moved := make(chan error, 1)
	go func() {
		out, err := from.Run(t.Context(), "virsh", "-c", "qemu:///system", "migrate", "--live", "--persistent", "--undefinesource", "--p2p",
			g.UUID, fmt.Sprintf("qemu+tcp://%s/system", to.Addr))
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		moved <- err
	}()
	rounds := uint64(0)
	err = Within(time.Minute, "several rounds", func() error {
		if len(moved) > 0 {
			return nil
		}
		err := from.withDomain(g.UUID, func(dom *libvirt.Domain) error {
			job, err := dom.GetJobStats(0)
			if err == nil && job.MemIterationSet {
				rounds = job.MemIteration
			}
			return err
		})
		if rounds < 5 {
			return fmt.Errorf("%d rounds: %w", rounds, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := from.SetMigrateSpeed(g.UUID, 1<<15); err != nil && len(moved) == 0 {
		t.Error(err)
	}
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rounds", rounds)
	begin := len(g.Console())
	err = Within(20*time.Second, "the guest goes on", func() error {
		if n := len(g.Console()) - begin; n < 50 {
			return fmt.Errorf("%d new values", n)
		}
		return nil
	})
	if trouble := g.Trouble(0); err != nil || trouble != "" {
		t.Fatalf("%q %v", trouble, err)
	}
	oddMemory(t, to, g)
}

// oddMemory checks that the guest's QEMU has memory of a size that it copies rightly.
func oddMemory(t *testing.T, n *Node, g *Guest) {
	t.Helper()
	qemus, err := n.QEMUs(g.UUID)
	if err != nil || len(qemus) != 1 {
		t.Fatalf("QEMUs of %s: %v %v", n.Name, qemus, err)
	}
	args := qemus[0].Args
	if i := slices.Index(args, "-m"); i < 0 || args[i+1] != fmt.Sprintf("%dk", 128<<10+8) {
		t.Errorf("QEMU of %s has not 128 MiB and 8 KiB: %q", n.Name, args)
	}
	backend := fmt.Sprintf(`"id":"pc.ram","size":%d}`, 128<<20+8<<10)
	if !slices.ContainsFunc(args, func(arg string) bool { return strings.Contains(arg, backend) }) {
		t.Errorf("QEMU of %s has no memory with %s: %q", n.Name, backend, args)
	}
}
