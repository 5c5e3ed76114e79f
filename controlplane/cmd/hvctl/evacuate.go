package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// evacuation are the flags of "hvctl node evacuate".
type evacuation struct {
	parallel uint32
	downtime bool
	reason   string
	wait     time.Duration
	restore  bool
}

// waitMost is how long blocked VMs may be waited for at most.
const waitMost = 7 * 24 * time.Hour

func nodeEvacuate(a *app) *cobra.Command {
	var e evacuation
	c := &cobra.Command{
		Use: "evacuate NODE", Short: "Empty a node: cordon it and move its VMs away, or bring them back",
		Long: "Cordon a node, move its VMs away, several at once, and follow that to its end, with every VM that\n" +
			"cannot move and why. When it says that the node is safe to reboot, no VM runs on it and none is on\n" +
			"its way to it. VMs that are shut off are moved too where they can be, and do not count otherwise.\n\n" +
			"Interrupting hvctl leaves the operation running. Cancelling the operation ends the moves at work;\n" +
			"what has moved stays, and so does the cordon. Evacuating the node again goes on from there.\n\n" +
			"With --restore the cordon is lifted, and the VMs that evacuations moved away since the last restore\n" +
			"come back, as far as they are still where they were put.",
		Example: "  hvctl node evacuate hv1 --reason 'new disks'\n  hvctl node evacuate hv1 --wait-blocked 1h\n  hvctl node evacuate hv1 --restore",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := e.check(); err != nil {
				return err
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error { return a.evacuate(ctx, c, args[0], e) })
		},
	}
	f := c.Flags()
	f.Uint32Var(&e.parallel, "parallel", 0, "moves at once, within the nodes' own limits (hvctl node limit); 0: as many as those allow")
	f.BoolVar(&e.downtime, "allow-downtime", false, "let VMs be shut down for their move that cannot move live")
	f.StringVar(&e.reason, "reason", "", "why, for others to read (at most 256 characters)")
	f.DurationVar(&e.wait, "wait-blocked", 0, "how long to wait for VMs that cannot move now and may later")
	f.BoolVar(&e.restore, "restore", false, "lift the cordon and bring back what evacuations moved away")
	for _, flag := range []string{"parallel", "reason", "wait-blocked"} {
		complete(c, flag, cobra.NoFileCompletions)
	}
	return c
}

// check refuses what the flags cannot mean together.
func (e evacuation) check() error {
	if e.wait < 0 || e.wait > waitMost {
		return usage("--wait-blocked %s: 0s to %s are accepted", e.wait, waitMost)
	}
	if e.restore && (e.reason != "" || e.wait > 0) {
		return usage("--restore goes with --parallel and --allow-downtime only")
	}
	return nil
}

// evacuate submits the evacuation or the restore of a node and follows it.
func (a *app) evacuate(ctx context.Context, c *client, node string, e evacuation) error {
	return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
		if e.restore {
			result, err := c.nodes.RestoreNode(ctx, &debvisorv1.RestoreRequest{
				Node: nodeRef(node), Parallel: e.parallel, AllowDowntime: e.downtime,
			}, header)
			return result.GetOperationId(), err
		}
		result, err := c.nodes.EvacuateNode(ctx, &debvisorv1.EvacuateRequest{
			Node: nodeRef(node), Parallel: e.parallel, AllowDowntime: e.downtime, Reason: e.reason,
			WaitBlockedSeconds: uint32(math.Ceil(e.wait.Seconds())),
		}, header)
		return result.GetOperationId(), err
	})
}

