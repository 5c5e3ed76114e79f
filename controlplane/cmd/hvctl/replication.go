package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// codeNotReplicable is a dry run of a replication that would be refused.
const codeNotReplicable = "REPLICATION_REFUSED"

// replicationCommand is "hvctl replication": copies of ZFS datasets on other nodes.
func replicationCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "replication", Aliases: []string{"replications"}, Short: "Replication: copies of ZFS datasets on other nodes"}
	c.AddCommand(replicationPlan(a), replicationRun(a), replicationStatus(a), replicationList(a), replicationDelete(a), replicationPolicy(a))
	return c
}

// replicationOptions are the flags of how a dataset is replicated.
type replicationOptions struct {
	options debvisorv1.ReplicationOptions
	rpo     time.Duration
}

func (o *replicationOptions) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&o.options.NoSnapshot, "no-snapshot", false, "do not take a snapshot first: send what there is")
	f.BoolVar(&o.options.NewestOnly, "newest-only", false, "send only the newest snapshot, not those between")
	f.Uint64Var(&o.options.BandwidthMib, "bandwidth", 0, "MiB a second at most; 0: no limit")
	f.DurationVar(&o.rpo, "rpo", 0, "how old the copy's newest snapshot may be, such as 1h; 0: any age")
	f.BoolVar(&o.options.RefuseDiverged, "refuse-diverged", false, "fail where the copy has diverged, and do not set it aside")
	complete(c, "bandwidth", cobra.NoFileCompletions)
	complete(c, "rpo", cobra.NoFileCompletions)
}

// message gives the options; nil where no flag says any.
func (o *replicationOptions) message(cmd *cobra.Command) (*debvisorv1.ReplicationOptions, error) {
	if o.rpo < 0 || o.rpo%time.Second != 0 {
		return nil, usage("--rpo %s: whole seconds are accepted", o.rpo)
	}
	o.options.RpoSeconds = uint64(o.rpo / time.Second)
	if !slices.ContainsFunc([]string{"no-snapshot", "newest-only", "bandwidth", "rpo", "refuse-diverged"}, cmd.Flags().Changed) {
		return nil, nil //nolint:nilnil // nothing is said
	}
	return &o.options, nil
}

func replicationPlan(a *app) *cobra.Command {
	var o replicationOptions
	var to, copied string
	req := &debvisorv1.ZfsReplicationPlan{}
	c := &cobra.Command{
		Use: "plan DATASET --to NODE", Short: "Make a replication job, or find it, and tell what its next run would send",
		Long: "Make a replication job, or find the one there is, and tell what its next run would send: in full or from which\n" +
			"snapshot on, how much, and what has diverged. The exit code is 4 where a run would be refused. Where the copy has\n" +
			"diverged, a run sets it aside by renaming; hvctl replication run JOB --confirm PLAN destroys what the plan names instead.",
		Example: "  hvctl replication plan tank/vm/web1 --to hv2\n  hvctl replication plan hv1:tank/db --to hv2 --as backup/db --rpo 1h",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeDataset,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if to == "" {
				return usage("--to is needed: the node that gets the copy")
			}
			if req.Dataset, err = readDataset(args[0]); err != nil {
				return err
			}
			if copied != "" {
				if req.TargetDataset, err = readDataset(copied); err != nil {
					return err
				}
			}
			if req.Options, err = o.message(cmd); err != nil {
				return err
			}
			req.Target = nodeRef(to)
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				job, err := c.storage.PlanZfsReplication(a.changing(ctx), req)
				if err != nil {
					return err
				}
				if err := a.print(job, func() error { return a.printJob(job) }); err != nil {
					return err
				}
				if job.GetDecision().GetMode() == debvisorv1.ReplicationMode_REPLICATION_MODE_REFUSED {
					return errdefs.New(errdefs.FailedPrecondition, codeNotReplicable, "a run of the job would be refused now").With("job", job.GetJobId())
				}
				return nil
			})
		},
	}
	f := c.Flags()
	f.StringVar(&to, "to", "", "the node that gets the copy; needed")
	f.StringVar(&copied, "as", "", "the copy's name, POOL/PATH; without it the dataset's")
	f.StringVar(&req.JobId, "job", "", "the job's id; without it one is given")
	f.StringVar(&req.Policy, "policy", "", "take the options of this replication policy")
	o.addFlags(c)
	complete(c, "to", a.completeNodeFlag)
	complete(c, "as", cobra.NoFileCompletions)
	complete(c, "job", cobra.NoFileCompletions)
	complete(c, "policy", cobra.NoFileCompletions)
	return c
}

