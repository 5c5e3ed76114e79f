package lab

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestGuestWithAgent: what a freeze does to a guest of ours, asked of libvirt past our daemons.
func TestGuestWithAgent(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := New(ctx, Options{Nodes: 1, Base: base(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	n := l.Nodes[0]
	g, err := n.StartGuest(ctx, GuestSpec{Name: "quiet", Agent: true, Disks: []DiskSpec{{}, {}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := Eventually(ctx, "the agent answers", func() error {
		out, err := n.Run(ctx, "virsh", "-q", "guestinfo", "--filesystem", g.UUID)
		if err == nil && !strings.Contains(out, "ram0") {
			err = fmt.Errorf("it has no file system: %s", out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if out, err := n.Run(ctx, "virsh", "domfsfreeze", g.UUID); err != nil || !strings.Contains(out, "Froze 1 filesystem") {
		t.Fatalf("%s: %v", out, err)
	}
	if text := g.ConsoleText(); !strings.Contains(text, "tick held") || strings.Contains(text, "goes on") {
		t.Errorf("frozen, it says %s", text)
	}
	if out, err := n.Run(ctx, "virsh", "domfsthaw", g.UUID); err != nil || !strings.Contains(out, "Thawed 1 filesystem") {
		t.Fatalf("%s: %v", out, err)
	}
	if err := g.Ticks(ctx); err != nil {
		t.Error(err)
	}
	if text := g.ConsoleText(); !strings.Contains(text, "goes on") || g.Trouble(0) != "" {
		t.Errorf("thawed, it says %s %s", text, g.Trouble(0))
	}
}
