package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func replicationStatus(a *app) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "status JOB", Short: "Show how a replication job stands", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := &debvisorv1.JobRef{JobId: args[0]}
			show := func(ctx context.Context, c *client) (*debvisorv1.ReplicationStatus, error) {
				status, err := c.storage.GetReplicationStatus(ctx, ref)
				if err == nil {
					err = a.print(status, func() error { return a.printReplication(status) })
				}
				return status, err
			}
			if !watch {
				return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
					_, err := show(ctx, c)
					return err
				})
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				status, err := c.storage.GetReplicationStatus(ctx, ref)
				if err != nil {
					return err
				}
				if atWork(status) {
					if _, err := a.follow(ctx, c, status.GetOperationId(), true); err != nil {
						return err
					}
				}
				status, err = show(ctx, c)
				if err == nil && status.GetState() == debvisorv1.ReplicationState_REPL_STATE_FAILED {
					err = errdefs.New(errdefs.Aborted, orWord(status.GetLastErrorCode(), "FAILED"), "the last run failed: %s", status.GetLastError())
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "follow the run at work to its end first")
	return c
}

// atWork tells whether a run of the job is at work or waits for its turn.
func atWork(s *debvisorv1.ReplicationStatus) bool {
	return s.GetPhase() != "" || s.GetState() == debvisorv1.ReplicationState_REPL_STATE_RUNNING
}

// printReplication prints how a job stands.
func (a *app) printReplication(s *debvisorv1.ReplicationStatus) error {
	var f facts
	f.add("job", s.GetJobId())
	f.add("state", replicationWord(s))
	f.add("policy", s.GetPolicy())
	f.add("source", placeText(s.GetSource(), s.GetDataset()))
	f.add("copy", placeText(s.GetTarget(), s.GetTargetDataset()))
	f.add("operation", s.GetOperationId())
	f.add("at work", s.GetPhase())
	f.add("progress", runText(s))
	f.add("newest copy", s.GetLastSnapshotName())
	f.add("lag", lagText(s))
	f.add("rpo", rpoText(s))
	f.add("last success", stamp(s.GetLastSuccess()))
	f.add("resumed", map[bool]string{true: fmt.Sprintf("%d times", s.GetResumes())}[s.GetResumes() > 0])
	f.add("set aside", s.GetSetAside())
	if s.GetLastErrorCode() != "" {
		f.add("last error", s.GetLastErrorCode()+": "+s.GetLastError())
	}
	return a.printFacts(append(f, decisionFacts(s.GetDecision())...))
}

// replicationWord writes a job's state.
func replicationWord(s *debvisorv1.ReplicationStatus) string {
	return enumWord(s.GetState(), "REPL_STATE_")
}

// runText tells how far a run is, or what the last one was.
func runText(s *debvisorv1.ReplicationStatus) string {
	if s.GetBytesTransferred() == 0 && s.GetBytesTotal() == 0 {
		return ""
	}
	text := size(s.GetBytesTransferred())
	if s.GetBytesTotal() > 0 {
		text += " of " + size(s.GetBytesTotal())
	}
	if s.GetBytesPerSecond() > 0 {
		text += ", " + size(s.GetBytesPerSecond()) + "/s"
	}
	if s.GetEtaMs() > 0 {
		text += ", " + millis(s.GetEtaMs()) + " left"
	} else if s.GetDurationMs() > 0 {
		text += " in " + millis(s.GetDurationMs())
	}
	return text
}

// lagText tells how far behind a copy is.
func lagText(s *debvisorv1.ReplicationStatus) string {
	if s.GetLastSnapshotName() == "" {
		return "no copy yet"
	}
	text := seconds(s.GetLagSeconds())
	if s.GetLagBytes() > 0 {
		text += ", " + size(s.GetLagBytes())
	}
	return text
}

func rpoText(s *debvisorv1.ReplicationStatus) string {
	switch {
	case s.GetRpoSeconds() == 0:
		return ""
	case s.GetRpoMissedSince() != nil:
		return seconds(s.GetRpoSeconds()) + ", MISSED since " + stamp(s.GetRpoMissedSince())
	}
	return seconds(s.GetRpoSeconds()) + ", kept"
}

func replicationList(a *app) *cobra.Command {
	filter := &debvisorv1.ReplicationFilter{}
	var node string
	c := &cobra.Command{
		Use: "list", Short: "List the replication jobs and how they stand", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter.Node = nodeRef(node)
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.storage.ListReplications(ctx, filter)
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(replicationTable(list.GetReplications(), a.wide())) })
			})
		},
	}
	c.Flags().StringVar(&node, "node", "", "only those from or to this node")
	c.Flags().StringVar(&filter.Policy, "policy", "", "only those of this policy")
	complete(c, "node", a.completeNodeFlag)
	complete(c, "policy", a.completeReplicationPolicyFlag)
	return c
}

func replicationTable(list []*debvisorv1.ReplicationStatus, wide bool) table {
	t := table{head: []string{"JOB", "SOURCE", "COPY", "STATE", "LAG", "RPO", "POLICY", "ERROR"}}
	if wide {
		t.head = append(t.head, "OPERATION", "NEWEST", "LAST", "RESUMED")
	}
	for _, s := range list {
		row := []string{
			s.GetJobId(), placeText(s.GetSource(), s.GetDataset()), placeText(s.GetTarget(), s.GetTargetDataset()), replicationWord(s),
			lagText(s), rpoText(s), s.GetPolicy(), s.GetLastErrorCode(),
		}
		if wide {
			row = append(row, s.GetOperationId(), s.GetLastSnapshotName(), runText(s), fmt.Sprint(s.GetResumes()))
		}
		t.add(row...)
	}
	return t
}
