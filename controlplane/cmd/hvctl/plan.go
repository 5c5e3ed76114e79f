package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// planCommand is "hvctl plan": dry runs that can be carried out by their ids.
func planCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "plan", Aliases: []string{"plans"}, Short: "Plans: dry runs that can be carried out as they are",
		Long: "Plans are dry runs, kept for 10 minutes, that can be carried out as they are by their ids. One that\n" +
			"does not hold any more is refused, naming what has changed. See also hvctl migrate plan.",
	}
	c.AddCommand(planList(a), planShow(a), planEvacuate(a), planRebalance(a), planExecute(a))
	return c
}

func planList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the plans that are kept, newest first", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.migrations.ListPlans(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(planTable(list)) })
			})
		},
	}
}

func planTable(list *debvisorv1.PlanList) table {
	t := table{head: []string{"PLAN", "KIND", "ABOUT", "BY", "MADE", "ENDS", "OPERATION"}}
	for _, p := range list.GetPlans() {
		t.add(p.GetId(), p.GetKind(), planSubject(p), p.GetPrincipal(), ago(p.GetCreatedAt()), stamp(p.GetExpiresAt()), p.GetOperationId())
	}
	return t
}

// planSubject tells in short what a plan is about.
func planSubject(p *debvisorv1.Plan) string {
	m := p.GetMigration()
	switch {
	case m != nil && m.GetAllowed():
		return orWord(m.GetVmName(), m.GetVm().GetVmId()) + " " + arrow(m.GetSource(), m.GetTarget())
	case m != nil:
		return orWord(m.GetVmName(), m.GetVm().GetVmId()) + ": refused"
	}
	return nodeName(p.GetMoves().GetNode())
}

func planShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show PLAN", Short: "Show a plan with all its moves", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePlans,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				p, err := c.migrations.GetPlan(ctx, &debvisorv1.PlanRef{PlanId: args[0]})
				if err != nil {
					return err
				}
				return a.print(p, func() error { return a.printWholePlan(p) })
			})
		},
	}
}

func planEvacuate(a *app) *cobra.Command {
	req := &debvisorv1.EvacuationPlanRequest{}
	c := &cobra.Command{
		Use: "evacuate NODE", Short: "Plan how a node is emptied: which VM goes where, in which order, and which cannot",
		Long: "Plan how a node is emptied: which VM goes where, in which order, and which cannot and why. Nothing is\n" +
			"changed. The exit code is 4 when some VM cannot move. To carry the plan out as it is: hvctl plan execute.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Node = nodeRef(args[0])
			return a.planMoves(cmd.Context(), func(ctx context.Context, c *client) (*debvisorv1.Plan, error) {
				return c.migrations.PlanEvacuation(ctx, req)
			})
		},
	}
	c.Flags().BoolVar(&req.AllowDowntime, "allow-downtime", false, "let VMs be shut down for their move that cannot move live")
	c.Flags().Uint32Var(&req.Parallel, "parallel", 0, "moves at once, within the nodes' own limits; 0: as many as those allow")
	complete(c, "parallel", cobra.NoFileCompletions)
	return c
}

func planRebalance(a *app) *cobra.Command {
	req := &debvisorv1.RebalancePlanRequest{}
	var nodes []string
	c := &cobra.Command{
		Use: "rebalance", Short: "Plan which VMs to move so that the nodes are evenly loaded",
		Long: "Plan which VMs to move so that the nodes are evenly loaded. Nothing is changed.\n" +
			"To carry the plan out as it is: hvctl plan execute.",
		Example: "  hvctl plan rebalance --max-moves 5\n  hvctl plan rebalance --nodes hv1,hv2,hv3",
		Args:    cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, node := range nodes {
				req.Nodes = append(req.Nodes, nodeRef(node))
			}
			return a.planMoves(cmd.Context(), func(ctx context.Context, c *client) (*debvisorv1.Plan, error) {
				return c.migrations.PlanRebalance(ctx, req)
			})
		},
	}
	c.Flags().Uint32Var(&req.MaxMoves, "max-moves", 0, "at most this many moves; 0: 20")
	c.Flags().StringSliceVar(&nodes, "nodes", nil, "only among these nodes, comma-separated; without it among all")
	c.Flags().Uint32Var(&req.Parallel, "parallel", 0, "moves at once, within the nodes' own limits; 0: as many as those allow")
	complete(c, "nodes", a.completeNodeFlag)
	for _, flag := range []string{"max-moves", "parallel"} {
		complete(c, flag, cobra.NoFileCompletions)
	}
	return c
}

