package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// clusterRestore is "hvctl cluster restore": the return from a backup, once
// debvisor-rpcd restore has made a replica from it.
func clusterRestore(a *app) *cobra.Command {
	c := &cobra.Command{Use: "restore", Short: "The return from a backup (debvisor-rpcd restore begins it)"}
	c.AddCommand(restoreConfirm(a), &cobra.Command{
		Use: "status", Short: "Tell how far the return from a backup is", Args: cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				status, err := c.cluster.GetClusterStatus(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				if status.GetRestore() == nil {
					return errdefs.New(errdefs.FailedPrecondition, "NOT_RESTORED", "this cluster was not restored from a backup")
				}
				return a.print(status.GetRestore(), func() error { return a.printRestore(status.GetRestore()) })
			})
		},
	})
	return c
}

func restoreConfirm(a *app) *cobra.Command {
	var req debvisorv1.RestoreConfirmation
	c := &cobra.Command{
		Use: "confirm --epoch N --reason TEXT", Short: "Give your word that the former cluster is off for good",
		Long: "Give your word that the cluster that was restored from a backup is the one that the nodes shall\n" +
			"listen to. From then on their agents refuse the former one for good. If that one still runs, nodes\n" +
			"that have not heard of this one obey it, and VMs may be started twice: look before you say so.",
		Example: "  hvctl cluster restore status\n  hvctl cluster restore confirm --epoch 1795380000 --reason \"the three former hosts are powered off\"",
		Args:    cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.GetEpoch() == 0 || req.GetReason() == "" {
				return usage("--epoch and --reason are needed: hvctl cluster restore status tells the epoch; how do you know that the former cluster is off?")
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				status, err := c.cluster.ConfirmRestore(a.changing(ctx), &req)
				if err != nil {
					return err
				}
				return a.print(status, func() error { return a.printRestore(status) })
			})
		},
	}
	c.Flags().Uint64Var(&req.Epoch, "epoch", 0, "the epoch that the restore began; needed")
	c.Flags().StringVar(&req.Reason, "reason", "", "how you know, for the record (at most 256 characters); needed")
	complete(c, "epoch", cobra.NoFileCompletions)
	complete(c, "reason", cobra.NoFileCompletions)
	return c
}

func (a *app) printRestore(r *debvisorv1.RestoreStatus) error {
	var f facts
	f.add("epoch", fmt.Sprint(r.GetEpoch()))
	f.add("restored", stamp(r.GetRestoredAt()))
	f.add("backup", fmt.Sprintf("%s, etcd revision %d", stamp(r.GetBackupAt()), r.GetBackupRevision()))
	confirmed := "no: agents refuse this cluster until hvctl cluster restore confirm"
	if r.GetConfirmedAt() != nil {
		confirmed = stamp(r.GetConfirmedAt()) + " by " + r.GetConfirmedBy()
	}
	f.add("confirmed", confirmed)
	f.add("reconciled", orWord(stamp(r.GetReconciledAt()), "no"))
	f.add("waiting for", strings.Join(r.GetWaitingFor(), "\n"))
	f.add("differences", orWord(strings.Join(r.GetDifferences(), "\n"), "none"))
	return a.printFacts(f)
}
