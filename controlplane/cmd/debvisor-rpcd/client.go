package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/controlplane/internal/members"
)

func newClientCmd() *cobra.Command {
	var home members.Home
	var name, out string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "client",
		Short: "Issue a client certificate for a principal, with this replica's CA",
		Example: "  debvisor-rpcd client --data-dir /var/lib/debvisor/rpcd --name ci --out ./ci\n" +
			"writes ci/ci.pem, ci/ci-key.pem and ci/ca.pem",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pair, err := members.IssueClient(home, name, out, life)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "certificate for %s: %s and %s\n", name, pair.Cert, pair.Key)
			return err
		},
	}
	homeFlags(cmd, &home)
	cmd.Flags().StringVar(&name, "name", "", "the principal")
	cmd.Flags().StringVar(&out, "out", ".", "the directory to write to")
	cmd.Flags().DurationVar(&life, "life", 0, "how long the certificate is valid (default 90 days)")
	cobra.CheckErr(cmd.MarkFlagRequired("name"))
	return cmd
}
