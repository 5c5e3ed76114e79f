package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// templateCommand is "hvctl template": snapshots that clones are made of.
func templateCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "template", Aliases: []string{"templates"}, Short: "Templates: snapshots of RBD images that clones are made of",
		Long: "Templates: snapshots of RBD images that clones are made of. No retention policy lets one go. An image is named\nrbd:POOL/IMAGE, or rbd:POOL/NAMESPACE/IMAGE; rbd: may be left out here.",
	}
	c.AddCommand(templateCreate(a), templateList(a), templateDelete(a))
	return c
}

func templateCreate(a *app) *cobra.Command {
	var label string
	c := &cobra.Command{
		Use: "create IMAGE", Short: "Make a template of an image, as it is now", Example: "  hvctl template create rbd:vms/debian-12 --label 2026-11",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := readImage(args[0])
			if err != nil {
				return err
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					status, err := c.storage.CreateRbdTemplateSnapshot(ctx, &debvisorv1.RbdTemplateRequest{Image: ref, Label: label}, header)
					return status.GetOperationId(), err
				})
			})
		},
	}
	c.Flags().StringVar(&label, "label", "", "what it is, for people (at most 256 characters)")
	complete(c, "label", cobra.NoFileCompletions)
	return c
}

func templateList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list IMAGE", Short: "List an image's templates, oldest first, with their clones", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := readImage(args[0])
			if err != nil {
				return err
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := allSnapshots(ctx, c, &debvisorv1.SnapshotFilter{Dataset: ref, All: true}, 0)
				if err != nil {
					return err
				}
				list.Snapshots = slices.DeleteFunc(list.GetSnapshots(), func(s *debvisorv1.Snapshot) bool { return !s.GetTemplate() })
				return a.print(list, func() error {
					t := table{head: []string{"TEMPLATE", "CREATED", "LABEL", "SIZE", "CLONES"}}
					for _, s := range list.GetSnapshots() {
						t.add(snapshotName(s.GetRef()), stamp(s.GetCreatedAt()), s.GetLabel(), size(s.GetReferencedBytes()), strings.Join(s.GetClones(), "\n"))
					}
					return a.printTable(t)
				})
			})
		},
	}
}

func templateDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete IMAGE@TEMPLATE", Short: "Remove a template that has no clones",
		Long: "Remove a template. While it has clones, which are named, it stays (exit code 4): flatten or delete them first.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := readTemplate(args[0])
			if err != nil {
				return err
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				// What is only a snapshot is not deleted by a slip of the tongue.
				s, err := c.storage.GetSnapshot(ctx, ref)
				if err != nil {
					return err
				}
				if !s.GetTemplate() {
					return usage("%s is no template; an ordinary snapshot is removed by hvctl snapshot delete", args[0])
				}
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					result, err := c.storage.DeleteSnapshots(ctx, &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{ref}}, header)
					return result.GetOperationId(), err
				})
			})
		},
	}
}

// readTemplate reads IMAGE@NAME.
func readTemplate(text string) (*debvisorv1.SnapshotRef, error) {
	return readSnapshot(rbdPrefix + strings.TrimPrefix(text, rbdPrefix))
}

// detailNames are the full names of what an operation on snapshots is about.
func detailNames(d *debvisorv1.SnapshotDetails) []string {
	if d.GetBackend() != debvisorv1.StorageBackend_BACKEND_RBD {
		return d.GetDatasets()
	}
	var names []string
	for _, path := range d.GetDatasets() {
		names = append(names, rbdPrefix+path)
	}
	return names
}

func (a *app) completeImage(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, imageNames)
}

// imageNames offers images by their names.
func imageNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := allImages(ctx, c, &debvisorv1.ImageFilter{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, i := range list.GetImages() {
		out = append(out, described(datasetName(i.GetRef()), fmt.Sprintf("%s, depth %d", size(i.GetSizeBytes()), i.GetDepth())))
	}
	return out, nil
}
