// Command bench measures the figures of docs/benchmarks.md on a lab of real
// hypervisors, each beside its baseline in the same run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/ceph"
	"github.com/debvisor/debvisor/integration/lab"
)

func main() {
	bin := flag.String("bin", "bin", "directory of debvisor-rpcd, debvisor-agent and hvctl")
	jsonOut := flag.String("json", "build/bench.json", "where the figures go")
	mdOut := flag.String("md", "docs/benchmarks.md", "where the table goes")
	rounds := flag.Int("rounds", 3, "rounds of A B B A")
	only := flag.String("only", "", "one group of figures: tunnel, plan, rbac, frontdoor, ceph, migrate, failover, resign, heartbeats, list-nodes, comeback or zfs; the others stay as they were last measured")
	var f bareFiles
	flag.StringVar(&f.listen, "bare", "", "be the baseline's server on this address (used by bench itself)")
	flag.StringVar(&f.cert, "bare-cert", "", "")
	flag.StringVar(&f.key, "bare-key", "", "")
	flag.StringVar(&f.ca, "bare-ca", "", "")
	flag.StringVar(&f.answer, "bare-answer", "", "")
	flag.Parse()
	var err error
	if f.listen != "" {
		err = serveBare(f)
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = run(ctx, *bin, *only, *rounds, *jsonOut, *mdOut)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// group is figures that are measured together.
type group struct {
	name    string
	measure func(context.Context) error
}

// run measures everything: first what needs no lab, then the rest on a lab
// of hypervisors, and on one of machines with ZFS.
func run(ctx context.Context, bin, only string, rounds int, jsonOut, mdOut string) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return fmt.Errorf("finding %s: %w", bin, err)
	}
	say := func(format string, args ...any) {
		fmt.Printf("%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
	}
	b := &bench{bin: bin, only: only, rounds: rounds, say: say}
	if err := b.measure(ctx, []group{{"tunnel", b.tunnelVsSocat}, {"plan", b.plans}, {"rbac", b.rbac}, {"frontdoor", b.frontDoor}, {"ceph", b.rbd}}); err != nil {
		return err
	}
	if err := b.onLab(ctx, lab.Options{Nodes: 2, LibvirtTCP: true}, []group{
		{"migrate", b.migrate}, {"failover", b.failover}, {"resign", b.resign}, {"heartbeats", b.heartbeats}, {"list-nodes", b.listNodes},
	}); err != nil {
		return err
	}
	if err := b.onLab(ctx, lab.Options{Nodes: 2, Ceph: &ceph.Options{}}, []group{{"comeback", b.comeback}}); err != nil {
		return err
	}
	if err := b.onLab(ctx, lab.Options{Machines: 2, MachineMiB: 1024, MachinePoolMiB: 32768}, []group{{"zfs", b.zfs}}); err != nil {
		return err
	}
	for _, f := range b.figures {
		say("%s = %.4g %s (goal %g, %s is better): %s", f.Name, f.Value, f.Unit, f.Goal, f.Better, f.Detail)
	}
	version, err := exec.CommandContext(ctx, filepath.Join(bin, "debvisor-rpcd"), "--version").Output()
	if err != nil {
		return fmt.Errorf("asking for the programs' version: %w", err)
	}
	words := strings.Fields(string(version))
	at := time.Now().UTC().Format("2006-01-02 15:04") + " " + words[len(words)-1]
	for i := range b.figures {
		b.figures[i].At = at
	}
	if only != "" {
		if b.figures, err = merged(b.figures, jsonOut); err != nil {
			return err
		}
		if b.figures == nil {
			say("there is no %s of a whole run to put these into: nothing is written", jsonOut)
			return nil
		}
	}
	return write(b.figures, jsonOut, mdOut)
}

// wanted tells whether a group is to be measured.
func (b *bench) wanted(g group) bool { return b.only == "" || b.only == g.name }

func (b *bench) measure(ctx context.Context, groups []group) error {
	for _, g := range groups {
		if !b.wanted(g) {
			continue
		}
		if err := g.measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	return nil
}

// onLab brings up one lab for all of the groups, with the nodes of the options.
func (b *bench) onLab(ctx context.Context, options lab.Options, groups []group) (err error) {
	if !slices.ContainsFunc(groups, b.wanted) {
		return nil
	}
	options.Replicas, options.Bin, options.Kind, options.Log = 3, b.bin, "bench", b.say
	l, err := lab.New(ctx, options)
	if err != nil {
		return fmt.Errorf("the lab: %w", err)
	}
	defer func() {
		if closeErr := l.Close(); err == nil {
			err = closeErr
		}
	}()
	for _, r := range l.Replicas {
		r.Args = append(r.Args, "--rate-limit", "0") // the load is one principal's
	}
	if err := l.StartCluster(ctx); err != nil {
		return fmt.Errorf("the cluster: %w", err)
	}
	b.lab = l
	return b.measure(ctx, groups)
}

// bench is one run of all measurements.
type bench struct {
	bin     string   // where the programs are
	only    string   // the one group to measure; empty: all
	lab     *lab.Lab // while groups that need it are measured
	rounds  int
	say     func(format string, args ...any)
	figures []Figure
}

func (b *bench) add(f Figure) { b.figures = append(b.figures, f) }
