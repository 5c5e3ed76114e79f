package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/controlplane/internal/backup"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func newRestoreCmd() *cobra.Command {
	var home members.Home
	var o members.RestoreOptions
	var keyFile string
	var check bool
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Make the first replica of a cluster from a backup",
		Long: "Makes the data directory of a cluster's only replica from a backup that hvctl cluster backup took. The others join it\n" +
			"as replicas do. The cluster begins a new epoch: agents listen to it only once an operator has said, with hvctl cluster\n" +
			"restore confirm, that the former cluster is off. Refuses a directory that holds a replica.",
		Example: "  debvisor-rpcd restore --from debvisor.backup --recovery-key recovery.key --check\n" +
			"  debvisor-rpcd restore --from debvisor.backup --recovery-key recovery.key --data-dir /var/lib/debvisor/rpcd --name r1 --host 10.0.0.1",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Key, err = backup.ReadKey(keyFile); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if check {
				manifest, err := members.CheckBackup(o.From, o.Key)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(out, "%s can be restored here with %s\n%s", o.From, keyFile, describe(manifest))
				return err
			}
			o.Log = hclog.New(&hclog.LoggerOptions{Name: "debvisor-rpcd", Level: hclog.Warn, Output: os.Stderr})
			of, err := ownerOf(home.Dir)
			if err != nil {
				return err
			}
			if err := nameAfterHost(&o.Options); err != nil {
				return err
			}
			done, err := members.Restore(cmd.Context(), home, o)
			if err != nil {
				return err
			}
			// The service is to read it; the backup and its key are root's alone, so that we could not become that user before.
			if err := of.give(home.Dir); err != nil {
				return err
			}
			return sayRestored(out, home, done)
		},
	}
	homeFlags(cmd, &home)
	placeFlags(cmd, &o.Options)
	f := cmd.Flags()
	f.StringVar(&o.From, "from", "", "the backup's file")
	f.StringVar(&keyFile, "recovery-key", "", "the file of the recovery key that the backup was taken for")
	f.Uint64Var(&o.Epoch, "epoch", 0, "the epoch to begin (default: later than the backup's and than that of any restore before)")
	f.BoolVar(&check, "check", false, "say whether the backup can be restored with that key, and do nothing else")
	for _, name := range []string{"from", "recovery-key"} {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
	return cmd
}

// describe says what a backup is of, a fact a line.
func describe(m *debvisorv1.BackupManifest) string {
	at := time.Unix(m.GetTakenAt().GetSeconds(), 0).UTC().Format(time.RFC3339)
	return fmt.Sprintf("cluster %s, taken %s by replica %s (debvisor-rpcd %s)\nschema %d, epoch %d, etcd revision %d, %d bytes\n",
		m.GetCluster(), at, m.GetReplica(), m.GetDebvisorVersion(), m.GetSchema(), m.GetEpoch(), m.GetRevision(), m.GetSnapshotBytes())
}

func sayRestored(out io.Writer, home members.Home, done members.Restored) error {
	text := "restored: " + describe(done.Manifest)
	for _, line := range done.Changed {
		text += "  " + line + "\n"
	}
	text += fmt.Sprintf("replica %s lives in %s and begins epoch %d\n", done.Record.Name, home.Dir, done.Epoch) +
		"what was revoked, deleted or rotated since the backup was taken is as it was before: do it again\n" +
		fmt.Sprintf("next: debvisor-rpcd serve --data-dir %s\n", home.Dir) +
		fmt.Sprintf("then, once the former replicas are off for good: hvctl cluster restore confirm --epoch %d --reason \"…\"\n", done.Epoch)
	_, err := io.WriteString(out, text)
	return err
}
