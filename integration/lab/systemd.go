package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/debvisor/debvisor/integration/machine"
	"github.com/debvisor/debvisor/integration/systemd"
)

// Where a host with systemd sees what the lab gives it.
const (
	builtSeen = "/lab/built"
	// PackagesSeen is where it sees Options.Packages.
	PackagesSeen = "/lab/packages"
)

// bootSystemd starts the node as a host of its own whose process 1 is systemd, and waits until its libvirtd answers. Libvirt is as
// Debian installs it, but that owners are not remembered and locks and logs not asked for of other daemons: as on all of the lab's
// hypervisors, the guests' disks are files that look like shared ones.
func (n *Node) bootSystemd(ctx context.Context) error {
	cache, err := machine.Cache()
	if err != nil {
		return err
	}
	root, err := systemd.Root(ctx, cache)
	if err != nil {
		return err
	}
	host := systemd.Host{
		Name: n.Name, Root: root, Dir: n.dir,
		Seen: map[string]string{images: n.lab.shared(), builtSeen: n.lab.built},
		Files: map[string]string{
			"/etc/hostname":          n.Name + "\n",
			"/etc/libvirt/qemu.conf": "remember_owner = 0\nstdio_handler = \"file\"\n",
			// All that its units say is in the lab's log of the host.
			"/etc/systemd/journald.conf.d/lab.conf":           "[Journal]\nForwardToConsole=yes\nMaxLevelConsole=debug\n",
			"/etc/systemd/system/libvirtd.service.d/lab.conf": fmt.Sprintf("[Service]\nEnvironment=LD_PRELOAD=%[1]s/sharedfs.so:%[1]s/oddram.so\n", builtSeen),
		},
	}
	if n.lab.Ceph != nil {
		host.Seen["/etc/ceph"] = n.etcCeph()
	}
	if n.lab.opts.Packages != "" {
		host.Seen[PackagesSeen] = n.lab.opts.Packages
	}
	command, err := host.Command()
	if err != nil {
		return err
	}
	n.first.Store(int64(n.lab.init.Pid))
	args := append([]string{"/usr/bin/unshare", "--mount"}, command...)
	if n.outer, err = n.Start(Command{Name: "host " + n.Name, Args: args, Log: n.lab.log(n.Name)}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return Eventually(ctx, n.Name+" has booted", func() error {
		if !n.outer.Alive() {
			cancel()
			return fmt.Errorf("it ended: %w: %s", n.outer.Err(), tail(n.outer.Log))
		}
		return n.booted(ctx)
	})
}

// booted finds process 1 of the host, and fails until its systemd has started all that is to be started.
func (n *Node) booted(ctx context.Context) error {
	first, err := onlyChild(n.outer.Pid)
	if err != nil {
		return err
	}
	n.first.Store(int64(first))
	// Its status is not 0 where a unit has failed; the word is there all the same.
	state, err := n.Run(ctx, "systemctl", "is-system-running")
	switch strings.TrimSpace(state) {
	case "running":
		conn, err := n.Connect()
		if err != nil {
			return err
		}
		_, err = conn.Close()
		return err
	case "degraded":
		failed, _ := n.Run(ctx, "systemctl", "--failed", "--no-legend", "--plain")
		return fmt.Errorf("units have failed: %s", failed)
	}
	return fmt.Errorf("it is %q: %w", state, err)
}

// Unit asks the systemd of a host for properties of a unit, such as MainPID, ActiveState and NRestarts.
func (n *Node) Unit(ctx context.Context, unit string, properties ...string) (map[string]string, error) {
	out, err := n.Run(ctx, "systemctl", "show", "--property", strings.Join(properties, ","), unit)
	if err != nil {
		return nil, err
	}
	got := map[string]string{}
	for line := range strings.Lines(out) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			got[key] = value
		}
	}
	return got, nil
}

// HostFile is the path by which we see what a host with systemd has changed of its files or added to them, powered off too.
func (n *Node) HostFile(path string) string { return filepath.Join(n.dir, "upper", path) }
