package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// tenantCommand is "hvctl tenant": who owns what.
func tenantCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "tenant", Aliases: []string{"tenants"}, Short: "Tenants: who owns principals, VMs and storage",
		Long: "Tenants own principals (hvctl principal set --tenant), VMs (hvctl vm policy set --tenant) and storage.\n" +
			"A principal of a tenant sees and touches its own only.",
	}
	c.AddCommand(tenantList(a), tenantSet(a), tenantDelete(a))
	return c
}

func tenantList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenants with their storage", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.access.ListTenants(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(tenantTable(list)) })
			})
		},
	}
}

// tenantTable lists tenants, their storage one a line.
func tenantTable(list *debvisorv1.TenantList) table {
	t := table{head: []string{"TENANT", "SOURCE", "STORAGE", "DESCRIPTION"}}
	for _, tenant := range list.GetTenants() {
		var places []string
		for _, s := range tenant.GetStorage() {
			place := strings.ToLower(enumWord(s.GetBackend(), "BACKEND_")) + ":" + s.GetPool()
			if s.GetName() != "" {
				place += "/" + s.GetName()
			}
			places = append(places, place)
		}
		t.add(tenant.GetName(), tenant.GetSource(), strings.Join(places, "\n"), tenant.GetDescription())
	}
	return t
}

func tenantSet(a *app) *cobra.Command {
	var zfs, rbd []string
	var description string
	c := &cobra.Command{
		Use: "set TENANT", Short: "Make a tenant, or change what the flags name", Args: cobra.ExactArgs(1),
		Long: "Make a tenant, or change what the flags name and nothing else. A list is replaced as a whole; an empty\n" +
			"value empties it. What lies below a dataset is the tenant's too. No two tenants' storage overlaps.",
		Example:           "  hvctl tenant set acme --zfs tank/vms/acme --rbd vms/acme,acme-pool",
		ValidArgsFunction: a.completeTenants,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeAccess(cmd.Context(), "tenant "+args[0]+" set", func(ctx context.Context, c *client) (proto.Message, error) {
				list, err := c.access.ListTenants(ctx, &debvisorv1.Empty{})
				if err != nil {
					return nil, err
				}
				tenant := &debvisorv1.Tenant{Name: args[0]}
				for _, was := range list.GetTenants() {
					if was.GetName() == args[0] {
						tenant.Description, tenant.Storage = was.GetDescription(), was.GetStorage()
					}
				}
				if cmd.Flags().Changed("zfs") {
					replaceStorage(tenant, debvisorv1.StorageBackend_BACKEND_ZFS, zfs)
				}
				if cmd.Flags().Changed("rbd") {
					replaceStorage(tenant, debvisorv1.StorageBackend_BACKEND_RBD, rbd)
				}
				if cmd.Flags().Changed("description") {
					tenant.Description = description
				}
				return c.access.SetTenant(ctx, tenant)
			})
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&zfs, "zfs", nil, "POOL[/DATASET], its datasets with all below them")
	flags.StringSliceVar(&rbd, "rbd", nil, "POOL[/NAMESPACE], its RBD pools and namespaces")
	flags.StringVar(&description, "description", "", "for people (at most 256 characters)")
	for _, name := range []string{"zfs", "rbd", "description"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	return c
}

// replaceStorage puts a tenant's storage of one backend in the place of what it
// had there.
func replaceStorage(tenant *debvisorv1.Tenant, backend debvisorv1.StorageBackend, places []string) {
	tenant.Storage = slices.DeleteFunc(tenant.Storage, func(s *debvisorv1.TenantStorage) bool { return s.GetBackend() == backend })
	for _, place := range places {
		pool, name, _ := strings.Cut(place, "/")
		tenant.Storage = append(tenant.Storage, &debvisorv1.TenantStorage{Backend: backend, Pool: pool, Name: name})
	}
}

func tenantDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete TENANT", Short: "Delete a tenant that nothing belongs to any more", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeTenants,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeAccess(cmd.Context(), "tenant "+args[0]+" deleted", func(ctx context.Context, c *client) (proto.Message, error) {
				return c.access.DeleteTenant(ctx, &debvisorv1.TenantRef{Name: args[0]})
			})
		},
	}
}
