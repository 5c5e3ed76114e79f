package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// failoverCommand is "hvctl failover": bringing VMs of lost nodes back.
func failoverCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "failover", Short: "Bring VMs of lost nodes back elsewhere",
		Long: "Bring VMs of lost nodes back elsewhere, never without proof that their former copies cannot\n" +
			"write any more: images of RBD are fenced, and replicas on ZFS take the place of disks on your\n" +
			"word that the node is powered off. A node that comes back destroys its copies.",
	}
	c.AddCommand(failoverPlan(a), failoverRun(a), failoverList(a), failoverReverse(a))
	return c
}

// failoverOptions are what an operator may say about a failover.
type failoverOptions struct {
	to     string
	off    bool
	accept time.Duration
}

func (o *failoverOptions) addFlags(a *app, c *cobra.Command) {
	c.Flags().StringVar(&o.to, "to", "", "the target node; without it the planner chooses")
	c.Flags().BoolVar(&o.off, "node-is-off", false, "your word that the VM's node is powered off; it is audited with your name")
	c.Flags().DurationVar(&o.accept, "accept-data-loss", 0, "how old replicas on ZFS may be, such as 15m; 0: as the VM's policy says (rpo_seconds)")
	complete(c, "to", a.completeNodeFlag)
	complete(c, "accept-data-loss", cobra.NoFileCompletions)
}

func (o *failoverOptions) request(vm string) (*debvisorv1.FailoverRequest, error) {
	if o.accept < 0 {
		return nil, usage("--accept-data-loss %s is not accepted; expected 0 or more, such as 15m", o.accept)
	}
	return &debvisorv1.FailoverRequest{
		Vm: &debvisorv1.VMRef{VmId: vm}, Target: nodeRef(o.to), NodeIsOff: o.off, AcceptDataLossSeconds: uint64(math.Ceil(o.accept.Seconds())),
	}, nil
}

func failoverPlan(a *app) *cobra.Command {
	var o failoverOptions
	c := &cobra.Command{
		Use: "plan VM", Short: "Tell whether a VM of a lost node can be brought back, and every reason why not",
		Long: "Tell whether a VM of a lost node can be brought back, from what, on which proof, and every\n" +
			"reason why not. Nothing is changed, and nothing fenced. The exit code is 4 when it cannot.",
		Example: "  hvctl failover plan web1\n  hvctl failover plan db1 --to node-2 --node-is-off --accept-data-loss 15m",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := o.request(args[0])
			if err != nil {
				return err
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				plan, err := c.migrations.PlanFailover(ctx, req)
				if err != nil {
					return err
				}
				if err := a.print(plan, func() error { return a.printFailoverPlan(plan) }); err != nil {
					return err
				}
				if !plan.GetAllowed() {
					return errdefs.New(errdefs.FailedPrecondition, codeRefused, "the failover is not allowed now")
				}
				return nil
			})
		},
	}
	o.addFlags(a, c)
	return c
}

// printFailoverPlan prints the verdict, what the VM would go on from, then every
// node with its reasons.
func (a *app) printFailoverPlan(plan *debvisorv1.FailoverPlan) error {
	verdict := "refused"
	if plan.GetAllowed() {
		verdict = "allowed"
	}
	verdict += ": " + arrow(plan.GetSource(), plan.GetTarget())
	if plan.GetMessage() != "" {
		verdict += "\n" + plan.GetMessage()
	}
	if _, err := fmt.Fprintln(a.out, indent(clean(verdict))); err != nil {
		return err
	}
	var f facts
	f.add("reasons", reasonText(plan.GetReasons()))
	f.add("proof", strings.Join(plan.GetProof(), "\n"))
	f.add("disks", failoverDisksText(plan.GetDisks()))
	if plan.GetDataAgeSeconds() > 0 {
		f.add("data lost", "at most "+seconds(plan.GetDataAgeSeconds()))
	}
	if len(f) > 0 {
		if _, err := fmt.Fprintln(a.out); err != nil {
			return err
		}
		if err := a.printFacts(f); err != nil {
			return err
		}
	}
	if len(plan.GetNodes()) == 0 {
		return nil
	}
	t := table{head: []string{"NODE", "ALLOWED", "SCORE", "REASONS"}}
	for _, n := range plan.GetNodes() {
		t.add(nodeName(n.GetNode()), yesNo(n.GetAllowed()), fmt.Sprintf("%.2f", n.GetScore()), reasonText(n.GetReasons()))
	}
	return a.printTableBelow(t)
}

