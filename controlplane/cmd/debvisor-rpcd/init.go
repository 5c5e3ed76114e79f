package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/controlplane/internal/members"
)

func newInitCmd() *cobra.Command {
	var home members.Home
	var options members.Options
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the first replica of a new cluster",
		Long: "Makes the cluster's CA, this replica's certificates and a client certificate for the principal\n" +
			"\"operator\" in the data directory. Refuses a directory that holds a replica already.\n\n" + ownerNote,
		Example: "  debvisor-rpcd init --data-dir /var/lib/debvisor/rpcd --cluster lab --host 10.0.0.1 --host rpc-1.example.org",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := settle(home, &options); err != nil {
				return err
			}
			record, err := members.Init(home, options)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			_, err = fmt.Fprintf(out, "cluster %s made; replica %s lives in %s\n"+
				"operator's certificate: %s and %s\n"+
				"next: debvisor-rpcd serve --data-dir %s\n",
				record.Cluster, record.Name, home.Dir, home.Operator().Cert, home.Operator().Key, home.Dir)
			return err
		},
	}
	homeFlags(cmd, &home)
	placeFlags(cmd, &options)
	cmd.Flags().StringVar(&options.Cluster, "cluster", "debvisor", "the new cluster's name")
	return cmd
}
