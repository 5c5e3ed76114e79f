package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func clusterStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Tell how the control plane is, and what is wrong", Args: cobra.NoArgs,
		Long: "Tell how each replica is, as it last said, how many may fail, when the last backup was taken,\n" +
			"and what is wrong, the worst first.",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				status, err := c.cluster.GetClusterStatus(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(status, func() error { return a.printStatus(status) })
			})
		},
	}
}

func (a *app) printStatus(s *debvisorv1.ClusterStatus) error {
	var f facts
	f.add("cluster", s.GetCluster().GetName())
	f.add("leader", orWord(s.GetCluster().GetLeader(), "none known"))
	f.add("replicas", fmt.Sprintf("%d, of which %d may fail", len(s.GetReplicas()), s.GetMayFail()))
	f.add("nodes", fmt.Sprintf("%d online, %d suspect, %d unreachable", s.GetNodesOnline(), s.GetNodesSuspect(), s.GetNodesUnreachable()))
	f.add("schema", fmt.Sprint(s.GetSchema()))
	f.add("last backup", orWord(ago(s.GetLastBackupAt()), "none"))
	if r := s.GetRestore(); r != nil {
		f.add("restored", restoreWord(r))
	}
	f.add("problems", orWord(strings.Join(s.GetProblems(), "\n"), "none"))
	if err := a.printFacts(f); err != nil {
		return err
	}
	t := table{head: []string{"REPLICA", "READY", "LEADS", "VOTES", "SAID", "ETCD", "CERTIFICATE ENDS", "VERSION", "WHY NOT READY"}}
	for _, r := range s.GetReplicas() {
		t.add(r.GetReplica().GetName(), yesNo(r.GetReady()), yesNo(r.GetLeader()), yesNo(!r.GetLearner()), ago(r.GetReportedAt()),
			size(r.GetEtcdDbBytes()), stamp(r.GetCertificateExpiresAt()), r.GetReplica().GetVersion(), strings.Join(r.GetReasons(), "\n"))
	}
	return a.printTableBelow(t)
}

// restoreWord is how far a return from a backup is, in words.
func restoreWord(r *debvisorv1.RestoreStatus) string {
	switch {
	case r.GetConfirmedAt() == nil:
		return fmt.Sprintf("%s, waiting for an operator's word: hvctl cluster restore confirm --epoch %d", stamp(r.GetRestoredAt()), r.GetEpoch())
	case r.GetReconciledAt() == nil && len(r.GetWaitingFor()) > 0:
		return stamp(r.GetRestoredAt()) + ", waiting for " + strings.Join(r.GetWaitingFor(), ", ")
	case r.GetReconciledAt() == nil:
		return stamp(r.GetRestoredAt()) + ", what the nodes run is being taken over"
	}
	return stamp(r.GetRestoredAt()) + ", over since " + stamp(r.GetReconciledAt())
}
