package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// tokenCommand is "hvctl token": the join tokens.
func tokenCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "token", Aliases: []string{"tokens"}, Short: "Join tokens: single-use secrets that enrol a node or a replica"}
	c.AddCommand(tokenCreate(a), tokenList(a), tokenRevoke(a))
	return c
}

// nodeToken is "hvctl node token".
func nodeToken(a *app) *cobra.Command {
	var life time.Duration
	var replace, anyNode bool
	c := &cobra.Command{
		Use: "token NODE", Short: "Make a token with which a node's agent enrols",
		Long:    "Make a single-use token with which the agent of a node enrols. Only the token goes to\nstandard output.",
		Example: "  hvctl node token node-3 > token\n  hvctl node token --any",
		Args:    cobra.MaximumNArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if anyNode == (len(args) == 1) {
				return usage("give the NODE that the token is for, or --any for whichever new node uses it")
			}
			req := &debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_NODE, Replace: replace}
			node := "NODE"
			if len(args) == 1 {
				req.NodeId, node = args[0], args[0]
			}
			return a.makeToken(cmd.Context(), req, life,
				"debvisor-agent enroll --server %s --token TOKEN --data-dir DIR --node "+node)
		},
	}
	addLife(c, &life)
	c.Flags().BoolVar(&replace, "replace", false, "let a node that exists enrol anew; its former certificate is no longer renewed")
	c.Flags().BoolVar(&anyNode, "any", false, "for any node that does not exist yet")
	return c
}

func tokenCreate(a *app) *cobra.Command {
	var life time.Duration
	var replica bool
	c := &cobra.Command{
		Use: "create --replica", Short: "Make a token with which a replica joins (for a node: hvctl node token)",
		Long:    "Make a single-use token with which a replica joins the cluster: the holder becomes part of\nthe control plane. Only the token goes to standard output.",
		Example: "  hvctl token create --replica > token",
		Args:    cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !replica {
				return usage("say --replica for a replica's token; hvctl node token NODE makes a node's")
			}
			return a.makeToken(cmd.Context(), &debvisorv1.JoinTokenRequest{Kind: debvisorv1.JoinTokenKind_JOIN_TOKEN_KIND_REPLICA}, life,
				"debvisor-rpcd join --server %s --token TOKEN --data-dir DIR --host HOST")
		},
	}
	addLife(c, &life)
	c.Flags().BoolVar(&replica, "replica", false, "the token is for a replica")
	return c
}

// addLife adds the flag of a token's life.
func addLife(c *cobra.Command, life *time.Duration) {
	c.Flags().DurationVar(life, "ttl", time.Hour, "how long the token can be used, at most 24h")
	complete(c, "ttl", cobra.NoFileCompletions)
}

// makeToken makes a token and prints it, and nothing else, on standard output.
func (a *app) makeToken(ctx context.Context, req *debvisorv1.JoinTokenRequest, life time.Duration, next string) error {
	seconds := life / time.Second
	if seconds < 1 || seconds > math.MaxUint32 {
		return usage("--ttl %s is not accepted; expected 1s to 24h", life)
	}
	req.TtlSeconds = uint32(seconds)
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		token, err := c.nodes.CreateJoinToken(a.changing(ctx), req)
		if err != nil {
			return err
		}
		return a.print(token, func() error {
			_, err := fmt.Fprintln(a.out, token.GetToken())
			a.hint("token %s can be used once, until %s:\n  "+next, token.GetId(), stamp(token.GetExpiresAt()), c.servers[0])
			return err
		})
	})
}

func tokenList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens that can still be used, without their secrets", Args: cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.nodes.ListJoinTokens(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(tokenTable(list)) })
			})
		},
	}
}

// tokenTable lists tokens.
func tokenTable(list *debvisorv1.JoinTokenList) table {
	t := table{head: []string{"TOKEN", "FOR", "NODE", "EXPIRES", "BY"}}
	for _, token := range list.GetTokens() {
		node := token.GetNodeId()
		if token.GetReplace() {
			node += " (replaces it)"
		}
		t.add(token.GetId(), enumWord(token.GetKind(), "JOIN_TOKEN_KIND_"), node, stamp(token.GetExpiresAt()), token.GetCreatedBy())
	}
	return t
}

func tokenRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "revoke TOKEN-ID", Short: "Make a token useless", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTokens,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				empty, err := c.nodes.RevokeJoinToken(a.changing(ctx), &debvisorv1.JoinTokenRef{Id: args[0]})
				if err != nil {
					return err
				}
				return a.print(empty, func() error {
					_, err := fmt.Fprintf(a.out, "token %s revoked\n", clean(args[0]))
					return err
				})
			})
		},
	}
}
