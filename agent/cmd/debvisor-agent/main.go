// Command debvisor-agent is the daemon of a hypervisor host: it enrols the host
// as a node of a cluster, and then runs what the cluster's leader asks for.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/agent/internal/freeze"
	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/shared/manual"
	"github.com/debvisor/debvisor/shared/obs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // who asks a second time does not want to wait
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "debvisor-agent:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "debvisor-agent",
		Short:         "The daemon of a hypervisor host",
		Version:       obs.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(enrollCommand(), runCommand(), daemon().Command(), tunnelCommand(), freezeCommand(), cephCommand(), manual.Command("8"))
	return cmd
}

// tunnelCommand is the child process of a migration; run starts it.
func tunnelCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "tunnel",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return tunnel.Main(args) },
	}
}

// freezeCommand is the child process that holds a guest's freeze; run starts it.
func freezeCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "freeze",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return freeze.Main(args) },
	}
}

// cephCommand is the child process that speaks to Ceph; run starts it.
func cephCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "ceph",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return rbd.Main(args) },
	}
}
