package tunnel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

const (
	// systemdSocket is where systemd itself listens, for root, with or without
	// a message bus.
	systemdSocket = "/run/systemd/private"
	scopeWithin   = 5 * time.Second
)

// underSystemd tells whether this process is a service of systemd's: what it
// starts is then part of the service, and may end with it.
func underSystemd() bool {
	if os.Getenv("INVOCATION_ID") == "" {
		return false
	}
	_, err := os.Stat(systemdSocket)
	return err == nil
}

// scopeOf is the unit of an end's own.
func scopeOf(l layout) string { return "debvisor-tunnel-" + filepath.Base(l.dir) + ".scope" }

// ownScope moves a child out of the agent's service into a scope of its own, so
// that a restart, an upgrade or a stop of the service leaves it alone. It returns
// once the kernel says that the child is there.
func ownScope(ctx context.Context, l layout, taskID string, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, scopeWithin)
	defer cancel()
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connecting to systemd: %w", err)
	}
	defer conn.Close()
	name := scopeOf(l)
	if _, err := conn.StartTransientUnitContext(ctx, name, "fail", []dbus.Property{
		dbus.PropDescription("DebVisor tunnel of " + taskID),
		dbus.PropPids(uint32(pid)),
		{Name: "CollectMode", Value: godbus.MakeVariant("inactive-or-failed")}, // nothing is left of one that failed
	}, nil); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	for !inUnit(pid, name) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("starting %s: %w", name, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// inUnit tells whether the kernel has a process in a unit's control group.
func inUnit(pid int, unit string) bool {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(groups)) {
		if strings.HasSuffix(strings.TrimSpace(line), "/"+unit) {
			return true
		}
	}
	return false
}
