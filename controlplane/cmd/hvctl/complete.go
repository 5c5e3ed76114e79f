package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// completionPatience is how long a shell waits for the cluster's names.
const completionPatience = 3 * time.Second

// names gives the names that can complete an argument, each with a
// description behind a tab, from the cluster.
type names func(ctx context.Context, c *client) ([]cobra.Completion, error)

// complete declares how a flag's value is completed.
func complete(c *cobra.Command, flag string, by cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, by); err != nil {
		panic(err) // the flag does not exist: a mistake in this program
	}
}

// suggest asks the cluster for names that begin as typed. A shell is not the
// place for errors: it then gets none.
func (a *app) suggest(ctx context.Context, typed string, ask names) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	var list []cobra.Completion
	err := a.connected(ctx, func(ctx context.Context, c *client) (err error) {
		list, err = ask(ctx, c)
		return err
	})
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list = slices.DeleteFunc(list, func(s cobra.Completion) bool { return !strings.HasPrefix(s, typed) })
	return list, cobra.ShellCompDirectiveNoFileComp
}

// first completes a command's only argument.
func (a *app) first(cmd *cobra.Command, args []string, typed string, ask names) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.suggest(cmd.Context(), typed, ask)
}

func (a *app) completeNodes(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, nodeNames)
}

func (a *app) completeNodeFlag(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, nodeNames)
}

func (a *app) completeVMs(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, vmNames)
}

func (a *app) completeVMFlag(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, vmNames)
}

func (a *app) completeOperations(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, operationIDs)
}

func (a *app) completeTokens(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, tokenIDs)
}

func (a *app) completePlans(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, planIDs)
}

func (a *app) completePrincipals(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, principalNames)
}

func (a *app) completePrincipalFlag(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, principalNames)
}

func (a *app) completeRoles(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, roleNames)
}

func (a *app) completeRoleFlag(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, roleNames)
}

func (a *app) completeTenants(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, tenantNames)
}

func (a *app) completeTenantFlag(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, tenantNames)
}

func (a *app) completeKeys(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, keyIDs)
}

// completeContexts completes the name of a context of the configuration file.
func (a *app) completeContexts(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	file, err := loadConfig()
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return file.names(), cobra.ShellCompDirectiveNoFileComp
}

func nodeNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.nodes.ListNodes(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, n := range list.GetNodes() {
		out = append(out, described(n.GetInfo().GetId().GetId(), nodeStateWord(n)))
	}
	return out, nil
}

// vmNames offers names, and the UUIDs of those VMs whose name is not their own.
func vmNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.vms.ListVMs(ctx, &debvisorv1.VMFilter{})
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for _, vm := range list.GetVms() {
		count[vm.GetName()]++
	}
	var out []cobra.Completion
	for _, vm := range list.GetVms() {
		on := vmStateWord(vm) + " on " + nodeName(vm.GetNode())
		if count[vm.GetName()] == 1 {
			out = append(out, described(vm.GetName(), on))
		} else {
			out = append(out, described(vm.GetId(), vm.GetName()+" "+on))
		}
	}
	return out, nil
}

func operationIDs(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.operations.ListOperations(ctx, &debvisorv1.OperationFilter{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, op := range list.GetOperations() {
		out = append(out, described(op.GetId(), op.GetKind()+" "+subject(op)+" "+stateWord(op.GetState())))
	}
	return out, nil
}

func planIDs(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.migrations.ListPlans(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, p := range list.GetPlans() {
		out = append(out, described(p.GetId(), p.GetKind()+" "+planSubject(p)))
	}
	return out, nil
}

func tokenIDs(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.nodes.ListJoinTokens(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, token := range list.GetTokens() {
		out = append(out, described(token.GetId(), enumWord(token.GetKind(), "JOIN_TOKEN_KIND_")+" "+token.GetNodeId()))
	}
	return out, nil
}

func principalNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.access.ListPrincipals(ctx, &debvisorv1.PrincipalFilter{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, p := range list.GetPrincipals() {
		out = append(out, described(p.GetName(), strings.Join(p.GetRoles(), ",")))
	}
	return out, nil
}

func roleNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.access.ListRoles(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, r := range list.GetRoles() {
		out = append(out, described(r.GetName(), r.GetSource()))
	}
	return out, nil
}

func tenantNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.access.ListTenants(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, t := range list.GetTenants() {
		out = append(out, described(t.GetName(), t.GetDescription()))
	}
	return out, nil
}

func keyIDs(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.access.ListKeys(ctx, &debvisorv1.KeyFilter{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, k := range list.GetKeys() {
		out = append(out, described(k.GetId(), k.GetPrincipal()+" "+k.GetDescription()))
	}
	return out, nil
}

// described is a name with a description, neither of which can break a shell's
// list of them.
func described(name, about string) cobra.Completion {
	return cobra.CompletionWithDesc(firstLine(name), firstLine(about))
}
