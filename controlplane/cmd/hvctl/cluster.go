package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// clusterCommand is "hvctl cluster": the control plane itself.
func clusterCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "The control plane: its replicas, how it is, backups, the return from one"}
	c.AddCommand(clusterShow(a), clusterStatus(a), clusterBackup(a), clusterRestore(a), clusterMember(a))
	return c
}

func clusterShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the replicas and which of them leads", Args: cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				known, err := c.cluster.GetCluster(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(known, func() error { return a.printCluster(known) })
			})
		},
	}
}

// printCluster prints the control plane's facts and its replicas.
func (a *app) printCluster(c *debvisorv1.Cluster) error {
	var f facts
	f.add("cluster", c.GetName())
	f.add("leader", orWord(c.GetLeader(), "none known"))
	f.add("term", fmt.Sprintf("%d.%d", c.GetEpoch(), c.GetTerm()))
	f.add("answered by", c.GetAnsweredBy())
	if err := a.printFacts(f); err != nil {
		return err
	}
	t := table{head: []string{"REPLICA", "LEADS", "CALLERS", "AGENTS", "VERSION"}}
	for _, r := range c.GetReplicas() {
		t.add(r.GetName(), yesNo(r.GetName() == c.GetLeader()), r.GetCallersAddress(), r.GetAgentsAddress(), r.GetVersion())
	}
	return a.printTableBelow(t)
}
