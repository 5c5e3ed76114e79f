package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// principalCommand is "hvctl principal": who calls.
func principalCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "principal", Aliases: []string{"principals"}, Short: "Principals: people, services and programs, and what they may do"}
	c.AddCommand(principalList(a), principalShow(a), principalSet(a), principalLimit(a), principalDelete(a))
	return c
}

func principalList(a *app) *cobra.Command {
	filter := &debvisorv1.PrincipalFilter{}
	c := &cobra.Command{
		Use: "list", Short: "List the principals that have a record", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.access.ListPrincipals(ctx, filter)
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(principalTable(list, a.wide())) })
			})
		},
	}
	c.Flags().StringVar(&filter.Tenant, "tenant", "", "only those of this tenant")
	c.Flags().StringVar(&filter.Role, "role", "", "only those that have this role")
	complete(c, "tenant", a.completeTenantFlag)
	complete(c, "role", a.completeRoleFlag)
	return c
}

// principalTable lists principals.
func principalTable(list *debvisorv1.PrincipalList, wide bool) table {
	t := table{head: []string{"PRINCIPAL", "TYPE", "TENANT", "ROLES", "LIMIT", "SOURCE"}}
	if wide {
		t.head = append(t.head, "PERMISSIONS")
	}
	for _, p := range list.GetPrincipals() {
		row := []string{p.GetName(), p.GetType(), p.GetTenant(), strings.Join(p.GetRoles(), ","), principalLimitWord(p), p.GetSource()}
		if wide {
			row = append(row, strings.Join(p.GetPermissions(), "\n"))
		}
		t.add(row...)
	}
	return t
}

// principalLimitWord is a principal's own limit.
func principalLimitWord(p *debvisorv1.Principal) string {
	if p.GetLimit() == nil {
		return "" // that of its roles, or the default
	}
	return limitWord(p.GetLimit())
}

func principalShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show PRINCIPAL", Short: "Show a principal", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePrincipals,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				p, err := c.access.GetPrincipal(ctx, &debvisorv1.PrincipalRef{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(p, func() error {
					var f facts
					f.add("principal", p.GetName())
					f.add("type", p.GetType())
					f.add("tenant", orWord(p.GetTenant(), "none: it sees all"))
					f.add("roles", orNone(p.GetRoles()))
					f.add("permissions", orWord(strings.Join(p.GetPermissions(), "\n"), "none of its own"))
					f.add("limit", orWord(principalLimitWord(p), "that of its roles, or the default"))
					f.add("source", p.GetSource())
					return a.printFacts(f)
				})
			})
		},
	}
}

func principalSet(a *app) *cobra.Command {
	want := &debvisorv1.Principal{}
	c := &cobra.Command{
		Use: "set PRINCIPAL", Short: "Make a principal, or change what the flags name", Args: cobra.ExactArgs(1),
		Long: "Make a principal, or change what the flags name and nothing else. A list is replaced as a whole; an\n" +
			"empty value empties it. Its keys are for hvctl key, its limit for hvctl principal limit.",
		Example:           "  hvctl principal set ci --type service --role developer --tenant acme\n  hvctl principal set ann --role operator --tenant ''",
		ValidArgsFunction: a.completePrincipals,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeAccess(cmd.Context(), "principal "+args[0]+" set", func(ctx context.Context, c *client) (proto.Message, error) {
				was, err := c.access.GetPrincipal(ctx, &debvisorv1.PrincipalRef{Name: args[0]})
				if err = unlessNotFound(err); err != nil {
					return nil, err
				}
				return c.access.SetPrincipal(ctx, changedPrincipal(cmd, args[0], was, want))
			})
		},
	}
	flags := c.Flags()
	flags.StringVar(&want.Type, "type", "", "for people: user, service")
	flags.StringSliceVar(&want.Roles, "role", nil, "its roles")
	flags.StringSliceVar(&want.Permissions, "permission", nil, "its own permissions, besides its roles'")
	flags.StringVar(&want.Tenant, "tenant", "", "the tenant that it is confined to; empty: none")
	complete(c, "type", cobra.FixedCompletions([]string{"user", "service"}, cobra.ShellCompDirectiveNoFileComp))
	complete(c, "role", a.completeRoleFlag)
	complete(c, "tenant", a.completeTenantFlag)
	complete(c, "permission", cobra.NoFileCompletions)
	return c
}

// changedPrincipal is a principal with what the given flags name.
func changedPrincipal(cmd *cobra.Command, name string, was, want *debvisorv1.Principal) *debvisorv1.Principal {
	p := &debvisorv1.Principal{
		Name: name, Type: was.GetType(), Roles: was.GetRoles(), Permissions: was.GetPermissions(), Tenant: was.GetTenant(), Limit: was.GetLimit(),
	}
	given := cmd.Flags().Changed
	if given("type") {
		p.Type = want.GetType()
	}
	if given("role") {
		p.Roles = unique(want.GetRoles())
	}
	if given("permission") {
		p.Permissions = unique(want.GetPermissions())
	}
	if given("tenant") {
		p.Tenant = want.GetTenant()
	}
	return p
}

func principalLimit(a *app) *cobra.Command {
	var f ratedFlags
	c := &cobra.Command{
		Use: "limit PRINCIPAL", Short: "Set how often a principal may call", Args: cobra.ExactArgs(1),
		Long:              "Set how often a principal may call each replica. Each counts for itself.",
		Example:           "  hvctl principal limit ci --rate 600 --burst 50\n  hvctl principal limit panel --rate 0\n  hvctl principal limit ci --default-rate",
		ValidArgsFunction: a.completePrincipals,
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, given, err := f.limit(cmd)
			if err != nil {
				return err
			}
			if !given {
				return usage("--rate or --default-rate is needed")
			}
			return a.changeAccess(cmd.Context(), "limit of "+args[0]+" set", func(ctx context.Context, c *client) (proto.Message, error) {
				return c.access.SetPrincipalLimit(ctx, &debvisorv1.PrincipalLimit{Name: args[0], Limit: limit})
			})
		},
	}
	f.add(c)
	return c
}

func principalDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete PRINCIPAL", Short: "Delete a principal and its keys", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completePrincipals,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeAccess(cmd.Context(), "principal "+args[0]+" deleted", func(ctx context.Context, c *client) (proto.Message, error) {
				return c.access.DeletePrincipal(ctx, &debvisorv1.PrincipalRef{Name: args[0]})
			})
		},
	}
}
