package lab

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
)

// The addresses are the same in every lab: its network ends at its bridge.
const (
	bridgeAddr  = "10.77.0.1"
	replicaAddr = "10.77.0.%d" // from 11
	nodeAddr    = "10.77.0.%d" // from 21
	machineAddr = "10.77.0.%d" // from 31
)

// DefaultBase is where labs' directories are made: a real file system, as O_DIRECT needs.
const DefaultBase = "/var/tmp"

// bash runs the lab's scripts.
const bash = "/bin/bash"

//go:embed scripts/* guest/*
var files embed.FS

// Options say what a lab holds.
type Options struct {
	Replicas int // replicas of debvisor-rpcd: 0 to 5
	Nodes    int // hypervisors: 0 to 9
	Machines int // hosts with a kernel and a ZFS pool of their own: 0 to 9

	// MachineLibvirt has machines run a libvirtd as well. It is slow in there: a guest is up after half a minute.
	MachineLibvirt bool
	MachineMiB     int // of a machine's memory; 0: 512, 1536 with libvirtd
	MachinePoolMiB int // of a machine's pool; 0: 2048
	// MachineUnit is the agent's unit, a file: machines have systemd as their process 1 then, which runs the agents by it.
	MachineUnit string

	// Systemd makes the nodes hosts of their own whose process 1 is systemd (package systemd), on which nothing of ours is installed:
	// StartCluster and their Agents are not for them.
	Systemd  bool
	Packages string // a directory that such hosts see as PackagesSeen; empty: none
	// Ceph says what Ceph cluster all nodes are clients of, machines when GiveCeph makes them so; where it is and runs is the lab's to say.
	// nil: none.
	Ceph *ceph.Options
	// Bin is the directory of debvisor-rpcd, debvisor-agent and hvctl, needed by StartCluster only.
	Bin string
	// Failpoints makes the daemons offer their failpoints, see Process.Failpoints; Bin has to be built with them.
	Failpoints bool
	// LibvirtTCP makes every libvirtd listen on TCP port 16509 without authentication, for comparing with plain libvirt.
	LibvirtTCP bool

	Base  string // where the lab's directory goes; empty: DefaultBase
	Cache string // where the guest's kernel is kept; empty: build/cache of the module that the working directory is in
	Kind  string // kept in the lab's record, see Owners
	// Log is told what the lab does, in plain words; nil: nobody is.
	Log func(format string, args ...any)
}

// A Lab is a running lab.
type Lab struct {
	Dir      string
	Operator *Place // where the callers of the replicas are
	Replicas []*Replica
	Nodes    []*Node
	Machines []*Node       // those with a Machine
	Ceph     *ceph.Cluster // nil: none was asked for

	opts    Options
	dir     *directory
	init    *Process
	janitor *exec.Cmd
	alive   *os.File // its being open is what keeps process 1 and the janitor waiting
	built   string   // directory of what build.sh made

	tokensMu sync.Mutex
	tokens   []string // the join tokens made, see Tokens

	closing sync.Once
	stop    chan struct{} // closed by Close: ends the lab's goroutines
	group   sync.WaitGroup
}

// New makes a lab with its network, its hypervisors and what guests boot from. The daemons are started by StartCluster. What
// labs left whose owners are dead is removed first. The lab has to be closed; if New fails it is closed already.
func New(ctx context.Context, o Options) (_ *Lab, err error) {
	if o.Base == "" {
		o.Base = DefaultBase
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if err := Sweep(ctx, o.Base); err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	dir, err := makeDirectory(o.Base)
	if err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir.path, opts: o, dir: dir, stop: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := l.unpack(); err != nil {
		return l, err
	}
	if err := l.startInit(ctx); err != nil {
		return l, fmt.Errorf("lab's network: %w", err)
	}
	var group sync.WaitGroup
	var failed, noCeph error
	group.Go(func() { noCeph = l.startCeph(ctx) })
	err = l.build(ctx)
	group.Wait()
	if err = errors.Join(err, noCeph); err != nil {
		return l, err
	}
	group.Go(func() { failed = l.startMachines(ctx) })
	err = l.startNodes(ctx)
	group.Wait()
	return l, errors.Join(err, failed)
}

// AllNodes returns the hypervisors and the machines.
func (l *Lab) AllNodes() []*Node { return slices.Concat(l.Nodes, l.Machines) }

// unpack writes the embedded scripts and makes the shared directory.
func (l *Lab) unpack() error {
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := files.ReadFile(path)
		if err != nil {
			return err
		}
		to := filepath.Join(l.Dir, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, raw, 0o755)
	})
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return errors.Join(os.Mkdir(l.shared(), 0o755), os.Mkdir(filepath.Join(l.Dir, "logs"), 0o755))
}

// shared is the directory that all nodes see as /var/lib/libvirt/images.
func (l *Lab) shared() string { return filepath.Join(l.Dir, "shared") }

func (l *Lab) script(name string) string { return filepath.Join(l.Dir, "scripts", name) }

func (l *Lab) log(name string) string { return filepath.Join(l.Dir, "logs", name+".log") }

