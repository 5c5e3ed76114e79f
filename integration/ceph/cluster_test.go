package ceph

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// rbd runs rbd as the agent's user.
func (c *Cluster) rbd(ctx context.Context, args ...string) (string, error) {
	return c.opts.Place.Run(ctx, append([]string{"rbd", "-c", c.Conf(), "--id", Agent}, args...)...)
}

func TestAgentsUserCreatesImagesAndBlocklists(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	c := New(t, Options{Pools: []string{"fast", "slow"}})
	t.Logf("up after %v", time.Since(begin))
	ctx := t.Context()
	for _, pool := range c.Pools() {
		if _, err := c.rbd(ctx, "create", "--size", "16M", pool+"/disk"); err != nil {
			t.Fatal(err)
		}
	}
	const entry = "10.1.2.3:0/1234"
	as := func(args ...string) error {
		_, err := c.opts.Place.Run(ctx, append([]string{"ceph", "-c", c.Conf(), "--id", Agent}, args...)...)
		return err
	}
	if err := as("osd", "blocklist", "add", entry, "60"); err != nil {
		t.Fatal(err)
	}
	listed, err := c.Admin(ctx, "ceph", "osd", "blocklist", "ls")
	if err != nil || !strings.Contains(listed, entry) {
		t.Fatalf("blocklist %q (%v), want %s", listed, err, entry)
	}
	if err := as("osd", "blocklist", "rm", entry); err != nil {
		t.Fatal(err)
	}
	if err := as("osd", "pool", "delete", "fast", "fast", "--yes-i-really-really-mean-it"); err == nil {
		t.Fatal("the agent's user deleted a pool")
	}
	c.keys["client."+Agent] = c.keys["client."+Libvirt]
	if err := c.Hand(c.path("etc"), c.path("etc"), Agent); err != nil {
		t.Fatal(err)
	}
	if err := as("health"); err == nil {
		t.Fatal("another's key is taken for the agent's")
	}
}

func TestImagesOutliveFaults(t *testing.T) {
	t.Parallel()
	c := New(t, Options{Store: Bluestore})
	ctx := t.Context()
	if _, err := c.rbd(ctx, "create", "--size", "16M", "rbd/disk"); err != nil {
		t.Fatal(err)
	}
	fault := func(name string, begin, end func() error) {
		at := time.Now()
		defer func() { t.Logf("%s: %v", name, time.Since(at)) }()
		if err := begin(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		if _, err := c.rbd(short, "info", "rbd/disk"); err == nil || !errors.Is(short.Err(), context.DeadlineExceeded) {
			t.Errorf("%s: a call ended while the cluster is dead: %v", name, err)
		}
		cancel()
		if err := end(); err != nil {
			t.Fatalf("%s ends: %v", name, err)
		}
		if err := c.Ready(ctx); err != nil {
			t.Fatalf("after %s: %v", name, err)
		}
		if _, err := c.rbd(ctx, "info", "rbd/disk"); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	osd, mon := c.OSDs[0], c.Mon
	fault("OSD paused", func() error { return osd.Pause(ctx) }, osd.Resume)
	fault("OSD killed", osd.Kill, osd.Start)
	fault("monitor stopped", func() error { return mon.Shutdown(ctx) }, mon.Start)
	fault("monitor paused", func() error { return mon.Pause(ctx) }, mon.Resume)
	fault("all killed", func() error { return c.Stop() }, func() error { return errors.Join(mon.Start(), osd.Start()) })
}