// evacuationLine tells of operations of many moves that have succeeded.
func evacuationLine(op *debvisorv1.Operation) string {
	e := op.GetEvacuation()
	node, moved, back := nodeName(e.GetNode()), 0, "came back"
	var stay []string
	for _, m := range e.GetMoves() {
		if m.GetState() == debvisorv1.VMMoveState_VM_MOVE_STATE_MOVED {
			moved++
			continue
		}
		stay = append(stay, orWord(m.GetVmName(), m.GetVmId())+" is shut off and stays: "+m.GetMessage())
	}
	var line string
	switch op.GetKind() {
	case "evacuate":
		line = fmt.Sprintf("%s evacuated: %s moved away in %s", node, vmCount(moved), took(op))
	case "restore":
		line = fmt.Sprintf("%s restored: %s %s in %s", node, vmCount(moved), back, took(op))
	default:
		line = fmt.Sprintf("%s: %s moved in %s", op.GetKind(), vmCount(moved), took(op))
	}
	for _, text := range stay {
		line += "\n" + text
	}
	switch {
	case e.GetSafeToReboot():
		line += "\n" + node + " is safe to reboot"
	case op.GetKind() == "evacuate":
		line += "\n" + node + " is NOT safe to reboot: the plan did not move all of its VMs; see hvctl node show " + node
	}
	return line
}

func vmCount(n int) string {
	if n == 1 {
		return "1 VM"
	}
	return fmt.Sprintf("%d VMs", n)
}

// moveText tells how one move stands.
func moveText(m *debvisorv1.VMMove) string {
	text := orWord(m.GetVmName(), m.GetVmId()) + ": " + strings.ToLower(enumWord(m.GetState(), "VM_MOVE_STATE_"))
	switch m.GetState() {
	case debvisorv1.VMMoveState_VM_MOVE_STATE_MOVING:
		return text + ", " + arrow(m.GetSource(), m.GetTarget())
	case debvisorv1.VMMoveState_VM_MOVE_STATE_MOVED:
		if nodeName(m.GetTarget()) != "" {
			text += ", " + arrow(m.GetSource(), m.GetTarget())
		}
	}
	if m.GetMessage() != "" {
		text += ": " + m.GetMessage()
	}
	return text
}

// movesText tells how far the moves at work are.
func movesText(op *debvisorv1.Operation) string {
	var parts []string
	for _, m := range op.GetEvacuation().GetMoves() {
		if m.GetState() == debvisorv1.VMMoveState_VM_MOVE_STATE_MOVING && m.GetPercent() > 0 {
			parts = append(parts, orWord(m.GetVmName(), m.GetVmId())+" "+percent(m.GetPercent()))
		}
	}
	return strings.Join(parts, ", ")
}

// moveNews tells what is new of an operation's moves.
type moveNews map[string]string

// of gives the lines that are new: a move that began, ended or is blocked, and
// other reasons, but not other figures in them.
func (n moveNews) of(op *debvisorv1.Operation) []string {
	var lines []string
	for _, m := range op.GetEvacuation().GetMoves() {
		if m.GetState() == debvisorv1.VMMoveState_VM_MOVE_STATE_WAITING && m.GetMessage() == "" {
			continue
		}
		text := moveText(m)
		key := strings.Map(func(r rune) rune {
			if unicode.IsDigit(r) || r == '.' {
				return -1
			}
			return r
		}, m.GetState().String()+text)
		if n[m.GetVmId()] != key {
			n[m.GetVmId()] = key
			lines = append(lines, text)
		}
	}
	return lines
}

// moveTable lists the moves of an operation.
func moveTable(op *debvisorv1.Operation) table {
	t := table{head: []string{"VM", "FROM", "TO", "STATE", "DONE", "OPERATION", "MESSAGE"}}
	for _, m := range op.GetEvacuation().GetMoves() {
		t.add(orWord(m.GetVmName(), m.GetVmId()), nodeName(m.GetSource()), nodeName(m.GetTarget()),
			enumWord(m.GetState(), "VM_MOVE_STATE_"), percent(m.GetPercent()), m.GetOperationId(), m.GetMessage())
	}
	return t
}