// startInit starts process 1 of the lab and the janitor, records who owns the lab, and waits until the network is up.
func (l *Lab) startInit(ctx context.Context) error {
	waiting, alive, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = waiting.Close() }()
	l.alive = alive
	args := []string{l.script("init.sh"), l.Dir, bridgeAddr}
	for i := range l.opts.Replicas {
		args = append(args, fmt.Sprintf("r%d="+replicaAddr, i+1, i+11))
	}
	for i := range l.opts.Nodes {
		args = append(args, fmt.Sprintf("n%d="+nodeAddr, i+1, i+21))
	}
	for i := range l.opts.Machines {
		args = append(args, fmt.Sprintf("machine:m%d="+machineAddr, i+1, i+31))
	}
	const spaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC
	if l.init, err = l.startScript(waiting, spaces, args); err != nil {
		return err
	}
	l.Operator = newPlace("operator", bridgeAddr, l.init.Pid, fmt.Sprintf("/proc/%d/ns/net", l.init.Pid))
	if err := l.startJanitor(waiting); err != nil {
		return err
	}
	for i := range l.opts.Replicas {
		l.Replicas = append(l.Replicas, newReplica(l, l.place(fmt.Sprintf("r%d", i+1), fmt.Sprintf(replicaAddr, i+11))))
	}
	return l.ready(ctx, l.init, filepath.Join(l.Dir, "ready"))
}

func (l *Lab) startJanitor(waiting *os.File) error {
	own, err := statOf(os.Getpid())
	if err != nil {
		return err
	}
	first, err := statOf(l.init.Pid)
	if err != nil {
		return err
	}
	o := Owner{Kind: l.opts.Kind, Pid: os.Getpid(), Start: own.start, Init: l.init.Pid, InitStart: first.start}
	if err := l.dir.record(o); err != nil {
		return err
	}
	l.janitor = &exec.Cmd{Path: bash, Args: []string{bash, l.script("janitor.sh"), l.Dir, fmt.Sprint(o.Init), o.InitStart}}
	l.janitor.Stdin, l.janitor.Dir, l.janitor.Env = waiting, "/", environment(nil)
	l.janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := l.janitor.Start(); err != nil {
		l.janitor = nil
		return fmt.Errorf("janitor: %w", err)
	}
	return nil
}

// place returns the place of the named network namespace and the lab's other namespaces.
func (l *Lab) place(name, addr string) *Place {
	p := newPlace(name, addr, l.init.Pid, fmt.Sprintf("/proc/%d/root/run/netns/%s", l.init.Pid, name))
	p.bridge = l.Operator
	return p
}

// startScript runs a script as process 1 of new namespaces. Its standard input ends when the lab's owner does.
func (l *Lab) startScript(waiting *os.File, spaces uintptr, args []string) (*Process, error) {
	name := strings.TrimSuffix(filepath.Base(args[0]), ".sh")
	log, err := os.OpenFile(l.log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := &exec.Cmd{Path: bash, Args: append([]string{bash}, args...)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = waiting, log, log, "/", environment(nil)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: spaces}
	p := &Process{Name: name, Log: log.Name(), cmd: cmd, done: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	p.watch()
	return p, nil
}

// ready waits until the file exists that the script p makes when all is set up.
func (l *Lab) ready(ctx context.Context, p *Process, file string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return Eventually(ctx, p.Name+" is set up", func() error {
		if !p.Alive() {
			cancel()
			said, _ := os.ReadFile(p.Log)
			return fmt.Errorf("it ended: %w: %s", p.Err(), said)
		}
		_, err := os.Stat(file)
		return err
	})
}

// Close ends all processes of the lab and removes its directory. With DEBVISOR_LAB_LOGS set, the logs go to that directory
// first, under the lab's name. Later calls do nothing.
func (l *Lab) Close() error {
	var err error
	l.closing.Do(func() {
		close(l.stop)
		l.group.Wait()
		if to := os.Getenv("DEBVISOR_LAB_LOGS"); to != "" {
			err = l.SaveLogs(to)
		}
		for _, n := range l.Machines {
			if n != nil && n.Machine != nil {
				err = errors.Join(err, n.Machine.Close())
			}
		}
		if l.init != nil {
			err = errors.Join(err, l.init.Kill())
		}
		if l.alive != nil {
			err = errors.Join(err, l.alive.Close())
		}
		if l.janitor != nil {
			if e := l.janitor.Wait(); e != nil {
				err = errors.Join(err, fmt.Errorf("janitor: %w", e))
			}
		}
		err = errors.Join(err, detachLoops(l.Dir), os.RemoveAll(l.Dir), l.dir.lock.Close())
	})
	return err
}

// SaveLogs copies all logs of the lab and what its guests said to a directory named like the lab, under to.
func (l *Lab) SaveLogs(to string) error {
	to = filepath.Join(to, filepath.Base(l.Dir))
	err := os.RemoveAll(to)
	if err == nil {
		err = os.CopyFS(to, os.DirFS(filepath.Join(l.Dir, "logs")))
	}
	for _, n := range l.AllNodes() {
		if n == nil {
			continue // it never came up
		}
		if qemu := filepath.Dir(n.QEMULog("")); err == nil && exists(qemu) {
			err = os.CopyFS(filepath.Join(to, n.Name+"-qemu"), os.DirFS(qemu))
		}
	}
	consoles, _ := filepath.Glob(filepath.Join(l.shared(), "*.console"))
	for _, path := range consoles {
		raw, failed := os.ReadFile(path)
		if failed == nil {
			failed = os.WriteFile(filepath.Join(to, filepath.Base(path)+".log"), raw, 0o644)
		}
		err = errors.Join(err, failed)
	}
	if err != nil {
		return fmt.Errorf("save logs: %w", err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
