package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// rules are the flags of what a retention policy keeps.
type rules struct {
	policy debvisorv1.RetentionPolicy
	within time.Duration
}

func (r *rules) addFlags(c *cobra.Command) {
	f, p := c.Flags(), &r.policy
	f.Uint32Var(&p.KeepLast, "keep-last", 0, "keep so many of the newest")
	f.Uint32Var(&p.KeepHourlyHours, "keep-hourly", 0, "keep the last of each of so many hours")
	f.Uint32Var(&p.KeepDailyDays, "keep-daily", 0, "keep the last of each of so many days")
	f.Uint32Var(&p.KeepWeeklyWeeks, "keep-weekly", 0, "keep the last of each of so many weeks, from Monday")
	f.Uint32Var(&p.KeepMonthlyMonths, "keep-monthly", 0, "keep the last of each of so many months")
	f.Uint32Var(&p.KeepYearlyYears, "keep-yearly", 0, "keep the last of each of so many years")
	f.DurationVar(&r.within, "keep-within", 0, "keep what is no older, such as 36h")
	f.StringVar(&p.KeepPattern, "keep", "", "keep those whose name or label matches, such as 'pre-*'")
	f.StringVar(&p.OnlyPattern, "only", "", "look only at those whose name or label matches; all others stay")
	f.StringVar(&p.TimeZone, "time-zone", "", "the IANA time zone in which days begin and schedules count, such as Europe/Berlin; without it UTC")
	for _, name := range []string{"keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly", "keep-within", "keep", "only", "time-zone"} {
		complete(c, name, cobra.NoFileCompletions)
	}
}

func (r *rules) message() (*debvisorv1.RetentionPolicy, error) {
	if r.within < 0 || r.within%time.Second != 0 {
		return nil, usage("--keep-within %s: whole seconds are accepted", r.within)
	}
	r.policy.KeepWithinSeconds = uint64(r.within / time.Second)
	return proto.CloneOf(&r.policy), nil
}

// rulesText tells what rules keep.
func rulesText(p *debvisorv1.RetentionPolicy) string {
	var words []string
	for _, rule := range []struct {
		n    uint32
		text string
	}{
		{p.GetKeepLast(), "last %d"},
		{p.GetKeepHourlyHours(), "hourly %d"},
		{p.GetKeepDailyDays(), "daily %d"},
		{p.GetKeepWeeklyWeeks(), "weekly %d"},
		{p.GetKeepMonthlyMonths(), "monthly %d"},
		{p.GetKeepYearlyYears(), "yearly %d"},
	} {
		if rule.n > 0 {
			words = append(words, fmt.Sprintf(rule.text, rule.n))
		}
	}
	if p.GetKeepWithinSeconds() > 0 {
		words = append(words, "within "+seconds(p.GetKeepWithinSeconds()))
	}
	if p.GetKeepPattern() != "" {
		words = append(words, "pattern "+p.GetKeepPattern())
	}
	if p.GetOnlyPattern() != "" {
		words = append(words, "of "+p.GetOnlyPattern()+" only")
	}
	return strings.Join(words, ", ")
}

// seconds writes a span given in seconds.
func seconds(n uint64) string {
	return duration(time.Duration(min(n, math.MaxInt64/uint64(time.Second))) * time.Second)
}

func snapshotPrune(a *app) *cobra.Command {
	var r rules
	var recursive, dry bool
	c := &cobra.Command{
		Use: "prune DATASET", Short: "Remove the snapshots that rules let go; with --dry-run, tell which",
		Long: "Remove the snapshots that rules let go. The rules add up: what one keeps, stays. Held and cloned snapshots,\n" +
			"others' snapshots and those that a replication needs always stay. With --dry-run nothing is changed, and each\n" +
			"snapshot is told of: whether it would stay, by which rules, and what the removals free together.",
		Example: "  hvctl snapshot prune tank/vm/web1 --keep-last 3 --keep-daily 14 --dry-run",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeDataset,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := readDataset(args[0])
			if err != nil {
				return err
			}
			policy, err := r.message()
			if err != nil {
				return err
			}
			req := &debvisorv1.PruneRequest{Dataset: ref, Policy: policy, Recursive: recursive}
			if dry {
				return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
					plan, err := c.storage.PlanPrune(ctx, req)
					if err != nil {
						return err
					}
					return a.print(plan, func() error { return a.printPrune(plan) })
				})
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					result, err := c.storage.PruneSnapshots(ctx, req, header)
					return result.GetOperationId(), err
				})
			})
		},
	}
	r.addFlags(c)
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "of the datasets below too, each for itself")
	c.Flags().BoolVar(&dry, "dry-run", false, "tell what would stay and go, and change nothing")
	return c
}

// printPrune prints a dry run: every snapshot, then the sums.
func (a *app) printPrune(plan *debvisorv1.PrunePlan) error {
	t := table{head: []string{"SNAPSHOT", "CREATED", "LABEL", "USED", "VERDICT", "RULES"}}
	for _, v := range plan.GetVerdicts() {
		verdict := "remove"
		if v.GetKeep() {
			verdict = "keep"
		}
		t.add(snapshotName(v.GetSnapshot()), stamp(v.GetCreatedAt()), v.GetLabel(), size(v.GetUsedBytes()), verdict, strings.Join(v.GetRules(), "\n"))
	}
	if plan.GetTruncated() {
		t.add("(more, not listed)")
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.out, "\n%d stay, %d go, which frees %s\n", plan.GetKeep(), plan.GetRemove(), size(plan.GetFreedBytes()))
	return err
}
