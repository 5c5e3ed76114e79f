package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// vmCommand is "hvctl vm": which VMs there are and where; starting and stopping
// them.
func vmCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "vm", Aliases: []string{"vms"}, Short: "VMs: where they are, start and stop, policies"}
	c.AddCommand(vmList(a), vmShow(a), vmStart(a), vmShutdown(a), vmDestroy(a), vmAutostart(a), vmPolicy(a))
	return c
}

func vmList(a *app) *cobra.Command {
	var node, name string
	c := &cobra.Command{
		Use: "list", Short: "List VMs", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.vms.ListVMs(ctx, &debvisorv1.VMFilter{Node: nodeRef(node), Name: name})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(vmTable(list.GetVms(), a.wide())) })
			})
		},
	}
	c.Flags().StringVar(&node, "node", "", "only those of this node")
	c.Flags().StringVar(&name, "name", "", "only those of this name")
	complete(c, "node", a.completeNodeFlag)
	complete(c, "name", a.completeVMFlag)
	return c
}

// vmTable lists VMs.
func vmTable(vms []*debvisorv1.VM, wide bool) table {
	t := table{head: []string{"VM", "NODE", "STATE", "VCPUS", "MEMORY", "OPERATION"}}
	if wide {
		t.head = append(t.head, "UUID", "GENERATION", "PERSISTENT", "AUTOSTART", "DISKS", "POLICY")
	}
	for _, vm := range vms {
		row := []string{
			vm.GetName(), nodeName(vm.GetNode()), vmStateWord(vm), fmt.Sprint(vm.GetVcpus()),
			size(vm.GetMemoryBytes()), vm.GetOperationId(),
		}
		if wide {
			row = append(row, vm.GetId(), fmt.Sprint(vm.GetGeneration()), yesNo(vm.GetPersistent()),
				yesNo(vm.GetAutostart()), diskSources(vm), policyWord(vm.GetPolicy()))
		}
		t.add(row...)
	}
	return t
}

// vmStateWord is a VM's state, with the nodes that claim it where several do.
func vmStateWord(vm *debvisorv1.VM) string {
	word := enumWord(vm.GetState(), "VM_STATE_")
	if nodes := vm.GetConflictNodes(); len(nodes) > 0 {
		word += "," + strings.Join(nodes, "+")
	}
	return word
}

// diskSources lists a VM's disks, one a line.
func diskSources(vm *debvisorv1.VM) string {
	var lines []string
	for _, d := range vm.GetDisks() {
		lines = append(lines, d.GetTarget()+"="+d.GetSource())
	}
	return strings.Join(lines, "\n")
}

func vmShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show VM", Short: "Show a VM", Args: cobra.ExactArgs(1),
		Long:              "Show a VM, named by its UUID, or by its name where no two VMs share it.",
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				vm, err := c.vms.GetVM(ctx, &debvisorv1.VMRef{VmId: args[0]})
				if err != nil {
					return err
				}
				return a.print(vm, func() error { return a.printVM(vm) })
			})
		},
	}
}

// printVM prints a VM's facts and its disks.
func (a *app) printVM(vm *debvisorv1.VM) error {
	var f facts
	f.add("vm", vm.GetName())
	f.add("uuid", vm.GetId())
	f.add("node", nodeName(vm.GetNode()))
	f.add("state", enumWord(vm.GetState(), "VM_STATE_"))
	f.add("running on", strings.Join(vm.GetConflictNodes(), ", "))
	f.add("operation", vm.GetOperationId())
	f.add("vcpus", fmt.Sprint(vm.GetVcpus()))
	f.add("memory", size(vm.GetMemoryBytes()))
	f.add("persistent", yesNo(vm.GetPersistent()))
	f.add("autostart", yesNo(vm.GetAutostart()))
	f.add("generation", fmt.Sprint(vm.GetGeneration()))
	f.add("policy", policyWord(vm.GetPolicy()))
	if err := a.printFacts(f); err != nil || len(vm.GetDisks()) == 0 {
		return err
	}
	t := table{head: []string{"DISK", "TYPE", "SOURCE", "FORMAT", "CACHE", "READ-ONLY"}}
	for _, d := range vm.GetDisks() {
		t.add(d.GetTarget(), d.GetType(), d.GetSource(), d.GetFormat(), orWord(d.GetCache(), "default"), yesNo(d.GetReadOnly()))
	}
	return a.printTableBelow(t)
}