// printJob prints a job and what its next run would do.
func (a *app) printJob(job *debvisorv1.ReplicationJob) error {
	p := job.GetPlan()
	var f facts
	f.add("job", job.GetJobId())
	f.add("policy", p.GetPolicy())
	f.add("source", placeText(p.GetSource(), p.GetDataset()))
	f.add("copy", placeText(p.GetTarget(), p.GetTargetDataset()))
	f.add("options", optionsText(p.GetOptions()))
	if err := a.printFacts(append(f, decisionFacts(job.GetDecision())...)); err != nil {
		return err
	}
	if len(job.GetDecision().GetSteps()) == 0 {
		return nil
	}
	t := table{head: []string{"FROM", "TO", "ABOUT"}}
	for _, s := range job.GetDecision().GetSteps() {
		t.add(orWord(s.GetFrom(), "(in full)"), s.GetTo(), size(s.GetEstimatedBytes()))
	}
	return a.printTableBelow(t)
}

// decisionFacts tell what a run would do.
func decisionFacts(d *debvisorv1.ReplicationDecision) facts {
	var f facts
	if d == nil {
		return f
	}
	f.add("next run", strings.ToLower(enumWord(d.GetMode(), "REPLICATION_MODE_")))
	if d.GetDivergence() != debvisorv1.Divergence_DIVERGENCE_NONE {
		f.add("diverged", strings.ToLower(strings.ReplaceAll(enumWord(d.GetDivergence(), "DIVERGENCE_"), "_", " ")))
	}
	f.add("from", d.GetCommon())
	f.add("estimate", map[bool]string{true: size(d.GetEstimatedBytes())}[d.GetEstimatedBytes() > 0])
	f.add("set aside as", d.GetSetAside())
	f.add("destroyed if confirmed", strings.Join(d.GetDestroy(), "\n"))
	f.add("why", strings.Join(d.GetReasons(), "\n"))
	f.add("plan", d.GetPlanId())
	f.add("ends", stamp(d.GetExpiresAt()))
	return f
}

func placeText(node *debvisorv1.NodeRef, d *debvisorv1.DatasetRef) string {
	return nodeName(node) + ":" + datasetName(d)
}

// optionsText tells what options say; empty: nothing.
func optionsText(o *debvisorv1.ReplicationOptions) string {
	var words []string
	for text, is := range map[string]bool{"no snapshot": o.GetNoSnapshot(), "newest only": o.GetNewestOnly(), "refuse diverged": o.GetRefuseDiverged()} {
		if is {
			words = append(words, text)
		}
	}
	slices.Sort(words)
	if o.GetBandwidthMib() > 0 {
		words = append(words, fmt.Sprintf("%d MiB/s", o.GetBandwidthMib()))
	}
	if o.GetRpoSeconds() > 0 {
		words = append(words, "rpo "+seconds(o.GetRpoSeconds()))
	}
	return strings.Join(words, ", ")
}

func replicationRun(a *app) *cobra.Command {
	ref := &debvisorv1.JobRef{}
	c := &cobra.Command{
		Use: "run JOB", Short: "Bring a replication job's copy up to date and follow that to its end",
		Long: "Bring a replication job's copy up to date and follow that to its end. Interrupting hvctl leaves the operation\n" +
			"running; a cut connection or a dead daemon is no reason for it to fail. With --no-wait only the operation's id\ngoes to standard output.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref.JobId = args[0]
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					status, err := c.storage.RunZfsReplication(ctx, ref, header)
					return status.GetOperationId(), err
				})
			})
		},
	}
	c.Flags().StringVar(&ref.ConfirmPlanId, "confirm", "", "the plan's id, which confirms that what it names is destroyed on the target")
	complete(c, "confirm", cobra.NoFileCompletions)
	return c
}

func replicationDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete JOB", Short: "End a replication job; its copy stays and becomes writable", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					status, err := c.storage.DeleteReplication(ctx, &debvisorv1.JobRef{JobId: args[0]}, header)
					return status.GetOperationId(), err
				})
			})
		},
	}
}

// replicationLine is the last line of an operation on a replication job.
func replicationLine(op *debvisorv1.Operation) string {
	d := op.GetReplication()
	pair := placeWords(d.GetSource(), d.GetDataset()) + " → " + placeWords(d.GetTarget(), d.GetTargetDataset())
	if op.GetKind() == "replication.delete" {
		return fmt.Sprintf("job %s ended: %s is nobody's copy any more", d.GetJobId(), placeWords(d.GetTarget(), d.GetTargetDataset()))
	}
	line := pair + ": up to date in " + took(op)
	if total := op.GetProgress().GetBytesDone(); total > 0 {
		line += ", " + size(total)
	}
	if d.GetResumes() > 0 {
		line += ", " + count(int(d.GetResumes()), "resume")
	}
	if d.GetSetAside() != "" {
		line += "\nthe former copy had diverged and is set aside as " + d.GetSetAside()
	}
	return line
}

func placeWords(node *debvisorv1.NodeRef, path string) string { return nodeName(node) + ":" + path }

func (a *app) completeJobs(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		list, err := c.storage.ListReplications(ctx, &debvisorv1.ReplicationFilter{})
		var out []cobra.Completion
		for _, s := range list.GetReplications() {
			out = append(out, described(s.GetJobId(), placeText(s.GetSource(), s.GetDataset())+" → "+placeText(s.GetTarget(), s.GetTargetDataset())))
		}
		return out, err
	})
}
