package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// migrateCommand is "hvctl migrate": moving VMs between nodes.
func migrateCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "migrate", Short: "Move VMs between nodes"}
	c.AddCommand(migratePlan(a), migrateRun(a))
	return c
}

// ends are where a move begins and ends; empty: not said.
type ends struct{ from, to string }

// addFlags declares the flags of a move.
func (e *ends) addFlags(a *app, c *cobra.Command) {
	c.Flags().StringVar(&e.to, "to", "", "the target node; without it the planner chooses")
	c.Flags().StringVar(&e.from, "from", "", "refuse unless the VM is on this node")
	complete(c, "to", a.completeNodeFlag)
	complete(c, "from", a.completeNodeFlag)
}

func migratePlan(a *app) *cobra.Command {
	var e ends
	var o moveOptions
	c := &cobra.Command{
		Use: "plan VM", Short: "Tell whether a VM can move, and every reason why not, for every node",
		Long: "Tell whether a VM can move, and every reason why not, for every node. Nothing is changed.\n" +
			"The exit code is 4 when it cannot. One that is allowed has an id, by which hvctl plan execute\n" +
			"carries it out as it is; plans are kept for 10 minutes.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			options, err := o.message()
			if err != nil {
				return err
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				plan, err := c.migrations.PrepareMigration(ctx, &debvisorv1.VMMigratePlan{
					Vm: &debvisorv1.VMRef{VmId: args[0]}, Source: nodeRef(e.from), Target: nodeRef(e.to),
					AllowDowntime: o.downtime, Options: options,
				})
				if err != nil {
					return err
				}
				if err := a.print(plan, func() error { return a.printPlan(plan) }); err != nil {
					return err
				}
				if !plan.GetAllowed() {
					return errdefs.New(errdefs.FailedPrecondition, codeRefused, "the move is not allowed now")
				}
				return nil
			})
		},
	}
	e.addFlags(a, c)
	o.addFlags(c)
	return c
}

// printPlan prints the verdict, what the move would take, then every node with
// its score and reasons.
func (a *app) printPlan(plan *debvisorv1.MigrationPlanResult) error {
	verdict := "refused"
	if plan.GetAllowed() {
		verdict = "allowed"
	}
	if target := nodeName(plan.GetTarget()); target != "" {
		verdict += ": " + arrow(plan.GetSource(), plan.GetTarget())
	}
	if message := plan.GetMessage(); message != "" {
		verdict += "\n" + message
	}
	if _, err := fmt.Fprintln(a.out, indent(clean(verdict))); err != nil {
		return err
	}
	if f := moveFacts(plan); len(f) > 0 {
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
	return a.printTableBelow(verdictTable(plan, a.wide()))
}

// moveFacts are what a move would be, and under which id it can be had.
func moveFacts(plan *debvisorv1.MigrationPlanResult) facts {
	var f facts
	f.add("method", methodWord(plan.GetMethod()))
	f.add("not live", reasonText(plan.GetNotLive()))
	f.add("estimate", estimateText(plan.GetEstimate()))
	f.add("disks", disksText(plan.GetDisks()))
	f.add("plan", plan.GetPlanId())
	f.add("ends", stamp(plan.GetExpiresAt()))
	return f
}

// disksText tells what becomes of disks, one a line.
func disksText(disks []*debvisorv1.DiskAction) string {
	var lines []string
	for _, d := range disks {
		text := d.GetTarget() + " " + d.GetAction()
		if d.GetBytes() > 0 {
			text += " (" + size(d.GetBytes()) + ")"
		}
		if d.GetReason() != "" {
			text += ": " + d.GetReason()
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "\n")
}

// verdictTable lists every node that was looked at.
func verdictTable(plan *debvisorv1.MigrationPlanResult, wide bool) table {
	t := table{head: []string{"NODE", "ALLOWED", "SCORE", "METHOD", "REASONS"}}
	if wide {
		t.head = []string{"NODE", "ALLOWED", "SCORE", "METHOD", "ESTIMATE", "PARTS", "REASONS"}
	}
	for _, n := range plan.GetNodes() {
		row := []string{nodeName(n.GetNode()), yesNo(n.GetAllowed()), fmt.Sprintf("%.2f", n.GetScore()), methodWord(n.GetMethod())}
		if wide {
			row = append(row, estimateText(n.GetEstimate()), partsText(n.GetParts()))
		}
		t.add(append(row, reasonText(n.GetReasons()))...)
	}
	if left := plan.GetNodesLeftOut(); left > 0 {
		t.add(fmt.Sprintf("(%d more, not listed)", left))
	}
	return t
}

// partsText lists the parts of a score, one a line: name, value of weight.
func partsText(parts []*debvisorv1.ScorePart) string {
	var lines []string
	for _, p := range parts {
		lines = append(lines, fmt.Sprintf("%s %.1f of %.0f", p.GetName(), p.GetValue()*p.GetWeight(), p.GetWeight()))
	}
	return strings.Join(lines, "\n")
}

func migrateRun(a *app) *cobra.Command {
	var e ends
	var o moveOptions
	c := &cobra.Command{
		Use: "run VM", Short: "Move a VM and follow the move to its end",
		Long: "Move a VM and follow the move to its end. Interrupting hvctl leaves the operation running.\n" +
			"With --no-wait only the operation's id goes to standard output.",
		Example: "  hvctl migrate run web1\n  hvctl migrate run web1 --to node-2 --no-wait\n" +
			"  hvctl migrate run db1 --bandwidth 200 --deadline 30m --on-deadline pause",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			options, err := o.message()
			if err != nil {
				return err
			}
			spec := &debvisorv1.VMMigrateSpec{
				Vm: &debvisorv1.VMRef{VmId: args[0]}, Source: nodeRef(e.from), Target: nodeRef(e.to), AllowDowntime: o.downtime, Options: options,
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error { return a.migrate(ctx, c, spec) })
		},
	}
	e.addFlags(a, c)
	o.addFlags(c)
	return c
}

// migrate submits a move and follows it.
func (a *app) migrate(ctx context.Context, c *client, spec *debvisorv1.VMMigrateSpec) error {
	return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
		result, err := c.migrations.MigrateVM(ctx, spec, header)
		return result.GetOperationId(), err
	})
}

