// Command debvisor-rpcd is a replica of DebVisor's control plane: init makes
// the first one of a cluster, join makes another, serve runs one, client issues
// a certificate for a caller.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/shared/manual"
	"github.com/debvisor/debvisor/shared/obs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // who asks a second time does not want to wait
	err := newRootCmd().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "debvisor-rpcd:", err)
		os.Exit(1)
	}
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:           "debvisor-rpcd",
		Short:         "A replica of DebVisor's control plane",
		Version:       obs.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newInitCmd(), newJoinCmd(), newClientCmd(), newRestoreCmd(), newServeCmd(), daemon().Command(), manual.Command("8"))
	return root
}

// homeFlags adds the flags that say where a replica's data is.
func homeFlags(cmd *cobra.Command, home *members.Home) {
	cmd.Flags().StringVar(&home.Dir, "data-dir", "/var/lib/debvisor/rpcd", "the replica's data directory")
	cmd.Flags().StringVar(&home.WrapKey, "wrap-key-file", wrapKeyFile(),
		"the key that seals the CA's keys at rest, 32 bytes in base64 (default: what systemd was told to load as wrap.key, "+
			"else DATA-DIR/pki/wrap.key; env RPC_WRAP_KEY_FILE)")
}

// placeFlags adds the flags that say what a new replica is to be.
func placeFlags(cmd *cobra.Command, o *members.Options) {
	cmd.Flags().StringVar(&o.Name, "name", "", "the replica's name (default: the host's)")
	cmd.Flags().StringArrayVar(&o.Hosts, "host", []string{"127.0.0.1", "localhost"},
		"a name or address that the replica is reached under; repeat it for more")
	cmd.Flags().StringVar(&o.PeerListen, "etcd-peer-listen", "",
		"where etcd listens for the other replicas, IP:port (default: the first host with port "+members.DefaultPeerPort+")")
}
