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
	out, err := goBench(ctx, "./controlplane/internal/planner", name, planRuns+1)
	if err != nil {
		return nil, err
	}
	seconds, err := metric(out, "ns/op", planRuns+1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for i := range seconds {
		seconds[i] /= 1e9
	}
	return seconds[1:], nil
}

// goBench runs a benchmark of a package so many times, one iteration each, and
// gives what it printed.
func goBench(ctx context.Context, pkg, name string, runs int) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^"+name+"$", "-benchtime", "1x", "-count", strconv.Itoa(runs), pkg)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("running %s: %w: %s", name, err, out)
	}
	return string(out), nil
}

// metric gives what a benchmark's runs printed with that unit.
func metric(out, unit string, runs int) ([]float64, error) {
	var values []float64
	for _, found := range regexp.MustCompile(`\s(\d+(?:\.\d+)?) `+regexp.QuoteMeta(unit)+`\s`).FindAllStringSubmatch(out, -1) {
		value, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", unit, err)
		}
		values = append(values, value)
	}
	if len(values) != runs {
		return nil, fmt.Errorf("%s was told %d times, not %d: %s", unit, len(values), runs, out)
	}
	return values, nil
}