// see begins an operation and follows it to its end, or prints its id where its
// end is not waited for.
func (a *app) see(ctx context.Context, c *client, begin func(context.Context, grpc.CallOption) (string, error)) error {
	id, err := a.submit(ctx, begin)
	if err != nil {
		return err
	}
	if !a.waits() {
		return a.printBegun(ctx, c, id)
	}
	op, err := a.follow(ctx, c, id, true)
	if err != nil {
		return err
	}
	return a.printEnd(op)
}

// submit begins an operation without waiting for its end and gives its id.
func (a *app) submit(ctx context.Context, call func(context.Context, grpc.CallOption) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, a.flags.timeout)
	defer cancel()
	var header metadata.MD
	id, err := call(notWaiting(withRequestID(ctx)), grpc.Header(&header))
	if err != nil {
		return "", err
	}
	if ids := header.Get(headerOperation); id == "" && len(ids) > 0 {
		id = ids[0]
	}
	if id == "" {
		return "", errdefs.New(errdefs.Internal, codeInternal, "the replica named no operation; see hvctl operation list")
	}
	return id, nil
}

// printBegun prints the id of an operation that is not waited for.
func (a *app) printBegun(ctx context.Context, c *client, id string) error {
	a.hint("to follow it: hvctl operation watch %s\nto cancel it: hvctl operation cancel %s", id, id)
	if !a.forPrograms() {
		_, err := fmt.Fprintln(a.out, id)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.flags.timeout)
	defer cancel()
	op, err := c.operations.GetOperation(ctx, &debvisorv1.OperationRef{Id: id})
	if err != nil {
		return err
	}
	return a.print(op, nil)
}

// printEnd prints the end of an operation that was followed: the last line of
// a migration, or the reason why it has not succeeded.
func (a *app) printEnd(op *debvisorv1.Operation) error {
	if err := a.print(op, func() error { return a.printSuccess(op) }); err != nil {
		return err
	}
	return notSucceeded(op)
}

// printSuccess prints one line about an operation that succeeded.
func (a *app) printSuccess(op *debvisorv1.Operation) error {
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
		return nil
	}
	line := fmt.Sprintf("%s %s: done in %s", op.GetKind(), strings.Join(op.GetResources(), ", "), took(op))
	if m := op.GetMigration(); m != nil {
		line = fmt.Sprintf("%s migrated: %s in %s, downtime %s",
			orWord(m.GetVmName(), m.GetVmId()), arrow(m.GetSource(), m.GetTarget()), took(op), millis(m.GetDowntimeMs()))
	}
	if op.GetPower() != nil {
		line = powerLine(op)
	}
	if op.GetEvacuation() != nil {
		line = evacuationLine(op)
	}
	if op.GetSnapshot() != nil {
		line = snapshotLine(op)
	}
	if op.GetImage() != nil {
		line = imageLine(op)
	}
	if op.GetReplication() != nil {
		line = replicationLine(op)
	}
	_, err := fmt.Fprintln(a.out, clean(line))
	return err
}

// arrow writes a move between nodes.
func arrow(from, to *debvisorv1.NodeRef) string {
	return orWord(nodeName(from), "?") + " → " + orWord(nodeName(to), "?")
}
