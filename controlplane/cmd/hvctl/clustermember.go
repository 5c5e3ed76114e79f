package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// clusterMember is "hvctl cluster member": which replicas there are.
func clusterMember(a *app) *cobra.Command {
	c := &cobra.Command{Use: "member", Aliases: []string{"members"}, Short: "Add and remove replicas"}
	c.AddCommand(memberAdd(a), memberRemove(a))
	return c
}

func memberAdd(a *app) *cobra.Command {
	var life time.Duration
	c := &cobra.Command{
		Use: "add", Short: "Make a token with which a new replica joins",
		Long: "Make a single-use token with which a replica joins the cluster: the holder becomes part of\n" +
			"the control plane. Only the token goes to standard output. The new replica learns all that there\n" +
			"is before it votes; to replace a dead one, remove that one first.",
		Example: "  hvctl cluster member add > token", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.makeToken(cmd.Context(), &debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA}, life,
				"debvisor-rpcd join --server %s --token TOKEN --data-dir DIR --host HOST")
		},
	}
	addLife(c, &life)
	return c
}

func memberRemove(a *app) *cobra.Command {
	var running bool
	c := &cobra.Command{
		Use: "remove REPLICA", Short: "Take a replica out of the cluster for good", Args: cobra.ExactArgs(1),
		Long: "Take a replica out of the cluster for good: it votes no more, and its certificates are revoked.\n" +
			"It is refused (exit code 4) where those that are left would have no majority, for the last one, and\n" +
			"for one that is heard, unless --even-if-running. A replica that was let in and never started is\n" +
			"named by its etcd address, https://host:port.",
		ValidArgsFunction: a.completeReplicaArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				ctx = a.changing(ctx)
				other, done, err := a.another(ctx, c, args[0])
				if err != nil {
					return err
				}
				defer done()
				result, err := other.cluster.RemoveReplica(ctx, &debvisorv1.RemoveReplicaRequest{Name: args[0], EvenIfRunning: running})
				if err != nil {
					return other.told(err)
				}
				return a.print(result, func() error {
					a.hint("%s", result.GetMessage())
					return nil
				})
			})
		},
	}
	c.Flags().BoolVar(&running, "even-if-running", false, "remove it though it is heard: it stops serving")
	return c
}

func (a *app) completeReplicaArgument(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeReplicas(cmd, args, typed)
}

// another gives a client of a replica that is not the one of that name, which
// could not tell of its own removal.
func (a *app) another(ctx context.Context, c *client, than string) (*client, func(), error) {
	known, err := c.cluster.GetCluster(ctx, &debvisorv1.Empty{})
	if err != nil || known.GetAnsweredBy() != than {
		return c, func() {}, err
	}
	var servers []string
	for _, r := range known.GetReplicas() {
		if r.GetName() != than {
			servers = append(servers, r.GetCallersAddress())
		}
	}
	if len(servers) == 0 {
		return c, func() {}, nil // it is the last one, and says so
	}
	other, err := a.dialTo(servers)
	if err != nil {
		return nil, nil, err
	}
	other.trace = c.trace
	return other, other.close, nil
}
