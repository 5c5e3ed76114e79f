package lab

import (
	"testing"

	"github.com/debvisor/debvisor/integration/ceph"
)

// TestGuestOnCeph runs a guest with two images, reads both from outside, and has a node go without Ceph.
func TestGuestOnCeph(t *testing.T) {
	ctx := t.Context()
	l, err := New(ctx, Options{Nodes: 1, Ceph: &ceph.Options{Store: ceph.Bluestore}, Base: base(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	n := l.Nodes[0]
	g, err := n.StartGuest(ctx, GuestSpec{Name: "web", Disks: []DiskSpec{{Kind: DiskRBD}, {Kind: DiskRBD}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Ticks(ctx); err != nil {
		t.Fatal(err)
	}
	before, err := g.History()
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Check(nil); err != nil || len(before) == 0 {
		t.Fatalf("%d records: %v", len(before), err)
	}
	for _, spec := range []string{"rbd/web-vda@now", "rbd/web-vdb@now"} {
		if _, err := l.Ceph.Admin(ctx, "rbd", "snap", "create", "--no-progress", spec); err != nil {
			t.Fatal(err)
		}
		h, err := l.HistoryIn(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Check(nil); err != nil || len(h) < len(before) {
			t.Errorf("%s holds %d records, of at least %d: %v", spec, len(h), len(before), err)
		}
	}
	seen := func() error { _, err := n.Run(ctx, "rbd", "--id", ceph.Agent, "info", "rbd/web-vda"); return err }
	if err := seen(); err != nil {
		t.Error(err)
	}
	if err := n.TakeCeph(); err != nil {
		t.Fatal(err)
	}
	if err := seen(); err == nil {
		t.Error("the node still sees images")
	}
	if err := g.Ticks(ctx); err != nil {
		t.Errorf("after the node's configuration was taken away: %v", err)
	}
}
