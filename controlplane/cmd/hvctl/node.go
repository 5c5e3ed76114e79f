package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// nodeCommand is "hvctl node": the hypervisors.
func nodeCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "node", Aliases: []string{"nodes"}, Short: "Nodes: the hypervisor hosts"}
	c.AddCommand(nodeList(a), nodeShow(a), nodeCordon(a), nodeUncordon(a), nodeEvacuate(a), nodeLimit(a), nodeConfirmOff(a), nodeToken(a))
	return c
}

func nodeList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the nodes with their last-known state", Args: cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.nodes.ListNodes(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(nodeTable(list, a.wide())) })
			})
		},
	}
}

// nodeTable lists nodes.
func nodeTable(list *debvisorv1.NodeList, wide bool) table {
	t := table{head: []string{"NODE", "STATE", "HEALTH", "VMS", "CPU", "MEMORY", "DISK", "HEARD"}}
	if wide {
		t.head = append(t.head, "HOSTNAME", "IP", "RACK", "ZONE", "VERSION", "CEPH", "RTT", "PROBLEMS")
	}
	for _, n := range list.GetNodes() {
		info, h := n.GetInfo(), n.GetHealth()
		row := []string{info.GetId().GetId(), nodeStateWord(n), healthWord(h), fmt.Sprint(n.GetRunningVms()), "", "", "", heard(n)}
		if h != nil {
			row[4], row[5], row[6] = percent(100*h.GetCpuLoad()), percent(h.GetMemUsedPct()), percent(h.GetDiskUsedPct())
		}
		if wide {
			rtt := ""
			if h != nil {
				rtt = fmt.Sprintf("%.1fms", h.GetNetRttMs())
			}
			row = append(row, info.GetHostname(), info.GetIp(), info.GetRack(), info.GetZone(), info.GetVersion(),
				h.GetCephStatus(), rtt, strings.Join(h.GetProblems(), "\n"))
		}
		t.add(row...)
	}
	return t
}

// nodeStateWord tells whether a node is heard, and whether it is cordoned.
func nodeStateWord(n *debvisorv1.NodeSummary) string {
	word := enumWord(n.GetState(), "NODE_STATE_")
	if n.GetCordoned() {
		word += ",cordoned"
	}
	return word
}

// healthWord is a node's own verdict.
func healthWord(h *debvisorv1.Health) string {
	if h == nil {
		return ""
	}
	return enumWord(h.GetOverall(), "STATUS_")
}

// heard tells when a node's agent was last heard.
func heard(n *debvisorv1.NodeSummary) string {
	if n.GetState() == debvisorv1.NodeState_NODE_STATE_REGISTERED {
		return "never"
	}
	return millis(n.GetAgeMs()) + " ago"
}

func nodeShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NODE", Short: "Show all that is known of a node", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				n, err := c.nodes.GetNode(ctx, nodeRef(args[0]))
				if err != nil {
					return err
				}
				return a.print(n, func() error { return a.printNode(n) })
			})
		},
	}
}

// printNode prints a node's facts and its VMs.
func (a *app) printNode(n *debvisorv1.NodeDetail) error {
	s, free := n.GetSummary(), n.GetCapacity()
	info, h, can := s.GetInfo(), s.GetHealth(), n.GetCapabilities()
	var f facts
	f.add("node", info.GetId().GetId())
	f.add("state", nodeStateWord(s)+", heard "+heard(s))
	f.add("cordon reason", n.GetCordonReason())
	if s.GetCordoned() {
		f.add("safe to reboot", yesNo(n.GetSafeToReboot()))
	}
	if n.GetOffConfirmedBy() != "" {
		f.add("powered off", "by the word of "+n.GetOffConfirmedBy()+", "+stamp(n.GetOffConfirmedAt()))
	}
	f.add("limits", limitsText(n.GetLimits()))
	f.add("health", healthWord(h))
	f.add("problems", strings.Join(h.GetProblems(), "\n"))
	f.add("hostname", info.GetHostname())
	f.add("ip", info.GetIp())
	f.add("rack", info.GetRack())
	f.add("zone", info.GetZone())
	f.add("registered", stamp(n.GetRegisteredAt()))
	if free != nil {
		f.add("cpus", fmt.Sprint(free.GetCpus()))
		f.add("memory", fmt.Sprintf("%s, %s available, %s promised to running VMs",
			size(free.GetMemoryBytes()), size(free.GetMemoryAvailableBytes()), size(free.GetMemoryVmsBytes())))
	}
	if h != nil {
		f.add("load", fmt.Sprintf("cpu %s, memory %s, disk %s", percent(100*h.GetCpuLoad()), percent(h.GetMemUsedPct()), percent(h.GetDiskUsedPct())))
		f.add("ceph", h.GetCephStatus())
		f.add("round trip", fmt.Sprintf("%.1fms to the leader", h.GetNetRttMs()))
	}
	if can != nil {
		f.add("cpu", strings.TrimSpace(can.GetArch()+" "+can.GetCpuVendor()+" "+can.GetCpuModel()))
		f.add("libvirt", can.GetLibvirtVersion())
		f.add("qemu", can.GetQemuVersion())
		f.add("kernel", can.GetKernel())
		f.add("networks", strings.Join(can.GetNetworks(), ", "))
		if a.wide() {
			f.add("machine types", strings.Join(can.GetMachineTypes(), ", "))
			f.add("host uuid", can.GetHostUuid())
		}
	}
	f.add("agent", n.GetAgentVersion())
	f.add("peer address", n.GetPeerAddress())
	if err := a.printFacts(f); err != nil || len(n.GetVms()) == 0 {
		return err
	}
	return a.printTableBelow(vmTable(n.GetVms(), a.wide()))
}

func nodeCordon(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "cordon NODE", Short: "Keep new VMs off a node; those on it stay", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeNode(cmd.Context(), args[0]+" cordoned", func(ctx context.Context, c *client) (*debvisorv1.NodeAck, error) {
				return c.nodes.CordonNode(ctx, &debvisorv1.CordonRequest{Node: nodeRef(args[0]), Reason: reason})
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for others to read (at most 256 characters)")
	complete(c, "reason", cobra.NoFileCompletions)
	return c
}

func nodeUncordon(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "uncordon NODE", Short: "Lift a cordon", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeNode(cmd.Context(), args[0]+" uncordoned", func(ctx context.Context, c *client) (*debvisorv1.NodeAck, error) {
				return c.nodes.UncordonNode(ctx, nodeRef(args[0]))
			})
		},
	}
}

// changeNode does a change of a node that is instant and says that it is done.
func (a *app) changeNode(ctx context.Context, done string, change func(context.Context, *client) (*debvisorv1.NodeAck, error)) error {
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		ack, err := change(a.changing(ctx), c)
		if err != nil {
			return err
		}
		return a.print(ack, func() error {
			_, err := fmt.Fprintln(a.out, clean(done))
			return err
		})
	})
}

// nodeRef names a node; nil for the empty id, which means "not said".
func nodeRef(id string) *debvisorv1.NodeRef {
	if id == "" {
		return nil
	}
	return &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: id}}
}

// nodeName is the id that a reference names.
func nodeName(ref *debvisorv1.NodeRef) string { return ref.GetNodeId().GetId() }
