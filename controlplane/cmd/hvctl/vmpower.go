package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func vmStart(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "start VM", Short: "Start a VM on the node it belongs to and wait until it runs", Args: cobra.ExactArgs(1),
		Long: "Start a VM on the node it belongs to and wait until it runs. A VM that runs is a success. It is\n" +
			"refused (exit code 4) while its node is not heard, since it may run there.",
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.power(cmd.Context(), func(ctx context.Context, c *client, header grpc.CallOption) (*debvisorv1.VMActionResult, error) {
				return c.vms.StartVM(ctx, &debvisorv1.VMRef{VmId: args[0]}, header)
			})
		},
	}
}

// shutdownMost is how long a guest may be given at most.
const shutdownMost = time.Hour

func vmShutdown(a *app) *cobra.Command {
	var within time.Duration
	var force bool
	c := &cobra.Command{
		Use: "shutdown VM", Short: "Ask a guest to shut down and wait until it has", Args: cobra.ExactArgs(1),
		Long: "Ask a guest to shut down, by its agent or by ACPI, and wait until it has. A guest that has not\n" +
			"within --within goes on, and the operation fails; with --force its QEMU is ended then.",
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if within < time.Second || within > shutdownMost {
				return errdefs.New(errdefs.InvalidArgument, codeUsage, "--within %s: 1s to %s are accepted", within, shutdownMost)
			}
			return a.power(cmd.Context(), func(ctx context.Context, c *client, header grpc.CallOption) (*debvisorv1.VMActionResult, error) {
				return c.vms.ShutdownVM(ctx, &debvisorv1.VMShutdownRequest{
					Vm: &debvisorv1.VMRef{VmId: args[0]}, TimeoutSeconds: uint32(math.Ceil(within.Seconds())), Force: force,
				}, header)
			})
		},
	}
	c.Flags().DurationVar(&within, "within", 2*time.Minute, "how long the guest may take, up to 1h")
	c.Flags().BoolVar(&force, "force", false, "end the QEMU of a guest that has not shut down by then")
	complete(c, "within", cobra.NoFileCompletions)
	return c
}

func vmDestroy(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "destroy VM", Short: "End a VM's QEMU at once; its definition and disks stay", Args: cobra.ExactArgs(1),
		Long: "End a VM's QEMU at once, as a pulled plug would: the guest loses what it has not written. QEMU\n" +
			"writes out what the guest has written. The VM's definition and disks stay.",
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.power(cmd.Context(), func(ctx context.Context, c *client, header grpc.CallOption) (*debvisorv1.VMActionResult, error) {
				return c.vms.DestroyVM(ctx, &debvisorv1.VMRef{VmId: args[0]}, header)
			})
		},
	}
}

// power begins a start or stop and follows it to its end.
func (a *app) power(ctx context.Context, begin func(context.Context, *client, grpc.CallOption) (*debvisorv1.VMActionResult, error)) error {
	return a.await(ctx, func(ctx context.Context, c *client) error {
		return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
			result, err := begin(ctx, c, header)
			return result.GetOperationId(), err
		})
	})
}

// powerLine is the line about a start or stop that has succeeded.
func powerLine(op *debvisorv1.Operation) string {
	p := op.GetPower()
	done := map[string]string{"vm.start": "started", "vm.shutdown": "shut down", "vm.destroy": "destroyed"}[op.GetKind()]
	return fmt.Sprintf("%s %s on %s in %s", orWord(p.GetVmName(), p.GetVmId()), orWord(done, op.GetKind()), nodeName(p.GetNode()), took(op))
}

func vmAutostart(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "autostart VM on|off", Short: "Say whether a VM is started after its node has booted", Args: cobra.ExactArgs(2),
		Long: "Say whether a VM is started after its node has booted. The control plane does that, where the\n" +
			"VM belongs by then; libvirt's own autostart is taken over and turned off.",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []cobra.Completion{"on", "off"}, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeVMs(cmd, args, typed)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[1] != "on" && args[1] != "off" {
				return errdefs.New(errdefs.InvalidArgument, codeUsage, "%q: on or off is accepted", args[1])
			}
			return a.changeVM(cmd.Context(), args[0]+": autostart is "+args[1], func(ctx context.Context, c *client) (*debvisorv1.VM, error) {
				return c.vms.SetVMAutostart(ctx, &debvisorv1.VMAutostartRequest{Vm: &debvisorv1.VMRef{VmId: args[0]}, Autostart: args[1] == "on"})
			})
		},
	}
}

// changeVM does a change of a VM that is instant and says that it is done.
func (a *app) changeVM(ctx context.Context, done string, change func(context.Context, *client) (*debvisorv1.VM, error)) error {
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		vm, err := change(a.changing(ctx), c)
		if err != nil {
			return err
		}
		return a.print(vm, func() error {
			_, err := fmt.Fprintln(a.out, clean(done))
			return err
		})
	})
}
