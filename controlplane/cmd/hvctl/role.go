package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// roleCommand is "hvctl role": named sets of permissions.
func roleCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "role", Aliases: []string{"roles"}, Short: "Roles: named sets of permissions"}
	c.AddCommand(roleList(a), roleShow(a), roleSet(a), roleDelete(a))
	return c
}

func roleList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the roles with their permissions", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.access.ListRoles(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(roleTable(list)) })
			})
		},
	}
}

// roleTable lists roles, their permissions one a line.
func roleTable(list *debvisorv1.RoleList) table {
	t := table{head: []string{"ROLE", "SOURCE", "LIMIT", "PERMISSIONS"}}
	for _, r := range list.GetRoles() {
		t.add(r.GetName(), r.GetSource(), limitWord(r.GetLimit()), strings.Join(r.GetPermissions(), "\n"))
	}
	return t
}

func roleShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show ROLE", Short: "Show a role", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				r, err := c.access.GetRole(ctx, &debvisorv1.RoleRef{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(r, func() error {
					var f facts
					f.add("role", r.GetName())
					f.add("built in", yesNo(r.GetBuiltIn()))
					f.add("source", r.GetSource())
					f.add("limit", limitWord(r.GetLimit()))
					f.add("permissions", orWord(strings.Join(r.GetPermissions(), "\n"), "none"))
					return a.printFacts(f)
				})
			})
		},
	}
}

// roleFlags are the flags of "role set"; those that are not given leave what was
// set before.
type roleFlags struct {
	permissions, add, remove []string
	rated                    ratedFlags
}

func roleSet(a *app) *cobra.Command {
	var f roleFlags
	c := &cobra.Command{
		Use: "set ROLE", Short: "Make a role, or change what the flags name", Args: cobra.ExactArgs(1),
		Long: "Make a role, or change what the flags name and nothing else. A permission is exact, such as\n" +
			"storage:snapshot:create, or covers all below it, such as storage:*. A built-in role can be changed too;\n" +
			"hvctl role delete makes it what it was.",
		Example:           "  hvctl role set backup --permission storage:snapshot:create,storage:snapshot:list\n  hvctl role set backup --add vm:list --rate 1000",
		ValidArgsFunction: a.completeRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, limited, err := f.rated.limit(cmd)
			if err != nil {
				return err
			}
			whole := cmd.Flags().Changed("permission")
			if whole && len(f.add)+len(f.remove) > 0 {
				return usage("give either --permission, or --add and --remove")
			}
			return a.changeAccess(cmd.Context(), "role "+args[0]+" set", func(ctx context.Context, c *client) (proto.Message, error) {
				was, err := c.access.GetRole(ctx, &debvisorv1.RoleRef{Name: args[0]})
				if err = unlessNotFound(err); err != nil {
					return nil, err
				}
				role := &debvisorv1.Role{Name: args[0], Permissions: f.change(was.GetPermissions(), whole), Limit: was.GetLimit()}
				if limited {
					role.Limit = limit
				}
				return c.access.SetRole(ctx, role)
			})
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&f.permissions, "permission", nil, "all its permissions, in the place of those it had")
	flags.StringSliceVar(&f.add, "add", nil, "permissions to add")
	flags.StringSliceVar(&f.remove, "remove", nil, "permissions to take away, as they are listed")
	f.rated.add(c)
	for _, name := range []string{"permission", "add", "remove"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	return c
}

// change gives the permissions that a role is to have, each once.
func (f *roleFlags) change(had []string, whole bool) []string {
	if whole {
		return unique(f.permissions)
	}
	return slices.DeleteFunc(unique(slices.Concat(had, f.add)), func(p string) bool { return slices.Contains(f.remove, p) })
}

// unique gives words in order, each once.
func unique(words []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(words)))
}

// unlessNotFound is the error of a call, unless it is that what is to be set
// does not exist yet.
func unlessNotFound(err error) error {
	if err != nil && errdefs.FromStatus(err).Kind == errdefs.NotFound {
		return nil
	}
	return err
}

func roleDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete ROLE", Short: "Delete a role; a built-in one becomes what it was", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeAccess(cmd.Context(), "role "+args[0]+" deleted", func(ctx context.Context, c *client) (proto.Message, error) {
				return c.access.DeleteRole(ctx, &debvisorv1.RoleRef{Name: args[0]})
			})
		},
	}
}
