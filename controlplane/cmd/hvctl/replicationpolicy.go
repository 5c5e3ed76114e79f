package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// replicationPolicy is "hvctl replication policy": which datasets are kept alike
// where, and when.
func replicationPolicy(a *app) *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Replication policies: which datasets are copied where, and when"}
	c.AddCommand(replicationPolicySet(a), replicationPolicyList(a), replicationPolicyShow(a), replicationPolicyDelete(a))
	return c
}

func replicationPolicySet(a *app) *cobra.Command {
	var o replicationOptions
	var datasets, targets []string
	spec := &debvisorv1.ReplicationPolicySpec{}
	c := &cobra.Command{
		Use: "set POLICY", Short: "Make or replace a replication policy and its jobs",
		Long: "Make or replace a replication policy, as the flags say and nothing of what was before. It has one job for each\n" +
			"dataset and target. Jobs that it no longer has are ended; copies stay. A target is a node, or NODE:PREFIX, where\nthe copy of POOL/PATH is PREFIX/PATH.",
		Example: "  hvctl replication policy set off-site --dataset tank/vm/web1,tank/vm/db1 --to hv2 --to hv3:backup/hv1 --schedule 'every 15m' --rpo 1h",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeReplicationPolicies,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if spec.Datasets, err = readDatasets(datasets); err != nil {
				return err
			}
			for _, text := range targets {
				node, prefix, _ := strings.Cut(text, ":")
				if node == "" {
					return usage("--to %q: NODE or NODE:PREFIX is accepted", text)
				}
				spec.Targets = append(spec.Targets, &debvisorv1.ReplicationTarget{Node: nodeRef(node), Prefix: prefix})
			}
			if spec.Options, err = o.message(cmd); err != nil {
				return err
			}
			spec.Name = args[0]
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				status, err := c.storage.SetReplicationPolicy(a.changing(ctx), spec)
				if err != nil {
					return err
				}
				return a.print(status, func() error {
					return a.done(fmt.Sprintf("%s: replication policy set, %s%s", args[0], count(len(status.GetJobs()), "job"), nextText(status.GetRun())))
				})
			})
		},
	}
	f := c.Flags()
	f.StringSliceVar(&datasets, "dataset", nil, "[NODE:]POOL/PATH, comma-separated or several times; needed")
	f.StringSliceVar(&targets, "to", nil, "NODE[:PREFIX], comma-separated or several times; needed")
	f.StringVar(&spec.Schedule, "schedule", "", "'every 15m', or five cron fields; without it only by request")
	f.StringVar(&spec.TimeZone, "time-zone", "", "the IANA time zone of cron fields, such as Europe/Berlin; without it UTC")
	f.BoolVar(&spec.Paused, "paused", false, "do not run by the schedule for now")
	o.addFlags(c)
	complete(c, "dataset", a.completeDatasets)
	complete(c, "to", a.completeNodeFlag)
	complete(c, "schedule", cobra.NoFileCompletions)
	complete(c, "time-zone", cobra.NoFileCompletions)
	return c
}

func replicationPolicyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the replication policies and how their schedules stand", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.storage.ListReplicationPolicies(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error {
					t := table{head: []string{"POLICY", "DATASETS", "TARGETS", "SCHEDULE", "NEXT", "LAST", "JOBS", "SKIPPED"}}
					for _, p := range list.GetPolicies() {
						s := p.GetSpec()
						t.add(s.GetName(), fmt.Sprint(len(s.GetDatasets())), targetsText(s.GetTargets()), scheduleText(s.GetSchedule(), s.GetTimeZone(), s.GetPaused()),
							stamp(p.GetRun().GetNextDue()), ago(p.GetRun().GetLastDue()), jobsText(p.GetJobs()), skippedText(p.GetRun()))
					}
					return a.printTable(t)
				})
			})
		},
	}
}

// targetsText lists where copies go.
func targetsText(targets []*debvisorv1.ReplicationTarget) string {
	var words []string
	for _, t := range targets {
		words = append(words, strings.TrimSuffix(nodeName(t.GetNode())+":"+t.GetPrefix(), ":"))
	}
	return strings.Join(words, ", ")
}

// jobsText counts a policy's jobs, and those of them that are not well.
func jobsText(jobs []*debvisorv1.ReplicationStatus) string {
	bad := 0
	for _, s := range jobs {
		if s.GetState() == debvisorv1.ReplicationState_REPL_STATE_FAILED || s.GetRpoMissedSince() != nil {
			bad++
		}
	}
	if bad == 0 {
		return fmt.Sprint(len(jobs))
	}
	return fmt.Sprintf("%d, %d failed or late", len(jobs), bad)
}

func replicationPolicyShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show POLICY", Short: "Show a replication policy and its jobs", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeReplicationPolicies,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.storage.ListReplicationPolicies(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				at := slices.IndexFunc(list.GetPolicies(), func(p *debvisorv1.ReplicationPolicyStatus) bool { return p.GetSpec().GetName() == args[0] })
				if at < 0 {
					return errdefs.New(errdefs.NotFound, "POLICY_NOT_FOUND", "no replication policy is called %q", args[0])
				}
				p := list.GetPolicies()[at]
				return a.print(p, func() error {
					s := p.GetSpec()
					f := facts{}
					f.add("policy", s.GetName())
					f.add("datasets", datasetsText(s.GetDatasets()))
					f.add("targets", targetsText(s.GetTargets()))
					f.add("options", optionsText(s.GetOptions()))
					if err := a.printFacts(append(f, runFacts(p.GetRun(), scheduleText(s.GetSchedule(), s.GetTimeZone(), s.GetPaused()))...)); err != nil {
						return err
					}
					return a.printTableBelow(replicationTable(p.GetJobs(), a.wide()))
				})
			})
		},
	}
}

func replicationPolicyDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete POLICY", Short: "End a replication policy and its jobs; copies stay", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeReplicationPolicies,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				answer, err := c.storage.DeleteReplicationPolicy(a.changing(ctx), &debvisorv1.StoragePolicyRef{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(answer, func() error { return a.done(args[0] + ": replication policy deleted") })
			})
		},
	}
}

func (a *app) completeReplicationPolicies(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, replicationPolicyNames)
}

func (a *app) completeReplicationPolicyFlag(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, replicationPolicyNames)
}

func replicationPolicyNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.storage.ListReplicationPolicies(ctx, &debvisorv1.Empty{})
	var out []cobra.Completion
	for _, p := range list.GetPolicies() {
		out = append(out, described(p.GetSpec().GetName(), targetsText(p.GetSpec().GetTargets())))
	}
	return out, err
}
