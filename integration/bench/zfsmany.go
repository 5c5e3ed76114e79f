package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// snapshotCallers take snapshots at once, each of a dataset of its own.
	snapshotCallers = 8
	snapshotBurst   = 4 * time.Second
)

// snapshots measures how fast snapshots are taken through the API and by hand.
func (p *pools) snapshots(ctx context.Context) error {
	var names []string
	for i := range snapshotCallers {
		names = append(names, fmt.Sprintf("snap%d", i))
	}
	if err := p.create(ctx, p.from, "", names...); err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		callers int
		goal    float64
		what    string
	}{
		{"zfs_snapshot_vs_direct", snapshotCallers, 0.9, fmt.Sprintf("%d callers, each on a dataset of its own", snapshotCallers)},
		{"zfs_snapshot_vs_direct_alone", 1, 0, "one caller"},
	} {
		var ours, direct []float64
		for round := range p.b.rounds {
			for _, mine := range []bool{true, false, false, true} {
				taking, rates := p.byHand, &direct
				if mine {
					taking, rates = p.byRequest, &ours
				}
				begun := time.Now()
				n, err := taking(ctx, names[:f.callers])
				if err != nil {
					return err
				}
				*rates = append(*rates, float64(n)/time.Since(begun).Seconds())
			}
			p.b.say("snapshots of %s, round %d: %.1f/s, by hand %.1f/s", f.what, round+1, ours[len(ours)-1], direct[len(direct)-1])
		}
		p.b.add(Figure{
			Name: f.name, Value: median(ours) / median(direct), Goal: f.goal, Better: "higher", Unit: "ratio",
			Detail: fmt.Sprintf("%s: CreateSnapshot, each with its operation, task and journal on disk before and after, %.1f/s ÷ zfs snapshot in a loop of bash on the same machine %.1f/s; medians of %d bursts of %.0f s each",
				f.what, median(ours), median(direct), len(ours), snapshotBurst.Seconds()),
		})
	}
	return nil
}

// byRequest takes snapshots of each dataset through the API, one after the other.
func (p *pools) byRequest(ctx context.Context, names []string) (int64, error) {
	var n atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	end := time.Now().Add(snapshotBurst)
	for _, name := range names {
		group.Go(func() error {
			for time.Now().Before(end) {
				if _, err := p.storage.CreateSnapshot(ctx, &debvisorv1.SnapshotRequest{Dataset: p.ref(p.from, name)}); err != nil {
					return fmt.Errorf("a snapshot of %s: %w", name, err)
				}
				n.Add(1)
			}
			return nil
		})
	}
	err := group.Wait()
	return n.Load(), err
}

