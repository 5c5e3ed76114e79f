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

// retentionCommand is "hvctl retention": which snapshots stay, by named policies.
func retentionCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "retention", Short: "Retention policies: which snapshots are taken, and which stay"}
	c.AddCommand(retentionSet(a), retentionList(a), retentionShow(a), retentionDelete(a), retentionPlan(a))
	return c
}

func retentionSet(a *app) *cobra.Command {
	var r rules
	var datasets []string
	var consistency string
	spec := &debvisorv1.RetentionPolicySpec{}
	c := &cobra.Command{
		Use: "set POLICY", Short: "Make or replace a retention policy",
		Long: "Make or replace a retention policy, as the flags say and nothing of what was before. With --schedule it runs by\n" +
			"itself: with --label it then takes a snapshot first, and removes what the rules let go.",
		Example: "  hvctl retention set vms --dataset tank/vm --recursive --schedule 'every 15m' --label auto --keep-last 8 --keep-daily 14\n" +
			"  hvctl retention set nightly --dataset hv1:tank/db --schedule '30 2 * * *' --time-zone Europe/Berlin --keep-weekly 8",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRetentions,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if spec.Datasets, err = readDatasets(datasets); err != nil {
				return err
			}
			if spec.Rules, err = r.message(); err != nil {
				return err
			}
			if spec.Consistency, err = readConsistency(consistency); err != nil {
				return err
			}
			spec.Name, spec.TimeZone = args[0], spec.GetRules().GetTimeZone()
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				status, err := c.storage.SetRetentionPolicy(a.changing(ctx), spec)
				if err != nil {
					return err
				}
				return a.print(status, func() error { return a.done(args[0] + ": retention policy set" + nextText(status.GetRun())) })
			})
		},
	}
	r.addFlags(c)
	f := c.Flags()
	f.StringSliceVar(&datasets, "dataset", nil, "[NODE:]POOL/PATH or rbd:POOL/IMAGE, comma-separated or several times; needed")
	f.BoolVarP(&spec.Recursive, "recursive", "r", false, "the datasets below too, each for itself")
	f.StringVar(&spec.Schedule, "schedule", "", "'every 15m', or five cron fields; without it only by request")
	f.StringVar(&spec.SnapshotLabel, "label", "", "take a snapshot with this label first")
	f.BoolVar(&spec.Paused, "paused", false, "do not run by the schedule for now")
	addConsistency(c, &consistency)
	complete(c, "dataset", a.completeDatasets)
	complete(c, "schedule", cobra.NoFileCompletions)
	complete(c, "label", cobra.NoFileCompletions)
	return c
}

// done prints that something is done.
func (a *app) done(text string) error {
	_, err := fmt.Fprintln(a.out, clean(text))
	return err
}

// nextText tells when a policy runs next.
func nextText(run *debvisorv1.PolicyRun) string {
	if run.GetNextDue() == nil {
		return ""
	}
	return ", due " + stamp(run.GetNextDue())
}

func retentionList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the retention policies and how their schedules stand", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.storage.ListRetentionPolicies(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error {
					t := table{head: []string{"POLICY", "RULES", "DATASETS", "SCHEDULE", "NEXT", "LAST", "SKIPPED"}}
					for _, p := range list.GetPolicies() {
						s := p.GetSpec()
						t.add(s.GetName(), rulesText(s.GetRules()), fmt.Sprint(len(s.GetDatasets())), scheduleText(s.GetSchedule(), s.GetTimeZone(), s.GetPaused()),
							stamp(p.GetRun().GetNextDue()), ago(p.GetRun().GetLastDue()), skippedText(p.GetRun()))
					}
					return a.printTable(t)
				})
			})
		},
	}
}

// scheduleText writes a policy's schedule.
func scheduleText(schedule, zone string, paused bool) string {
	text := orWord(schedule, "by request")
	if schedule != "" && zone != "" {
		text += " (" + zone + ")"
	}
	if paused {
		text += ", paused"
	}
	return text
}

