package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// vmPolicy is "hvctl vm policy": what the control plane keeps to for a VM.
func vmPolicy(a *app) *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "VM policies: what the control plane keeps to for a VM"}
	c.AddCommand(vmPolicyShow(a), vmPolicySet(a))
	return c
}

func vmPolicyShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show VM", Short: "Show a VM's policy", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				vm, err := c.vms.GetVM(ctx, &debvisorv1.VMRef{VmId: args[0]})
				if err != nil {
					return err
				}
				return a.printPolicy(policyOf(vm))
			})
		},
	}
}

// policyOf is a VM's policy; the empty one where none was set.
func policyOf(vm *debvisorv1.VM) *debvisorv1.VMPolicy {
	if vm.GetPolicy() == nil {
		return &debvisorv1.VMPolicy{}
	}
	return vm.GetPolicy()
}

func (a *app) printPolicy(p *debvisorv1.VMPolicy) error {
	return a.print(p, func() error {
		var f facts
		f.add("tenant", orWord(p.GetTenant(), "none"))
		f.add("affinity", orWord(strings.Join(p.GetAffinityGroups(), ", "), "none"))
		f.add("anti-affinity", orWord(strings.Join(antiAffinityWords(p), ", "), "none"))
		f.add("priority", fmt.Sprint(p.GetPriority()))
		f.add("rpo", rpoWord(p))
		f.add("may pause", yesNo(p.GetMayPause()))
		return a.printFacts(f)
	})
}

// antiAffinityWords are groups with their levels, as the flag takes them.
func antiAffinityWords(p *debvisorv1.VMPolicy) []string {
	var words []string
	for _, apart := range p.GetAntiAffinity() {
		words = append(words, apart.GetGroup()+":"+strings.ToLower(enumWord(apart.GetLevel(), "SPREAD_LEVEL_")))
	}
	return words
}

func rpoWord(p *debvisorv1.VMPolicy) string {
	if p.GetRpoSeconds() == 0 {
		return "not said"
	}
	return (time.Duration(p.GetRpoSeconds()) * time.Second).String()
}

// policyWord is a VM's policy in short; "" for none.
func policyWord(p *debvisorv1.VMPolicy) string {
	var words []string
	add := func(name, value string) {
		if value != "" {
			words = append(words, name+" "+value)
		}
	}
	add("tenant", p.GetTenant())
	add("with", strings.Join(p.GetAffinityGroups(), "+"))
	add("apart from", strings.Join(antiAffinityWords(p), "+"))
	if p.GetPriority() > 0 {
		add("priority", fmt.Sprint(p.GetPriority()))
	}
	if p.GetRpoSeconds() > 0 {
		add("rpo", rpoWord(p))
	}
	if p.GetMayPause() {
		words = append(words, "may pause")
	}
	return strings.Join(words, ", ")
}

// policyFlags are the flags of "vm policy set"; those that are not given leave
// what was set before.
type policyFlags struct {
	tenant             string
	affinity, apart    []string
	priority           uint8
	rpo                time.Duration
	mayPause, fromNone bool
}

func vmPolicySet(a *app) *cobra.Command {
	var f policyFlags
	c := &cobra.Command{
		Use: "set VM", Short: "Change a VM's policy: what the flags name, and nothing else", Args: cobra.ExactArgs(1),
		Long: "Change a VM's policy: what the flags name, and nothing else. With --clear it begins from an empty\n" +
			"policy. VMs of an affinity group are better kept on one node; VMs of an anti-affinity group must\n" +
			"not share a node, a rack or a zone. A list is replaced as a whole; an empty value empties it.",
		Example:           "  hvctl vm policy set db1 --tenant acme --anti-affinity db:zone --priority 80\n  hvctl vm policy set db1 --clear",
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVM(cmd.Context(), args[0]+": policy set", func(ctx context.Context, c *client) (*debvisorv1.VM, error) {
				ref := &debvisorv1.VMRef{VmId: args[0]}
				vm, err := c.vms.GetVM(ctx, ref)
				if err != nil {
					return nil, err
				}
				policy := proto.CloneOf(policyOf(vm))
				if f.fromNone {
					policy.Reset()
				}
				if err := f.apply(cmd, policy); err != nil {
					return nil, err
				}
				return c.vms.SetVMPolicy(ctx, &debvisorv1.VMPolicyRequest{Vm: &debvisorv1.VMRef{VmId: vm.GetId()}, Policy: policy})
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.tenant, "tenant", "", "whose it is")
	flags.StringSliceVar(&f.affinity, "affinity", nil, "groups whose VMs are better kept on one node")
	flags.StringSliceVar(&f.apart, "anti-affinity", nil, "GROUP[:node|rack|zone], groups whose VMs must not share one")
	flags.Uint8Var(&f.priority, "priority", 0, "0 to 100; VMs of higher priority are moved first")
	flags.DurationVar(&f.rpo, "rpo", 0, "how much of the latest data may be lost in a disaster, such as 15m; 0: not said")
	flags.BoolVar(&f.mayPause, "may-pause", false, "a live migration that does not converge may pause the guest to end")
	flags.BoolVar(&f.fromNone, "clear", false, "begin from an empty policy")
	for _, name := range []string{"tenant", "affinity", "anti-affinity", "priority", "rpo"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	return c
}

// apply changes what the given flags name.
func (f *policyFlags) apply(cmd *cobra.Command, p *debvisorv1.VMPolicy) error {
	given := cmd.Flags().Changed
	if given("tenant") {
		p.Tenant = f.tenant
	}
	if given("affinity") {
		p.AffinityGroups = f.affinity
	}
	if given("anti-affinity") {
		groups, err := antiAffinity(f.apart)
		if err != nil {
			return err
		}
		p.AntiAffinity = groups
	}
	if given("priority") {
		p.Priority = uint32(f.priority)
	}
	if given("rpo") {
		seconds := f.rpo / time.Second
		if f.rpo < 0 || f.rpo%time.Second != 0 || seconds > math.MaxUint32 {
			return errdefs.New(errdefs.InvalidArgument, codeUsage, "--rpo %s: whole seconds are accepted", f.rpo)
		}
		p.RpoSeconds = uint32(seconds)
	}
	if given("may-pause") {
		p.MayPause = f.mayPause
	}
	return nil
}

// antiAffinity reads groups with their levels.
func antiAffinity(words []string) ([]*debvisorv1.AntiAffinity, error) {
	levels := map[string]debvisorv1.SpreadLevel{
		"node": debvisorv1.SpreadLevel_SPREAD_LEVEL_NODE, "rack": debvisorv1.SpreadLevel_SPREAD_LEVEL_RACK,
		"zone": debvisorv1.SpreadLevel_SPREAD_LEVEL_ZONE,
	}
	var groups []*debvisorv1.AntiAffinity
	for _, word := range words {
		group, level, said := strings.Cut(word, ":")
		if !said {
			level = "node"
		}
		if _, ok := levels[level]; !ok || group == "" {
			return nil, errdefs.New(errdefs.InvalidArgument, codeUsage, "--anti-affinity %q: GROUP, GROUP:node, GROUP:rack or GROUP:zone is accepted", word)
		}
		groups = append(groups, &debvisorv1.AntiAffinity{Group: group, Level: levels[level]})
	}
	return groups, nil
}
