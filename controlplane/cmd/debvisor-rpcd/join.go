package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/controlplane/internal/members"
)

func newJoinCmd() *cobra.Command {
	var home members.Home
	var options members.Options
	var server, token string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "join",
		Short: "Make another replica of a cluster that runs",
		Long: "Asks any replica, with a replica's join token, to let this one in, and fills the data directory.\n" +
			"After a failure the same command can be repeated with the same token.\n\n" + ownerNote,
		Example: "  debvisor-rpcd join --server 10.0.0.1:7443 --token dvj_… --data-dir /var/lib/debvisor/rpcd --host 10.0.0.2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret, err := readToken(token)
			if err != nil {
				return err
			}
			if err := settle(home, &options); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			record, err := members.Join(ctx, home, server, secret, options)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "replica %s joined cluster %s\nnext: debvisor-rpcd serve --data-dir %s\n",
				record.Name, record.Cluster, home.Dir)
			return err
		},
	}
	homeFlags(cmd, &home)
	placeFlags(cmd, &options)
	cmd.Flags().StringVar(&server, "server", "", "any replica, host:port")
	cmd.Flags().StringVar(&token, "token", "", "the join token, or @FILE to read it from a file (seen by fewer than a command line)")
	cmd.Flags().DurationVar(&limit, "timeout", time.Minute, "how long to try")
	for _, name := range []string{"server", "token"} {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
	return cmd
}

// readToken gives the token itself, from its file where a file is named.
func readToken(token string) (string, error) {
	path, fromFile := strings.CutPrefix(token, "@")
	if !fromFile {
		return token, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the join token: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