// skippedText tells how often a policy's time came in vain.
func skippedText(run *debvisorv1.PolicyRun) string {
	if run.GetSkipped() == 0 {
		return ""
	}
	return strings.TrimSuffix(fmt.Sprintf("%d: %s", run.GetSkipped(), run.GetLastSkip()), ": ")
}

// retention finds a retention policy by its name.
func retentionOf(ctx context.Context, c *client, name string) (*debvisorv1.RetentionPolicyStatus, error) {
	list, err := c.storage.ListRetentionPolicies(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(list.GetPolicies(), func(p *debvisorv1.RetentionPolicyStatus) bool { return p.GetSpec().GetName() == name })
	if at < 0 {
		return nil, errdefs.New(errdefs.NotFound, "POLICY_NOT_FOUND", "no retention policy is called %q", name)
	}
	return list.GetPolicies()[at], nil
}

func retentionShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show POLICY", Short: "Show a retention policy", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRetentions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				p, err := retentionOf(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.print(p, func() error {
					s := p.GetSpec()
					f := facts{}
					f.add("policy", s.GetName())
					f.add("rules", rulesText(s.GetRules()))
					f.add("datasets", datasetsText(s.GetDatasets()))
					f.add("recursive", map[bool]string{true: "yes"}[s.GetRecursive()])
					f.add("snapshots", map[bool]string{true: "taken first, label " + s.GetSnapshotLabel()}[s.GetSnapshotLabel() != ""])
					f.add("guests", consistencyText(s.GetConsistency()))
					return a.printFacts(append(f, runFacts(p.GetRun(), scheduleText(s.GetSchedule(), s.GetTimeZone(), s.GetPaused()))...))
				})
			})
		},
	}
}

// datasetsText lists datasets with their nodes, one a line.
func datasetsText(refs []*debvisorv1.DatasetRef) string {
	var lines []string
	for _, ref := range refs {
		lines = append(lines, datasetArgument(ref))
	}
	return strings.Join(lines, "\n")
}

// runFacts tell how a policy's schedule stands.
func runFacts(run *debvisorv1.PolicyRun, schedule string) facts {
	var f facts
	f.add("schedule", schedule)
	f.add("next", stamp(run.GetNextDue()))
	f.add("last", stamp(run.GetLastDue()))
	f.add("operations", strings.Join(run.GetLastOperations(), "\n"))
	f.add("ran", fmt.Sprint(run.GetFired()))
	f.add("skipped", skippedText(run))
	return f
}

func retentionDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete POLICY", Short: "End a retention policy; snapshots stay", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRetentions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				answer, err := c.storage.DeleteRetentionPolicy(a.changing(ctx), &debvisorv1.StoragePolicyRef{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(answer, func() error { return a.done(args[0] + ": retention policy deleted") })
			})
		},
	}
}

func retentionPlan(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "plan POLICY", Short: "Tell which snapshots a retention policy would remove now, and why the others stay",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRetentions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				p, err := retentionOf(ctx, c, args[0])
				if err != nil {
					return err
				}
				all := &debvisorv1.PrunePlan{}
				for _, ref := range p.GetSpec().GetDatasets() {
					plan, err := c.storage.PlanPrune(ctx, &debvisorv1.PruneRequest{
						Dataset: ref, Policy: p.GetSpec().GetRules(),
						Recursive: p.GetSpec().GetRecursive() && ref.GetBackend() == debvisorv1.StorageBackend_BACKEND_ZFS,
					})
					if err != nil {
						return err
					}
					all.Verdicts = append(all.Verdicts, plan.GetVerdicts()...)
					all.Keep, all.Remove, all.FreedBytes = all.Keep+plan.GetKeep(), all.Remove+plan.GetRemove(), all.FreedBytes+plan.GetFreedBytes()
					all.Truncated = all.Truncated || plan.GetTruncated()
				}
				return a.print(all, func() error { return a.printPrune(all) })
			})
		},
	}
}

func (a *app) completeRetentions(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		list, err := c.storage.ListRetentionPolicies(ctx, &debvisorv1.Empty{})
		var out []cobra.Completion
		for _, p := range list.GetPolicies() {
			out = append(out, described(p.GetSpec().GetName(), rulesText(p.GetSpec().GetRules())))
		}
		return out, err
	})
}