func nodeConfirmOff(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "confirm-off NODE", Short: "Give your word that a node is powered off", Args: cobra.ExactArgs(1),
		Long: "Give your word that a node that is not heard is powered off, so that what waits for it goes on.\n" +
			"It is refused (exit code 4) while the node is heard, and void once it is heard again. If the node\n" +
			"runs after all, VMs may be started twice and their disks destroyed: look before you say so.",
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usage("--reason is needed: how do you know that %s is off?", args[0])
			}
			return a.changeNode(cmd.Context(), args[0]+" counts as powered off", func(ctx context.Context, c *client) (*debvisorv1.NodeAck, error) {
				return c.nodes.ConfirmNodeOff(ctx, &debvisorv1.NodeOffRequest{Node: nodeRef(args[0]), Reason: reason})
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "how you know, for the record (at most 256 characters); needed")
	complete(c, "reason", cobra.NoFileCompletions)
	return c
}

func nodeLimit(a *app) *cobra.Command {
	var limits debvisorv1.NodeLimits
	flags := []string{"bandwidth", "parallel", "replications", "replication-bandwidth"}
	c := &cobra.Command{
		Use: "limit NODE", Short: "Bound what migrations and replications may take of a node", Args: cobra.ExactArgs(1),
		Long: "Bound what migrations and replications may take of a node, in each direction: the bandwidth of all\n" +
			"migrations and that of all replications, and how many of each there are at once. What is not given stays as it is; 0 means the default.",
		Example:           "  hvctl node limit hv1 --bandwidth 500 --parallel 4\n  hvctl node limit hv1 --bandwidth 0",
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			if !slices.ContainsFunc(flags, given) {
				return usage("--bandwidth, --parallel, --replications, --replication-bandwidth or several of them are needed")
			}
			return a.changeNode(cmd.Context(), "limits of "+args[0]+" set", func(ctx context.Context, c *client) (*debvisorv1.NodeAck, error) {
				n, err := c.nodes.GetNode(ctx, nodeRef(args[0]))
				if err != nil {
					return nil, err
				}
				if !given("bandwidth") {
					limits.MigrationBandwidthMib = n.GetLimits().GetMigrationBandwidthMib()
				}
				if !given("parallel") {
					limits.ParallelMigrations = n.GetLimits().GetParallelMigrations()
				}
				if !given("replications") {
					limits.ParallelReplications = n.GetLimits().GetParallelReplications()
				}
				if !given("replication-bandwidth") {
					limits.ReplicationBandwidthMib = n.GetLimits().GetReplicationBandwidthMib()
				}
				return c.nodes.SetNodeLimits(ctx, &debvisorv1.NodeLimitsRequest{Node: nodeRef(args[0]), Limits: &limits})
			})
		},
	}
	c.Flags().Uint64Var(&limits.MigrationBandwidthMib, "bandwidth", 0, "MiB/s of all migrations together; 0: no limit")
	c.Flags().Uint32Var(&limits.ParallelMigrations, "parallel", 0, "migrations at once, up to 64; 0: 2")
	c.Flags().Uint32Var(&limits.ParallelReplications, "replications", 0, "replications at once, up to 64; 0: 2")
	c.Flags().Uint64Var(&limits.ReplicationBandwidthMib, "replication-bandwidth", 0, "MiB/s of all replications together; 0: no limit")
	for _, flag := range flags {
		complete(c, flag, cobra.NoFileCompletions)
	}
	return c
}

// limitsText tells a node's limits; empty: the defaults.
func limitsText(l *debvisorv1.NodeLimits) string {
	var parts []string
	if n := l.GetMigrationBandwidthMib(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d MiB/s", n))
	}
	if n := l.GetParallelMigrations(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d migrations at once", n))
	}
	if n := l.GetParallelReplications(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d replications at once", n))
	}
	if n := l.GetReplicationBandwidthMib(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d MiB/s of replications", n))
	}
	return strings.Join(parts, ", ")
}
