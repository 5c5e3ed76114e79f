// Command bench measures the figures of docs/benchmarks.md on a lab of real
// hypervisors, each beside its baseline in the same run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/integration/lab"
)

func main() {
	bin := flag.String("bin", "bin", "directory of debvisor-rpcd, debvisor-agent and hvctl")
	jsonOut := flag.String("json", "build/bench.json", "where the figures go")
	mdOut := flag.String("md", "docs/benchmarks.md", "where the table goes")
	rounds := flag.Int("rounds", 3, "rounds of A B B A")
	only := flag.String("only", "", "one group of figures: migrate, failover, heartbeats or list-nodes; to standard output only")
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

// run brings up one lab and measures everything on it.
func run(ctx context.Context, bin, only string, rounds int, jsonOut, mdOut string) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return fmt.Errorf("finding %s: %w", bin, err)
	}
	say := func(format string, args ...any) {
		fmt.Printf("%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
	}
	l, err := lab.New(ctx, lab.Options{Replicas: 3, Nodes: 2, Bin: bin, LibvirtTCP: true, Kind: "bench", Log: say})
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
	b := &bench{lab: l, rounds: rounds, say: say}
	for _, group := range []struct {
		name    string
		measure func(context.Context) error
	}{{"migrate", b.migrate}, {"failover", b.failover}, {"heartbeats", b.heartbeats}, {"list-nodes", b.listNodes}} {
		if only != "" && only != group.name {
			continue
		}
		if err := group.measure(ctx); err != nil {
			return err
		}
	}
	for _, f := range b.figures {
		say("%s = %.4g %s (goal %g, %s is better): %s", f.Name, f.Value, f.Unit, f.Goal, f.Better, f.Detail)
	}
	if only != "" {
		return nil
	}
	return write(b.figures, jsonOut, mdOut)
}

// bench is one run of all measurements.
type bench struct {
	lab     *lab.Lab
	rounds  int
	say     func(format string, args ...any)
	figures []Figure
}

func (b *bench) add(f Figure) { b.figures = append(b.figures, f) }
