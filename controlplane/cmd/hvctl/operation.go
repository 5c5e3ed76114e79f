package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// operationCommand is "hvctl operation": what callers asked for.
func operationCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "operation", Aliases: []string{"operations", "op"}, Short: "Operations: what was asked of the cluster"}
	c.AddCommand(operationList(a), operationShow(a), operationWatch(a), operationCancel(a))
	return c
}

func operationList(a *app) *cobra.Command {
	var f debvisorv1.OperationFilter
	c := &cobra.Command{
		Use: "list", Short: "List operations, newest first", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.operations.ListOperations(ctx, &f)
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(operationTable(list, a.wide())) })
			})
		},
	}
	c.Flags().BoolVar(&f.ActiveOnly, "active", false, "only those that have not ended")
	c.Flags().StringVar(&f.Resource, "resource", "", "only those that hold this, such as vm/UUID or node/ID")
	c.Flags().StringVar(&f.Kind, "kind", "", "only those of this kind, such as migrate")
	c.Flags().Uint32Var(&f.Limit, "limit", 100, "at most this many, up to 1000")
	for _, flag := range []string{"resource", "kind", "limit"} {
		complete(c, flag, cobra.NoFileCompletions)
	}
	return c
}

// operationTable lists operations.
func operationTable(list *debvisorv1.OperationList, wide bool) table {
	t := table{head: []string{"OPERATION", "KIND", "STATE", "ON", "BY", "BEGUN", "TOOK", "STEP"}}
	if wide {
		t.head = append(t.head, "RESOURCES", "ERROR", "TRACE")
	}
	for _, op := range list.GetOperations() {
		row := []string{
			op.GetId(), op.GetKind(), stateWord(op.GetState()), subject(op), op.GetPrincipal(), ago(op.GetCreatedAt()),
			took(op), stepText(op),
		}
		if wide {
			row = append(row, strings.Join(op.GetResources(), ","), op.GetError().GetMessage(), op.GetTraceId())
		}
		t.add(row...)
	}
	return t
}

// subject tells in short what an operation is about.
func subject(op *debvisorv1.Operation) string {
	if m := op.GetMigration(); m != nil {
		text := orWord(m.GetVmName(), m.GetVmId())
		if nodeName(m.GetTarget()) != "" {
			text += " " + arrow(m.GetSource(), m.GetTarget())
		}
		return text
	}
	if p := op.GetPower(); p != nil {
		return orWord(p.GetVmName(), p.GetVmId()) + " on " + nodeName(p.GetNode())
	}
	if e := op.GetEvacuation(); e != nil {
		return orWord(nodeName(e.GetNode()), vmCount(len(e.GetMoves())))
	}
	if r := op.GetReplication(); r != nil {
		return r.GetDataset() + " " + arrow(r.GetSource(), r.GetTarget())
	}
	if s := op.GetSnapshot(); s != nil {
		text := strings.Join(detailNames(s), ", ")
		if nodeName(s.GetNode()) != "" {
			text += " on " + nodeName(s.GetNode())
		}
		return text
	}
	if i := op.GetImage(); i != nil {
		return imageSubject(i)
	}
	return strings.Join(op.GetResources(), ", ")
}

// stepText is the step at work with its progress, of one that has not ended.
func stepText(op *debvisorv1.Operation) string {
	if ended(op) {
		return ""
	}
	text := op.GetStep()
	if p := op.GetProgress(); p.GetPercent() > 0 {
		text = strings.TrimSpace(text + " " + percent(p.GetPercent()))
	}
	return text
}

// ended tells whether an operation will never change again.
func ended(op *debvisorv1.Operation) bool {
	return op.GetState() >= debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED
}

// took is how long an operation took, or has been at work.
func took(op *debvisorv1.Operation) string {
	from := op.GetCreatedAt()
	if from == nil {
		return ""
	}
	until := time.Now()
	if op.GetEndedAt() != nil {
		until = moments(op.GetEndedAt())
	}
	return duration(max(0, until.Sub(moments(from))))
}

func operationShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show OPERATION", Short: "Show an operation", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeOperations,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				op, err := c.operations.GetOperation(ctx, &debvisorv1.OperationRef{Id: args[0]})
				if err != nil {
					return err
				}
				return a.print(op, func() error { return a.printOperation(op) })
			})
		},
	}
}

// printOperation prints an operation's facts and its moves.
func (a *app) printOperation(op *debvisorv1.Operation) error {
	if err := a.printFacts(operationFacts(op)); err != nil || len(op.GetEvacuation().GetMoves()) == 0 {
		return err
	}
	return a.printTableBelow(moveTable(op))
}

