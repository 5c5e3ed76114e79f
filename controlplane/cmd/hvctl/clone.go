package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// cloneCommand is "hvctl clone": images made of templates.
func cloneCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "clone", Aliases: []string{"clones"}, Short: "Clones: RBD images made of templates",
		Long: "Clones: RBD images made of templates, in any pool and namespace of the Ceph cluster. An image is named rbd:POOL/IMAGE,\nor rbd:POOL/NAMESPACE/IMAGE; rbd: may be left out here.",
	}
	c.AddCommand(cloneCreate(a), clonePlan(a), cloneList(a), cloneFlatten(a), cloneDelete(a))
	return c
}

// readClone reads IMAGE@TEMPLATE NEW-IMAGE.
func readClone(args []string) (*debvisorv1.RbdCloneRequest, error) {
	template, err := readTemplate(args[0])
	if err != nil {
		return nil, err
	}
	image, err := readImage(args[1])
	return &debvisorv1.RbdCloneRequest{TemplateSnapshot: template, NewImage: image}, err
}

func cloneCreate(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "create IMAGE@TEMPLATE NEW-IMAGE", Short: "Make an image of a template",
		Long: "Make an image of a template. One with more than 4 parents above it is flattened in the background, by an operation\n" +
			"that can be cancelled; one that would have more than 8 is refused (exit code 4).",
		Example: "  hvctl clone create rbd:vms/debian-12@dv-20261122T133000Z-8h9n0pqr rbd:fast/acme/web1",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := readClone(args)
			if err != nil {
				return err
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					result, err := c.storage.CloneRbdFromTemplate(ctx, req, header)
					return result.GetOperationId(), err
				})
			})
		},
	}
}

func clonePlan(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "plan IMAGE@TEMPLATE NEW-IMAGE", Short: "Say what clone create would do; nothing is changed",
		Long: "Say what clone create would do; nothing is changed. The exit code is 4 where it would be refused, with everything\nthat speaks against it.",
		Args: cobra.ExactArgs(2), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := readClone(args)
			if err != nil {
				return err
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				plan, err := c.storage.PlanClone(ctx, req)
				if err != nil {
					return err
				}
				if err := a.print(plan, func() error { return a.printFacts(planFacts(plan)) }); err != nil || plan.GetAllowed() {
					return err
				}
				return errdefs.New(errdefs.FailedPrecondition, codeRefused, "the clone cannot be made now")
			})
		},
	}
}

func planFacts(plan *debvisorv1.ClonePlan) facts {
	var f facts
	f.add("clone", datasetName(plan.GetClone()))
	f.add("allowed", yesNo(plan.GetAllowed()))
	f.add("against", strings.Join(plan.GetReasons(), "\n"))
	f.add("size", size(plan.GetSizeBytes()))
	f.add("parents", fmt.Sprint(plan.GetDepth()))
	f.add("flattened", map[bool]string{true: "in the background"}[plan.GetFlattened()])
	return f
}

func cloneList(a *app) *cobra.Command {
	filter := &debvisorv1.ImageFilter{}
	var node, parent string
	c := &cobra.Command{
		Use: "list", Short: "List images of RBD, by pool, namespace and name, asked of a node now", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			filter.Node = nodeRef(node)
			if parent != "" {
				if filter.Parent, err = readImage(parent); err != nil {
					return err
				}
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := allImages(ctx, c, filter)
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(imageTable(list, a.wide())) })
			})
		},
	}
	f := c.Flags()
	f.StringVar(&filter.Pool, "pool", "", "only of this pool")
	f.StringVar(&filter.Namespace, "namespace", "", "only of this namespace")
	f.StringVar(&node, "node", "", "ask this node")
	f.StringVar(&parent, "of", "", "only clones of this image")
	complete(c, "node", a.completeNodeFlag)
	for _, name := range []string{"pool", "namespace", "of"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	return c
}