// byHand takes snapshots of each dataset in the machine, one after the other.
func (p *pools) byHand(ctx context.Context, names []string) (int64, error) {
	const loop = `stamp=$EPOCHREALTIME end=$((EPOCHSECONDS+$1)); shift
for d; do (n=0; while ((EPOCHSECONDS<end)); do zfs snapshot "$d@bench-$stamp-$n"; n=$((n+1)); done; echo $n) & done; wait`
	args := []string{fmt.Sprint(int(snapshotBurst.Seconds()))}
	for _, name := range names {
		args = append(args, path(name))
	}
	out, err := script(ctx, p.from, loop, args...)
	if err != nil {
		return 0, err
	}
	sum := int64(0)
	for _, count := range strings.Fields(out) {
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

const (
	treeDatasets, treeSnapshots = 100, 650
	// treeWithin bounds the time of their making: a slow machine measures fewer.
	treeWithin = 2 * time.Minute
)

// plan measures how long it takes to plan the replication of a tree of 65,000
// snapshots: a job for each dataset, each asking both machines.
func (p *pools) plan(ctx context.Context) error {
	var names []string
	for i := range treeDatasets {
		names = append(names, fmt.Sprintf("tree/d%d", i))
	}
	if err := p.create(ctx, p.from, "-o canmount=off", append([]string{"tree"}, names...)...); err != nil {
		return err
	}
	const take = `for ((i=0; i<$2 && SECONDS<$3; i++)); do zfs snapshot -r "$1@s$i"; done; echo $i`
	begun := time.Now()
	out, err := script(ctx, p.from, take, path("tree"), fmt.Sprint(treeSnapshots), fmt.Sprint(treeWithin.Seconds()))
	if err != nil {
		return err
	}
	made, err := strconv.Atoi(out)
	if err != nil {
		return err
	}
	p.b.say("%d snapshots of %d datasets made in %.0f s", treeDatasets*made, treeDatasets, time.Since(begun).Seconds())
	var all, one []float64
	for range p.b.rounds + 1 {
		took, each, err := p.planEach(ctx, names)
		if err != nil {
			return err
		}
		p.b.say("the tree is planned in %.2f s, one of its datasets in %.3f s", took, median(each))
		all, one = append(all, took), append(one, median(each))
	}
	var bare []float64
	for range p.b.rounds {
		begun := time.Now()
		if _, err := script(ctx, p.from, `zfs list -Hp -t snapshot -o name,guid,createtxg -r "$1" >/dev/null`, path("tree")); err != nil {
			return err
		}
		bare = append(bare, time.Since(begun).Seconds())
	}
	setting := fmt.Sprintf("%d datasets with %d snapshots each, to be sent in full to a machine that has none of it (there one zfs list of them all takes %.1f s by hand)",
		treeDatasets, made, median(bare))
	p.b.add(Figure{
		Name: "plan_65k_snapshots_s", Value: median(all[1:]), Goal: 2, Better: "lower", Unit: "s",
		Detail: fmt.Sprintf("PlanZfsReplication for each of %s, %d at once: from the first request to the last answer, both machines asked anew for each; median of %d, the first left out", setting, planners, p.b.rounds),
	})
	p.b.add(Figure{
		Name: "plan_one_of_65k_snapshots_s", Value: median(one[1:]), Better: "lower", Unit: "s",
		Detail: "one request of those, alone: the median of ten",
	})
	return nil
}

// planners is how many plans are asked for at once.
const planners = 8

// planEach plans a job for each dataset, and then ten once more, one after the
// other. Times are seconds.
func (p *pools) planEach(ctx context.Context, names []string) (all float64, each []float64, err error) {
	jobs := make([]string, len(names))
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(planners)
	begun := time.Now()
	for i, name := range names {
		group.Go(func() (err error) {
			jobs[i], err = p.planned(within, name)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, nil, err
	}
	all = time.Since(begun).Seconds()
	for i, job := range jobs {
		if _, err := p.storage.DeleteReplication(ctx, &debvisorv1.JobRef{JobId: job}); err != nil {
			return 0, nil, err
		}
		if i >= 10 {
			continue
		}
		begun := time.Now()
		again, err := p.planned(ctx, names[i])
		each = append(each, time.Since(begun).Seconds())
		if err == nil {
			_, err = p.storage.DeleteReplication(ctx, &debvisorv1.JobRef{JobId: again})
		}
		if err != nil {
			return 0, nil, err
		}
	}
	return all, each, nil
}

// planned makes a job, whose plan must have all of the dataset's snapshots.
func (p *pools) planned(ctx context.Context, name string) (string, error) {
	job, err := p.storage.PlanZfsReplication(ctx, &debvisorv1.ZfsReplicationPlan{
		Dataset: p.ref(p.from, name), Target: nodeRef(p.to), Options: &debvisorv1.ReplicationOptions{NoSnapshot: true},
	})
	if err != nil {
		return "", fmt.Errorf("a plan for %s: %w", name, err)
	}
	if d := job.GetDecision(); d.GetMode() != debvisorv1.ReplicationMode_REPLICATION_MODE_FULL {
		return "", fmt.Errorf("the plan for %s is %v", name, d)
	}
	return job.GetJobId(), nil
}