// operationFacts are what is to be said of an operation.
func operationFacts(op *debvisorv1.Operation) facts {
	var f facts
	f.add("operation", op.GetId())
	f.add("kind", op.GetKind())
	f.add("state", stateWord(op.GetState()))
	if op.GetCancelRequested() && !ended(op) {
		f.add("cancel", "asked for")
	}
	f.add("on", subject(op))
	f.add("resources", strings.Join(op.GetResources(), "\n"))
	f.add("by", op.GetPrincipal())
	f.add("created", stamp(op.GetCreatedAt()))
	f.add("started", stamp(op.GetStartedAt()))
	f.add("ended", stamp(op.GetEndedAt()))
	f.add("took", took(op))
	f.add("step", op.GetStep())
	f.add("part of", op.GetParentId())
	if !ended(op) {
		f.add("progress", progressText(op.GetProgress()))
	}
	if m := op.GetMigration(); m != nil {
		f.add("attempt", fmt.Sprint(m.GetAttempt()))
		f.add("switched over", yesNo(m.GetSwitchedOver()))
		if op.GetState() == debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
			f.add("downtime", millis(m.GetDowntimeMs()))
		}
		f.add("method", methodWord(m.GetMethod()))
		f.add("estimate", estimateText(m.GetEstimate()))
		f.add("disks", disksText(m.GetDisks()))
		f.add("plan", m.GetPlanId())
	}
	if e := op.GetEvacuation(); e != nil {
		f.add("plan", e.GetPlanId())
		f.add("safe to reboot", map[bool]string{true: "yes"}[e.GetSafeToReboot()])
	}
	if s := op.GetSnapshot(); s != nil {
		f.add("snapshot", s.GetName())
		f.add("label", s.GetLabel())
		f.add("policy", s.GetPolicy())
		f.add("template", map[bool]string{true: "yes"}[s.GetTemplate()])
		f.add("guest", freezeText(s.GetFreeze()))
		f.add("still there", strings.Join(s.GetKeptBecause(), "\n"))
	}
	if i := op.GetImage(); i != nil {
		f.add("depth", map[bool]string{true: fmt.Sprint(i.GetDepth())}[i.GetDepth() > 0])
		f.add("flattened by", i.GetFlattenOperationId())
		f.add("done by", nodeName(i.GetNode()))
	}
	if r := op.GetReplication(); r != nil {
		f.add("job", r.GetJobId())
		f.add("copy", placeWords(r.GetTarget(), r.GetTargetDataset()))
		f.add("policy", r.GetPolicy())
		f.add("attempt", fmt.Sprint(r.GetAttempt()))
		f.add("resumed", map[bool]string{true: count(int(r.GetResumes()), "time")}[r.GetResumes() > 0])
		f.add("set aside", r.GetSetAside())
	}
	if e := op.GetError(); e != nil {
		f.add("error", orWord(e.GetCode(), "unknown")+": "+e.GetMessage())
	}
	f.add("trace", op.GetTraceId())
	return f
}

func operationWatch(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "watch OPERATION", Short: "Follow an operation to its end",
		Long: "Follow an operation to its end. The exit code is 0 when it SUCCEEDED, 9 when it FAILED and\n" +
			"8 when it was CANCELLED. With -o json or yaml every change goes to standard output.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOperations,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				if a.forPrograms() {
					op, err := a.watch(ctx, c, args[0], false, a.hint, func(op *debvisorv1.Operation) error { return a.printStreamed(op) })
					if err != nil {
						return err
					}
					return notSucceeded(op)
				}
				op, err := a.follow(ctx, c, args[0], false)
				if err != nil {
					return err
				}
				return a.printEnd(op)
			})
		},
	}
}

func operationCancel(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "cancel OPERATION", Short: "Ask for an operation's end and wait for it",
		Long: "Ask for an operation's end and wait for it. It is refused (exit code 4) when it is too late:\n" +
			"a migration can be cancelled until its switch-over.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeOperations,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				op, err := c.operations.CancelOperation(a.changing(ctx), &debvisorv1.OperationRef{Id: args[0]})
				if err != nil {
					return err
				}
				return a.print(op, func() error {
					word := "asked to end"
					if ended(op) {
						word = stateWord(op.GetState())
					}
					_, err := fmt.Fprintf(a.out, "%s: %s\n", clean(op.GetId()), word)
					return err
				})
			})
		},
	}
}

// notSucceeded is the error of an operation that has ended otherwise.
func notSucceeded(op *debvisorv1.Operation) error {
	if op == nil || op.GetState() == debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
		return nil
	}
	return &endedError{op}
}