// failoverDisksText tells what becomes of disks, one a line.
func failoverDisksText(disks []*debvisorv1.FailoverDisk) string {
	var lines []string
	for _, d := range disks {
		if d.GetReplica() == nil {
			lines = append(lines, d.GetTarget()+" image "+datasetName(d.GetSource()))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s replica %s@%s of %s (job %s), %s old",
			d.GetTarget(), datasetName(d.GetReplica()), d.GetSnapshot(), datasetName(d.GetSource()), d.GetJobId(), seconds(d.GetAgeSeconds())))
	}
	return strings.Join(lines, "\n")
}

func failoverRun(a *app) *cobra.Command {
	var o failoverOptions
	c := &cobra.Command{
		Use: "run VM", Short: "Bring a VM of a lost node back and follow that to its end",
		Long: "Bring a VM of a lost node back and follow that to its end. Interrupting hvctl leaves the\n" +
			"operation running. It can be cancelled, and is undone then, until the VM belongs to its new node.",
		Example: "  hvctl failover run web1\n  hvctl failover run db1 --node-is-off --accept-data-loss 15m",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := o.request(args[0])
			if err != nil {
				return err
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					result, err := c.migrations.ExecuteFailover(ctx, req, header)
					return result.GetOperationId(), err
				})
			})
		},
	}
	o.addFlags(a, c)
	return c
}

func failoverList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the copies of VMs on nodes that have lost them, and what becomes of them",
		Long: "List the copies of VMs on nodes that have lost them, and what becomes of them. What is on Ceph's\n" +
			"blocklist because of one stays there until its node has come back and destroyed it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.migrations.ListLostCopies(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(lostCopiesTable(list, a.wide())) })
			})
		},
	}
}

func lostCopiesTable(list *debvisorv1.LostCopyList, wide bool) table {
	t := table{head: []string{"VM", "NODE", "STATE", "BROUGHT BACK ON", "AT", "NOTE"}}
	if wide {
		t.head = []string{"VM", "UUID", "NODE", "STATE", "BROUGHT BACK ON", "AT", "OPERATION", "BLOCKLISTED", "PROOF", "NOTE"}
	}
	for _, c := range list.GetCopies() {
		note := c.GetLastError()
		if c.GetReverseOffered() {
			note = strings.TrimPrefix(note+"\nits data can be replicated back: hvctl failover reverse "+orWord(c.GetVmName(), c.GetVm().GetVmId())+" "+nodeName(c.GetNode()), "\n")
		}
		if wide {
			t.add(orWord(c.GetVmName(), "?"), c.GetVm().GetVmId(), nodeName(c.GetNode()), c.GetState(), nodeName(c.GetBroughtBackOn()), stamp(c.GetAt()),
				c.GetOperationId(), strings.Join(c.GetBlocklisted(), "\n"), strings.Join(c.GetProof(), "\n"), note)
			continue
		}
		t.add(orWord(c.GetVmName(), c.GetVm().GetVmId()), nodeName(c.GetNode()), c.GetState(), nodeName(c.GetBroughtBackOn()), stamp(c.GetAt()), note)
	}
	return t
}

func failoverReverse(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "reverse VM NODE", Short: "Make the replication jobs that bring a VM's data back to the node that had lost it",
		Long: "Make the replication jobs that bring a VM's data back to the node that had lost it, once its copy\n" +
			"there is destroyed. The first run of each sets aside what that node had beyond the last common snapshot.",
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeVMThenNode,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				result, err := c.migrations.ReverseReplication(withRequestID(ctx), &debvisorv1.LostCopyRef{Vm: &debvisorv1.VMRef{VmId: args[0]}, Node: nodeRef(args[1])})
				if err != nil {
					return err
				}
				for _, job := range result.GetJobs() {
					a.hint("to run it: hvctl replication run %s", job.GetJobId())
				}
				return a.print(result, func() error {
					t := table{head: []string{"JOB", "SOURCE", "COPY"}}
					for _, job := range result.GetJobs() {
						p := job.GetPlan()
						t.add(job.GetJobId(), placeText(p.GetSource(), p.GetDataset()), placeText(p.GetTarget(), p.GetTargetDataset()))
					}
					return a.printTable(t)
				})
			})
		},
	}
}

// completeVMThenNode completes a VM, then a node.
func (a *app) completeVMThenNode(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeVMs(cmd, args, typed)
	}
	if len(args) == 1 {
		return a.completeNodes(cmd, nil, typed)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
