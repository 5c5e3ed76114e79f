package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/integration/machine"
)

// PoolName is the pool that every machine of the lab has.
const PoolName = "tank"

// What a machine keeps besides its pool is on a disk of its own.
const (
	poolDevice  = "/dev/ubda"
	stateDevice = "/dev/ubdb"
	stateDir    = "/var/lib/debvisor"
	stateMiB    = 512
)

// startMachines boots all machines.
func (l *Lab) startMachines(ctx context.Context) error {
	l.Machines = make([]*Node, l.opts.Machines)
	failed := make([]error, l.opts.Machines)
	var group sync.WaitGroup
	for i := range l.Machines {
		group.Go(func() {
			place := newPlace(fmt.Sprintf("m%d", i+1), fmt.Sprintf(machineAddr, i+31), l.init.Pid, "")
			place.bridge = l.Operator
			n := &Node{Place: place, lab: l, dir: filepath.Join(l.Dir, place.Name)}
			n.Agent = newAgent(n)
			n.Agent.Data = filepath.Join(stateDir, "agent")
			l.Machines[i] = n
			if err := n.bootMachine(ctx); err != nil {
				failed[i] = fmt.Errorf("machine %s: %w", n.Name, err)
			}
		})
	}
	group.Wait()
	return errors.Join(failed...)
}

// bootMachine boots a machine for the first time, which makes its file systems.
func (n *Node) bootMachine(ctx context.Context) error {
	l := n.lab
	if err := errors.Join(os.MkdirAll(n.logs(), 0o755), os.MkdirAll(n.etcCeph(), 0o755)); err != nil {
		return err
	}
	hosts, err := os.ReadFile(filepath.Join(l.Dir, "hosts"))
	if err != nil {
		return err
	}
	s := machine.Spec{
		Name: n.Name, MemoryMiB: l.opts.MachineMiB, Dir: n.dir, Log: l.log(n.Name),
		Disks:   []machine.Disk{{MiB: l.opts.MachinePoolMiB}, {MiB: stateMiB}},
		Tap:     "to-" + n.Name,
		NetNS:   l.Operator.netns,
		Addr:    n.Addr + "/24",
		Files:   map[string]string{"/etc/hosts": string(hosts), "/etc/machine-id": strings.ReplaceAll(uuid.NewString(), "-", "") + "\n"},
		Visible: visible(l.opts.Bin, l.built),
		Shared:  []string{l.shared(), n.logs(), n.etcCeph()},
		Fresh:   []string{"/var/lib/libvirt", "/etc/ceph"},
	}
	if l.opts.MachineUnit != "" {
		unit, err := os.ReadFile(l.opts.MachineUnit)
		if err != nil {
			return err
		}
		s.Systemd, s.Files[filepath.Join(machine.UnitsDir, agentUnit)] = true, string(unit)
	}
	if s.MemoryMiB == 0 && l.opts.MachineLibvirt {
		s.MemoryMiB = 1536
	}
	if s.Disks[0].MiB == 0 {
		s.Disks[0].MiB = 2048
	}
	if n.Machine, err = machine.Boot(ctx, s); err != nil {
		return err
	}
	n.machine = n.Machine
	if _, err := n.Run(ctx, "mkfs.ext4", "-q", stateDevice); err != nil {
		return err
	}
	if _, err := n.Run(ctx, "zpool", "create", "-o", "ashift=12", PoolName, poolDevice); err != nil {
		return err
	}
	return n.mountMachine(ctx)
}

// logs is the directory on the host of the logs of a machine's libvirt.
func (n *Node) logs() string { return filepath.Join(n.dir, "log") }

// visible leaves out what is not set.
func visible(paths ...string) []string {
	var all []string
	for _, path := range paths {
		if path != "" {
			all = append(all, path)
		}
	}
	return all
}

// mountMachine does what a host's own init would do after it has found its disks.
func (n *Node) mountMachine(ctx context.Context) error {
	// What the host reads, guests' consoles and logs, is written at once.
	const script = `set -eu
mount "$1" "$2"
mkdir -p "$2/agent" "$2/libvirt/etc" "$2/libvirt/lib/qemu" /var/log/libvirt /var/cache/libvirt
mount --bind "$2/libvirt/lib" /var/lib/libvirt
mkdir -p /var/lib/libvirt/{images,disks}
mount --bind "$3" /var/lib/libvirt/images
mount --bind "$4" /var/log/libvirt
mount -o remount,sync "$3"
mount -o remount,sync "$4"
mount --bind "$2/libvirt/etc" /etc/libvirt
mount --bind "$5" /etc/ceph`
	if _, err := n.Run(ctx, "bash", "-c", script, "mount", stateDevice, stateDir, n.lab.shared(), n.logs(), n.etcCeph()); err != nil {
		return err
	}
	if !n.lab.opts.MachineLibvirt {
		return nil
	}
	if err := n.configureMachine(ctx); err != nil {
		return err
	}
	return n.StartLibvirt(ctx)
}

