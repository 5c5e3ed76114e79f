package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/debvisor/debvisor/integration/machine"
)

const libvirtSocket = "/run/libvirt/libvirt-sock"

// A Node is a hypervisor: namespaces of its own, its libvirtd and its agent. With Options.Machines it is a machine instead, and
// has a libvirtd only with Options.MachineLibvirt.
type Node struct {
	*Place
	Agent   *Agent
	Libvirt *Process         // its libvirtd
	Machine *machine.Machine // nil: it is none

	lab   *Lab
	dir   string
	outer *Process // the parent of process 1 of its PID namespace, which ends with it
}

// startNodes starts all hypervisors and waits until every libvirtd answers.
func (l *Lab) startNodes(ctx context.Context) error {
	l.Nodes = make([]*Node, l.opts.Nodes)
	failed := make([]error, l.opts.Nodes)
	var group sync.WaitGroup
	for i := range l.Nodes {
		group.Go(func() {
			place := l.place(fmt.Sprintf("n%d", i+1), fmt.Sprintf(nodeAddr, i+21))
			n := &Node{Place: place, lab: l, dir: filepath.Join(l.Dir, place.Name)}
			n.Agent = newAgent(n)
			l.Nodes[i] = n
			if err := n.start(ctx); err != nil {
				failed[i] = fmt.Errorf("node %s: %w", n.Name, err)
			}
		})
	}
	group.Wait()
	return errors.Join(failed...)
}

func (n *Node) start(ctx context.Context) error {
	for _, d := range []string{"etc", "lib/disks", "lib/devices", "log", "cache", "agent", "ceph"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return err
		}
	}
	machine := strings.ReplaceAll(uuid.NewString(), "-", "")
	if err := os.WriteFile(filepath.Join(n.dir, "machine-id"), []byte(machine+"\n"), 0o444); err != nil {
		return err
	}
	if err := n.configure(); err != nil {
		return err
	}
	if err := n.boot(ctx); err != nil {
		return err
	}
	return n.knowCeph()
}

// boot starts the node's process 1, with a boot id of its own, and its libvirtd.
func (n *Node) boot(ctx context.Context) error {
	if n.lab.opts.Systemd {
		return n.bootSystemd(ctx)
	}
	if err := os.WriteFile(filepath.Join(n.dir, "boot_id"), []byte(uuid.NewString()+"\n"), 0o444); err != nil {
		return err
	}
	n.first.Store(int64(n.lab.init.Pid))
	// The kernel makes a PID namespace only from inside of its parent, so this takes unshare instead of clone's flags.
	args := []string{
		"/usr/bin/unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child",
		bash, n.lab.script("node.sh"), n.dir, n.Name, n.lab.shared(),
	}
	var err error
	if n.outer, err = n.Start(Command{Name: "node " + n.Name, Args: args, Log: n.lab.log(n.Name)}); err != nil {
		return err
	}
	if err := n.lab.ready(ctx, n.outer, filepath.Join(n.dir, "ready")); err != nil {
		return err
	}
	first, err := onlyChild(n.outer.Pid)
	if err != nil {
		return err
	}
	n.first.Store(int64(first))
	return n.StartLibvirt(ctx)
}

