package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/controlplane/internal/backup"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func clusterBackup(a *app) *cobra.Command {
	var keyFile string
	c := &cobra.Command{
		Use: "backup FILE --recovery-key KEYFILE", Short: "Take a backup of all that the control plane keeps",
		Long: "Take a backup into a new FILE: all records, and the CAs with their keys, which only the recovery\n" +
			"key opens. KEYFILE is made where there is none. Keep it apart from the backups: who has both has the\n" +
			"cluster, and without it no backup can be restored. Guests and their disks are in no backup.",
		Example: "  hvctl cluster backup /var/backups/debvisor-$(date +%F).backup --recovery-key /root/debvisor-recovery.key\n" +
			"  hvctl cluster backup verify /var/backups/debvisor-2026-11-22.backup",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keyFile == "" {
				return usage("--recovery-key is needed: the file of the key that alone opens the CAs' keys in the backup; it is made where there is none")
			}
			key, made, err := backup.ReadOrMakeKey(keyFile)
			if err != nil {
				return err
			}
			if made {
				a.hint("recovery key made: %s\nkeep it apart from the backups; without it none can be restored", keyFile)
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				ctx, cancel := context.WithCancel(ctx)
				defer cancel() // what is left of the stream
				stream, err := c.cluster.Backup(a.changing(ctx), &debvisorv1.BackupRequest{RecoveryKey: key.PublicKey().Bytes()})
				if err != nil {
					return err
				}
				manifest, err := backup.Write(args[0], stream.Recv)
				if err != nil {
					return err
				}
				return a.print(manifest, func() error {
					a.hint("backup taken and verified: %s", args[0])
					return a.printManifest(manifest)
				})
			})
		},
	}
	c.Flags().StringVar(&keyFile, "recovery-key", "", "the recovery key's file, made where there is none; needed")
	c.AddCommand(backupVerify(a))
	return c
}

func backupVerify(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "verify FILE", Short: "Read a backup and tell whether it is whole, and of what", Args: cobra.ExactArgs(1),
		Long: "Read a backup and tell whether it is whole, and of what. No replica is asked. Whether a recovery key\n" +
			"opens it, debvisor-rpcd restore --check tells.",
		RunE: func(_ *cobra.Command, args []string) error {
			manifest, err := backup.Verify(args[0])
			if err != nil {
				return err
			}
			return a.print(manifest, func() error { return a.printManifest(manifest) })
		},
	}
}

func (a *app) printManifest(m *debvisorv1.BackupManifest) error {
	var f facts
	f.add("cluster", m.GetCluster())
	f.add("taken", stamp(m.GetTakenAt()))
	f.add("by replica", m.GetReplica()+" (debvisor-rpcd "+m.GetDebvisorVersion()+")")
	f.add("epoch", fmt.Sprint(m.GetEpoch()))
	f.add("etcd revision", fmt.Sprint(m.GetRevision()))
	f.add("schema", fmt.Sprint(m.GetSchema()))
	f.add("snapshot", fmt.Sprintf("%s, SHA-256 %x", size(m.GetSnapshotBytes()), m.GetSnapshotSha256()))
	return a.printFacts(f)
}