// configureMachine writes libvirt's configuration, as configure does for other nodes.
func (n *Node) configureMachine(ctx context.Context) error {
	daemon := []string{
		fmt.Sprintf("host_uuid = %q", uuid.NewSHA1(uuid.Nil, []byte(n.dir))),
		`unix_sock_group = "libvirt"`, `unix_sock_ro_perms = "0777"`, `unix_sock_rw_perms = "0770"`,
		`auth_unix_ro = "none"`, `auth_unix_rw = "none"`, `listen_tls = 0`,
	}
	qemu := []string{
		`user = "libvirt-qemu"`, `group = "kvm"`, `dynamic_ownership = 1`, `remember_owner = 0`, `namespaces = []`,
		`security_driver = "none"`, `cgroup_controllers = []`, `stdio_handler = "file"`,
	}
	for name, lines := range map[string][]string{"libvirtd.conf": daemon, "qemu.conf": qemu} {
		text := strings.NewReader(strings.Join(lines, "\n") + "\n")
		if _, err := n.RunInput(ctx, nil, text, "dd", "status=none", "of=/etc/libvirt/"+name); err != nil {
			return err
		}
	}
	return n.forward()
}

// powerOnMachine boots a machine again, whose power went. It finds its pool as a host does that lost its power.
func (n *Node) powerOnMachine(ctx context.Context) error {
	err := n.Machine.PowerOn(ctx)
	if err == nil {
		_, err = n.Run(ctx, "zpool", "import", "-d", "/dev", PoolName)
	}
	if err == nil {
		err = n.mountMachine(ctx)
	}
	if err != nil {
		return fmt.Errorf("power on %s: %w", n.Name, err)
	}
	return n.LinkUp(ctx)
}

// Pause makes a machine stand still, as a host that hangs; Continue lets it go on. Nodes that are no machines cannot.
func (n *Node) Pause() error {
	if n.Machine == nil {
		return fmt.Errorf("%s is no machine", n.Name)
	}
	return n.Machine.Pause()
}

// Continue lets a machine go on that Pause made stand still.
func (n *Node) Continue() error {
	if n.Machine == nil {
		return fmt.Errorf("%s is no machine", n.Name)
	}
	return n.Machine.Continue()
}

// forwarded is the unix socket on the host that leads to the machine's libvirtd.
func (n *Node) forwarded() string { return filepath.Join(n.dir, "libvirt-sock") }

// forward accepts connections for the machine's libvirtd until the lab is closed.
func (n *Node) forward() error {
	if exists(n.forwarded()) {
		return nil // since it was on before
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: n.forwarded()})
	if err != nil {
		return err
	}
	n.lab.group.Go(func() {
		<-n.lab.stop
		_ = listener.Close()
	})
	n.lab.group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the lab is closed
			}
			go n.join(conn)
		}
	})
	return nil
}

// join connects a connection with the machine's libvirtd.
func (n *Node) join(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	to, err := n.Machine.Dial("unix", libvirtSocket)
	if err != nil {
		return // the client sees it end
	}
	go func() {
		_, _ = io.Copy(to, conn)
		_ = to.Close()
	}()
	_, _ = io.Copy(conn, to)
}

// makeInMachine makes a disk in a machine. QEMU reads and writes disks past the page cache, which hostfs does not have: the directory
// that nodes share is for kernels and consoles only.
func (n *Node) makeInMachine(ctx context.Context, d Disk) error {
	size := fmt.Sprintf("%dM", d.MiB)
	switch {
	case d.Format != "raw" || d.Media || d.Kind == DiskShared || d.Kind == DiskDevice:
		return fmt.Errorf("a disk of kind %q, format %s, medium %t: machines have raw ones, %q and %q", d.Kind, d.Format, d.Media, DiskZvol, DiskLocal)
	case d.Kind == DiskLocal:
		_, err := n.Run(ctx, "truncate", "-s", size, d.Path)
		return err
	}
	if _, err := n.Run(ctx, "zfs", "create", "-s", "-V", size, strings.TrimPrefix(d.Path, "/dev/zvol/")); err != nil {
		return err
	}
	return Eventually(ctx, d.Path+" is there", func() error {
		_, err := n.Run(ctx, "test", "-b", d.Path)
		return err
	})
}

// readInMachine reads a disk past the machine's page cache.
func (n *Node) readInMachine(d Disk) ([]byte, error) {
	out, err := said(n.Machine, "dd", "status=none", "bs=1M", "iflag=direct", "if="+d.Path)
	return []byte(out), err
}