// configure writes libvirt's configuration: Debian's defaults (QEMU runs as libvirt-qemu in group kvm), without what
// belongs to the machine as a whole: cgroups, AppArmor, virtlogd. Owners are not remembered, as they cannot be on a file system
// that machines share; here the attributes would be kept, and the nodes take each other's for their own.
func (n *Node) configure() error {
	daemon := []string{
		fmt.Sprintf("host_uuid = %q", uuid.NewString()),
		`unix_sock_group = "libvirt"`, `unix_sock_ro_perms = "0777"`, `unix_sock_rw_perms = "0770"`,
		`auth_unix_ro = "none"`, `auth_unix_rw = "none"`, `listen_tls = 0`,
	}
	if n.lab.opts.LibvirtTCP {
		daemon = append(daemon, `listen_tcp = 1`, `auth_tcp = "none"`, fmt.Sprintf("listen_addr = %q", n.Addr))
	}
	qemu := []string{
		`user = "libvirt-qemu"`, `group = "kvm"`, `dynamic_ownership = 1`, `remember_owner = 0`,
		`security_driver = "none"`, `cgroup_controllers = []`, `stdio_handler = "file"`,
	}
	for name, lines := range map[string][]string{"libvirtd.conf": daemon, "qemu.conf": qemu} {
		if err := os.WriteFile(filepath.Join(n.dir, "etc", name), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// StartLibvirt starts the node's libvirtd, which must not run, and waits until it answers. Running guests are found again.
func (n *Node) StartLibvirt(ctx context.Context) error {
	args := []string{"/usr/sbin/libvirtd"}
	if n.lab.opts.LibvirtTCP {
		args = append(args, "--listen")
	}
	c := Command{Name: "libvirtd of " + n.Name, Args: args, Log: n.lab.log(n.Name + "-libvirtd")}
	c.Env = []string{"LD_PRELOAD=" + n.lab.preloads()}
	var err error
	if n.Libvirt, err = n.Start(c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return Eventually(ctx, n.Libvirt.Name+" answers", func() error {
		if !n.Libvirt.Alive() {
			cancel()
			return fmt.Errorf("it ended: %w", n.Libvirt.Err())
		}
		conn, err := n.Connect()
		if err != nil {
			return err
		}
		_, err = conn.Close()
		return err
	})
}

// preloads are the libraries that every libvirtd of the lab is started with.
func (l *Lab) preloads() string {
	return filepath.Join(l.built, "sharedfs.so") + ":" + filepath.Join(l.built, "oddram.so")
}

// Connect connects to the node's libvirtd from outside of the node. The caller closes the connection.
func (n *Node) Connect() (*libvirt.Connect, error) {
	socket := n.Root(libvirtSocket)
	if n.Machine != nil {
		socket = n.forwarded()
	}
	return libvirt.NewConnect("qemu+unix:///system?socket=" + socket)
}

// QEMULog is what libvirt writes down of a VM's QEMU processes on the node: with their arguments, one start after the other.
func (n *Node) QEMULog(name string) string { return filepath.Join(n.dir, "log", "qemu", name+".log") }

// PowerOff takes all of the node away at once, its guests too, as when its power goes: it says nothing more to anybody, not even
// that its connections have ended. PowerOn starts it again.
func (n *Node) PowerOff(ctx context.Context) error {
	if err := n.LinkDown(ctx); err != nil {
		return err
	}
	if n.Machine != nil {
		return n.Machine.PowerOff()
	}
	if err := syscall.Kill(int(n.first.Load()), syscall.SIGKILL); err != nil {
		return fmt.Errorf("power off %s: %w", n.Name, err)
	}
	<-n.outer.Done() // process 1 ends last
	return nil
}

// PowerOn boots a node that was powered off: with another boot id, the files that it had, and its libvirtd. No guest runs, and
// its agent does not yet. A machine has imported its pool.
func (n *Node) PowerOn(ctx context.Context) error {
	if n.Machine != nil {
		return n.powerOnMachine(ctx)
	}
	if err := os.Remove(filepath.Join(n.dir, "ready")); err != nil && !n.lab.opts.Systemd {
		return fmt.Errorf("power on %s: %w", n.Name, err)
	}
	if err := n.boot(ctx); err != nil {
		return fmt.Errorf("power on %s: %w", n.Name, err)
	}
	return n.LinkUp(ctx)
}

// On says whether the node is powered on.
func (n *Node) On() bool {
	if n.Machine != nil {
		return n.Machine.On()
	}
	return n.outer.Alive()
}

// Tasks returns the node's process table.
func (n *Node) Tasks() ([]Task, error) {
	if n.Machine != nil {
		return n.tasksInMachine()
	}
	pidns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.first.Load()))
	if err != nil {
		return nil, fmt.Errorf("process table of %s: %w", n.Name, err)
	}
	return tasks(pidns)
}

// QEMUs returns the QEMU processes on the node that have the VM's UUID.
func (n *Node) QEMUs(vm string) ([]Task, error) {
	all, err := n.Tasks()
	return slices.DeleteFunc(all, func(t Task) bool {
		return !strings.HasPrefix(filepath.Base(t.Args[0]), "qemu-system-") || !slices.Contains(t.Args, vm)
	}), err
}