// planMoves asks for a plan of many moves and prints it.
func (a *app) planMoves(ctx context.Context, ask func(context.Context, *client) (*debvisorv1.Plan, error)) error {
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		p, err := ask(ctx, c)
		if err != nil {
			return err
		}
		if err := a.print(p, func() error { return a.printWholePlan(p) }); err != nil {
			return err
		}
		if n := len(p.GetMoves().GetBlocked()) + int(p.GetMoves().GetBlockedLeftOut()); n > 0 {
			return errdefs.New(errdefs.FailedPrecondition, codeBlocked, "%s cannot move now", vmCount(n))
		}
		return nil
	})
}

func planExecute(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "execute PLAN", Short: "Carry a plan out as it is and follow that to its end",
		Long: "Carry a plan out as it is and follow that to its end. It is refused (exit code 4), naming what has\n" +
			"changed, when the plan does not hold any more, and when it was carried out already. Interrupting hvctl\n" +
			"leaves the operation running. With --no-wait only the operation's id goes to standard output.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePlans,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error { return a.execute(ctx, c, args[0]) })
		},
	}
}

// execute submits the operation that carries a plan out and follows it.
func (a *app) execute(ctx context.Context, c *client, plan string) error {
	return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
		result, err := c.migrations.ExecutePlan(ctx, &debvisorv1.PlanRef{PlanId: plan}, header)
		return result.GetOperationId(), err
	})
}

// printWholePlan prints a plan: its facts, then its verdicts or its moves.
func (a *app) printWholePlan(p *debvisorv1.Plan) error {
	var f facts
	f.add("plan", p.GetId())
	f.add("kind", p.GetKind())
	f.add("by", p.GetPrincipal())
	f.add("made", stamp(p.GetCreatedAt()))
	f.add("ends", stamp(p.GetExpiresAt()))
	f.add("operation", p.GetOperationId())
	moves := p.GetMoves()
	if moves == nil {
		if err := a.printFacts(f); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.out); err != nil {
			return err
		}
		return a.printPlan(p.GetMigration())
	}
	f.add("node", nodeName(moves.GetNode()))
	f.add("moves", fmt.Sprint(len(moves.GetMoves())))
	f.add("blocked", fmt.Sprint(len(moves.GetBlocked())))
	f.add("imbalance", fmt.Sprintf("%.1f%%, then %.1f%%", 100*moves.GetImbalanceBefore(), 100*moves.GetImbalanceAfter()))
	f.add("estimate", estimateText(moves.GetEstimate()))
	f.add("left out", leftOut(moves))
	if err := a.printFacts(f); err != nil {
		return err
	}
	if len(moves.GetMoves()) > 0 {
		t := table{head: []string{"WAVE", "VM", "MOVE", "METHOD", "ESTIMATE"}}
		for _, m := range moves.GetMoves() {
			t.add(fmt.Sprint(m.GetWave()+1), orWord(m.GetVmName(), m.GetVm().GetVmId()), arrow(m.GetSource(), m.GetTarget()),
				methodWord(m.GetMethod()), estimateText(m.GetEstimate()))
		}
		if err := a.printTableBelow(t); err != nil {
			return err
		}
	}
	if len(moves.GetBlocked()) == 0 {
		return nil
	}
	t := table{head: []string{"BLOCKED", "REASONS"}}
	for _, b := range moves.GetBlocked() {
		t.add(orWord(b.GetVmName(), b.GetVm().GetVmId()), reasonText(b.GetReasons()))
	}
	return a.printTableBelow(t)
}

// leftOut tells what one plan had no room for.
func leftOut(m *debvisorv1.MovePlan) string {
	var parts []string
	if n := m.GetMovesLeftOut(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d moves: plan again once these are done", n))
	}
	if n := m.GetBlockedLeftOut(); n > 0 {
		parts = append(parts, vmCount(int(n))+" that cannot move")
	}
	return strings.Join(parts, "\n")
}

// reasonText lists reasons, one a line.
func reasonText(list []*debvisorv1.PlanReason) string {
	var lines []string
	for _, r := range list {
		lines = append(lines, r.GetCode()+": "+r.GetMessage())
	}
	return strings.Join(lines, "\n")
}