// allImages asks page by page.
func allImages(ctx context.Context, c *client, filter *debvisorv1.ImageFilter) (*debvisorv1.ImageList, error) {
	all := &debvisorv1.ImageList{}
	for {
		filter.Limit = 5000
		list, err := c.storage.ListImages(ctx, filter)
		if err != nil {
			return nil, err
		}
		all.Images = append(all.Images, list.GetImages()...)
		if filter.Page = list.GetNextPage(); filter.Page == "" {
			return all, nil
		}
	}
}

func imageTable(list *debvisorv1.ImageList, wide bool) table {
	t := table{head: []string{"IMAGE", "SIZE", "CREATED", "PARENT", "DEPTH", "CLONES", "NOTES"}}
	if wide {
		t.head = append(t.head, "VMS", "OPERATION", "ID")
	}
	for _, i := range list.GetImages() {
		depth, clones := "", ""
		if i.GetDepth() > 0 {
			depth = fmt.Sprint(i.GetDepth())
		}
		if n := len(i.GetClones()); n > 0 {
			clones = fmt.Sprint(n)
		}
		var notes []string
		if n := len(i.GetVms()); n > 0 {
			notes = append(notes, "disk of "+vmCount(n))
		}
		if i.GetBusyOperationId() != "" {
			notes = append(notes, "busy with "+i.GetBusyOperationId())
		}
		row := []string{datasetName(i.GetRef()), size(i.GetSizeBytes()), stamp(i.GetCreatedAt()), i.GetParent(), depth, clones, strings.Join(notes, ", ")}
		if wide {
			row = append(row, strings.Join(i.GetVms(), "\n"), orWord(i.GetOperationId(), "not ours"), i.GetId())
		}
		t.add(row...)
	}
	return t
}

func cloneFlatten(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "flatten IMAGE", Short: "Copy into a clone what it shares with its parents",
		Long: "Copy into a clone that DebVisor has made what it shares with its parents, so that it has none. It can be cancelled, and\ngoes on where it was when it is asked for again.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeImage(cmd, args[0], func(ctx context.Context, c *client, ref *debvisorv1.ImageRef, header grpc.CallOption) (*debvisorv1.ImageResult, error) {
				return c.storage.FlattenImage(ctx, ref, header)
			})
		},
	}
}

func cloneDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete IMAGE", Short: "Remove a clone that DebVisor has made",
		Long: "Remove a clone that DebVisor has made. While it has snapshots or clones, or somebody has it open, which is told, it\nstays (exit code 4).",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeImage(cmd, args[0], func(ctx context.Context, c *client, ref *debvisorv1.ImageRef, header grpc.CallOption) (*debvisorv1.ImageResult, error) {
				return c.storage.DeleteImage(ctx, ref, header)
			})
		},
	}
}

func (a *app) changeImage(cmd *cobra.Command, name string, change func(context.Context, *client, *debvisorv1.ImageRef, grpc.CallOption) (*debvisorv1.ImageResult, error)) error {
	ref, err := readImage(name)
	if err != nil {
		return err
	}
	return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
		return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
			result, err := change(ctx, c, &debvisorv1.ImageRef{Image: ref}, header)
			return result.GetOperationId(), err
		})
	})
}

// imageSubject is what an operation on an image is about.
func imageSubject(i *debvisorv1.ImageDetails) string {
	if i.GetTemplate() != "" {
		return rbdPrefix + i.GetTemplate() + " to " + rbdPrefix + i.GetImage()
	}
	return rbdPrefix + i.GetImage()
}

// imageLine is the last line of an operation on an image.
func imageLine(op *debvisorv1.Operation) string {
	i := op.GetImage()
	name := rbdPrefix + i.GetImage()
	switch op.GetKind() {
	case "image.clone":
		line := fmt.Sprintf("%s: cloned of %s%s in %s", name, rbdPrefix, i.GetTemplate(), took(op))
		if id := i.GetFlattenOperationId(); id != "" {
			line += fmt.Sprintf("\nit has %d parents one above the other, and is flattened in the background: %s", i.GetDepth(), id)
		}
		return line
	case "image.flatten":
		return fmt.Sprintf("%s: flattened in %s", name, took(op))
	}
	return fmt.Sprintf("%s: removed in %s", name, took(op))
}
