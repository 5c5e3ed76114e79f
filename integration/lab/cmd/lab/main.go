// Command lab runs DebVisor's lab for people: three replicas and two hypervisors on this machine, in namespaces of their own.
// "up" keeps one running in the background, "down" ends it, "demo" shows the main job and fails when it does not work.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/debvisor/debvisor/integration/ceph"
	"github.com/debvisor/debvisor/integration/lab"
)

const usage = `usage: lab up|down|demo [flags]

  up    keep a lab running in the background and say how to use it
  down  end every lab that "up" started
  demo  three replicas, two hypervisors, one live migration, shown step by step

flags:
`

// settings are the command line's.
type settings struct {
	bin      string
	base     string
	replicas int
	nodes    int
	machines int
	ceph     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var s settings
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.StringVar(&s.bin, "bin", "bin", "directory of debvisor-rpcd, debvisor-agent and hvctl")
	flags.StringVar(&s.base, "base", lab.DefaultBase, "where the lab's directory is made")
	flags.IntVar(&s.replicas, "replicas", 3, "replicas of debvisor-rpcd; 0: hypervisors only (up)")
	flags.IntVar(&s.nodes, "nodes", 2, "hypervisors (up)")
	flags.IntVar(&s.machines, "machines", 0, "hosts with a kernel and a ZFS pool of their own (up); the first one ever takes 10 minutes")
	flags.BoolVar(&s.ceph, "ceph", false, "a Ceph cluster that the hypervisors are clients of (up)")
	flags.Usage = func() {
		_, _ = fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	if len(args) == 0 {
		flags.Usage()
		return flag.ErrHelp
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("namespaces need root")
	}
	var err error
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return err
	}
	commands := map[string]func(context.Context, settings) error{"up": up, "hold": hold, "down": down, "demo": demo}
	command, ok := commands[args[0]]
	if !ok {
		flags.Usage()
		return fmt.Errorf("unknown command %q", args[0])
	}
	return command(ctx, s)
}

// say prints a line.
func say(format string, args ...any) {
	fmt.Printf(format+"\n", args...)
}

// options are those of a lab for people.
func (s settings) options(kind string) lab.Options {
	o := lab.Options{Replicas: s.replicas, Nodes: s.nodes, Machines: s.machines, MachineLibvirt: true, Bin: s.bin, Base: s.base, Kind: kind, Log: func(format string, args ...any) {
		say("  "+format, args...)
	}}
	if s.ceph {
		o.Ceph = &ceph.Options{Store: ceph.Bluestore, Pools: []string{"vms", "clones"}}
	}
	return o
}

// keepLogs saves the logs of a lab in which something failed to where they can be read after it is gone.
func keepLogs(l *lab.Lab) {
	const dir = "build/lab-logs"
	if err := l.SaveLogs(dir); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return
	}
	fmt.Fprintf(os.Stderr, "the logs of all daemons are in %s/%s\n", dir, filepath.Base(l.Dir))
}
