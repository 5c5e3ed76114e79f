package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// planRuns is how often each plan is made.
const planRuns = 5

// plans measures the planner on a cluster of 1,000 nodes and 50,000 VMs: no lab
// has that many, so that it is the planner's own benchmarks that run, on records
// as the leader's snapshot holds them. Decoding them is part of the time.
func (b *bench) plans(ctx context.Context) error {
	const setting = "1,000 nodes, 50,000 VMs with disks, interfaces, groups and CPUs, 100 migrations at work; from the encoded records"
	for _, figure := range []struct {
		name, benchmark, detail string
		goal                    float64
	}{
		{"plan_evacuate_1000x50000_s", "BenchmarkEvacuate1000x50000", "emptying one node of its 50 VMs", 1},
		{"plan_evacuate_in_vain_1000x50000_s", "BenchmarkEvacuateInVain1000x50000", "the same where hardly a VM has a place: the search, and every node's reasons", 0},
		{"plan_migrate_1000x50000_s", "BenchmarkPlan1000x50000", "one VM: every node's verdict", 0},
		{"plan_rebalance_1000x50000_s", "BenchmarkRebalance1000x50000", "100 moves that even out the nodes", 0},
	} {
		seconds, err := benchmark(ctx, figure.benchmark)
		if err != nil {
			return err
		}
		b.add(Figure{
			Name: figure.name, Value: median(seconds), Goal: figure.goal, Better: "lower", Unit: "s",
			Detail: fmt.Sprintf("%s; %s; median of %d", figure.detail, setting, len(seconds)),
		})
	}
	return nil
}

// benchmark runs one of the planner's benchmarks and gives the seconds of each
// run, after one that warms up.
func benchmark(ctx context.Context, name string) ([]float64, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^"+name+"$", "-benchtime", "1x",
		"-count", strconv.Itoa(planRuns+1), "./controlplane/internal/planner")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("running %s: %w: %s", name, err, out)
	}
	var seconds []float64
	for _, found := range regexp.MustCompile(`\s(\d+(?:\.\d+)?) ns/op`).FindAllSubmatch(out, -1) {
		ns, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		seconds = append(seconds, ns/1e9)
	}
	if len(seconds) != planRuns+1 {
		return nil, fmt.Errorf("%s ran %d times, not %d: %s", name, len(seconds), planRuns+1, out)
	}
	return seconds[1:], nil
}
