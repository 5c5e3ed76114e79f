package integration

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

// killTunnel kills a migration's tunnel on a node.
func killTunnel(n *lab.Node) error {
	found, err := tunnels(n)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s has %d tunnels, want 1", n.Name, len(found))
	}
	for _, t := range found {
		err = errors.Join(err, syscall.Kill(t.Pid, syscall.SIGKILL))
	}
	return err
}

// restartLibvirt kills a node's libvirtd and starts it again.
func (c *cluster) restartLibvirt(n *lab.Node) error {
	return errors.Join(n.Libvirt.Kill(), n.StartLibvirt(c.within(30*time.Second)))
}

// TestInterrupted breaks what a move needs besides our daemons while memory is copied: the next attempt moves the guest.
func TestInterrupted(t *testing.T) {
	for _, f := range []struct {
		what string
		do   func(c *cluster, g *mover) error
	}{
		{"the source's tunnel", func(_ *cluster, g *mover) error { return killTunnel(g.from) }},
		{"the target's tunnel", func(_ *cluster, g *mover) error { return killTunnel(g.to) }},
		{"the source's libvirtd", func(c *cluster, g *mover) error { return c.restartLibvirt(g.from) }},
		{"the target's libvirtd", func(c *cluster, g *mover) error { return c.restartLibvirt(g.to) }},
	} {
		t.Run(f.what, func(t *testing.T) {
			c := plain.use(t)
			g := c.guest("web")
			a, _ := c.follower()
			c.must(g.from.SetMigrateSpeed(g.UUID, slow))
			id := g.begin(a)
			c.eventually(30*time.Second, "memory is copied", func() error {
				active, err := g.from.Migrating(g.UUID)
				if err == nil && !active {
					err = errors.New("no job")
				}
				return err
			})
			c.must(f.do(c, g))
			c.must(g.atMostOne())
			c.must(g.from.SetMigrateSpeed(g.UUID, full))
			op := c.succeeded(90*time.Second, a, id)
			if n := op.GetMigration().GetAttempt(); n != 2 {
				t.Errorf("it took %d attempts, want 2", n)
			}
			g.arrived()
		})
	}
}
