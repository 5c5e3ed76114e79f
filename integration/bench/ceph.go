package main

import (
	"context"
	"fmt"
)

const (
	rbdPackage = "./agent/internal/rbd"
	rbdRuns    = 3
)

// rbd measures the agent's way to Ceph, through its child process, beside go-ceph
// called directly, on the same cluster in the same run; and what a dead one costs.
func (b *bench) rbd(ctx context.Context) error {
	const setting = "one OSD in memory on this host, cephx"
	for _, f := range []struct{ figure, benchmark, detail string }{
		{"rbd_clone_vs_direct_1", "BenchmarkClone1", "clones of one template, one after the other: complete, marked with their operation and named, beside rbd.CloneImage alone"},
		{"rbd_clone_vs_direct_8", "BenchmarkClone8", "the same, 8 at once"},
		{"rbd_snapshot_vs_direct", "BenchmarkSnapshot", "snapshots of one image, marked with their operation, beside opening it, taking one and closing it"},
	} {
		out, err := goBench(ctx, rbdPackage, f.benchmark, rbdRuns)
		if err != nil {
			return err
		}
		ratios, err := metric(out, "ours/direct", rbdRuns)
		if err != nil {
			return err
		}
		rate, err := metric(out, "a-second", rbdRuns)
		if err != nil {
			return err
		}
		b.add(Figure{
			Name: f.figure, Value: median(ratios), Goal: 0.9, Better: "higher", Unit: "of the rate",
			Detail: fmt.Sprintf("%s; %.0f a second; by turns A B B A, median of %d; %s", f.detail, median(rate), rbdRuns, setting),
		})
	}
	out, err := goBench(ctx, rbdPackage, "BenchmarkDeadThreads", 1)
	if err != nil {
		return err
	}
	more, err := metric(out, "threads-more", 1)
	if err != nil {
		return err
	}
	b.add(Figure{
		Name: "ceph_dead_threads", Value: more[0], Goal: 16, Better: "lower", Unit: "threads",
		Detail: "more than while the cluster lives, of the process and its children, while the only OSD stands still and 100 calls are asked at once",
	})
	return nil
}
