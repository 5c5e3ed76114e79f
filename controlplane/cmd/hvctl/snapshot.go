package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// snapshotCommand is "hvctl snapshot": snapshots of ZFS datasets and RBD images.
func snapshotCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "snapshot", Aliases: []string{"snapshots"}, Short: "Snapshots of ZFS datasets and RBD images",
		Long: "Snapshots of ZFS datasets and RBD images. A dataset is named POOL/PATH, or NODE:POOL/PATH where several nodes have one\n" +
			"of that name; an image is named rbd:POOL/IMAGE, or rbd:POOL/NAMESPACE/IMAGE. Snapshots that DebVisor has not taken are shown with --all, and never touched.",
	}
	c.AddCommand(snapshotCreate(a), snapshotList(a), snapshotShow(a), snapshotDelete(a), snapshotPrune(a))
	return c
}

func snapshotCreate(a *app) *cobra.Command {
	var vm, label string
	var quiet quietness
	c := &cobra.Command{
		Use: "create DATASET... | --vm VM", Short: "Take snapshots of datasets, or of a VM's disks, in one moment",
		Long: "Take snapshots of datasets, or of a VM's disks, in one moment: datasets of one node and one pool, or images\n" +
			"of one Ceph cluster. The answer is the snapshot's name, the same on each.",
		Example:           "  hvctl snapshot create tank/vm/web1 --label before-upgrade\n  hvctl snapshot create --vm web1 --consistency application\n  hvctl snapshot create rbd:vms/web1",
		ValidArgsFunction: a.completeDatasets,
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := readDatasets(args)
			if err != nil {
				return err
			}
			if (vm == "") == (len(refs) == 0) {
				return usage("datasets or --vm are needed, and not both")
			}
			consistency, budget, err := quiet.read()
			if err != nil {
				return err
			}
			req := &debvisorv1.SnapshotSetRequest{Datasets: refs, Label: label, Consistency: consistency, FreezeBudgetMs: budget}
			if vm != "" {
				req.Vm = &debvisorv1.VMRef{VmId: vm}
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					if len(refs) == 1 {
						status, err := c.storage.CreateSnapshot(ctx, &debvisorv1.SnapshotRequest{
							Dataset: refs[0], Label: label, Consistency: consistency, FreezeBudgetMs: budget,
						}, header)
						return status.GetOperationId(), err
					}
					status, err := c.storage.CreateSnapshotSet(ctx, req, header)
					return status.GetOperationId(), err
				})
			})
		},
	}
	c.Flags().StringVar(&vm, "vm", "", "of all disks of this VM")
	c.Flags().StringVar(&label, "label", "", "what it is for, for people, patterns and policies (at most 256 characters)")
	quiet.addFlags(c)
	complete(c, "vm", a.completeVMFlag)
	complete(c, "label", cobra.NoFileCompletions)
	return c
}

func snapshotList(a *app) *cobra.Command {
	filter := &debvisorv1.SnapshotFilter{}
	var most uint32
	c := &cobra.Command{
		Use: "list DATASET", Short: "List a dataset's snapshots, oldest first, asked of its node now",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeDataset,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if filter.Dataset, err = readDataset(args[0]); err != nil {
				return err
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := allSnapshots(ctx, c, filter, most)
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(snapshotTable(list, a.wide())) })
			})
		},
	}
	f := c.Flags()
	f.BoolVarP(&filter.Recursive, "recursive", "r", false, "those of the datasets below too")
	f.BoolVar(&filter.All, "all", false, "those too that DebVisor has not taken")
	f.StringVar(&filter.Pattern, "pattern", "", "only those whose name or label matches, such as 'pre-*'")
	f.Uint32Var(&most, "limit", 0, "at most so many; 0: all")
	complete(c, "pattern", cobra.NoFileCompletions)
	complete(c, "limit", cobra.NoFileCompletions)
	return c
}

// allSnapshots asks page by page.
func allSnapshots(ctx context.Context, c *client, filter *debvisorv1.SnapshotFilter, most uint32) (*debvisorv1.SnapshotList, error) {
	const aPage = 5000
	all := &debvisorv1.SnapshotList{}
	for {
		filter.Limit = aPage
		if rest := int64(most) - int64(len(all.GetSnapshots())); most > 0 && rest < aPage {
			filter.Limit = uint32(rest) //nolint:gosec // it is above 0 and below a page
		}
		list, err := c.storage.ListSnapshots(ctx, filter)
		if err != nil {
			return nil, err
		}
		all.Snapshots, all.NextPage = append(all.Snapshots, list.GetSnapshots()...), list.GetNextPage()
		if list.GetNextPage() == "" || most > 0 && len(all.GetSnapshots()) >= int(most) {
			return all, nil
		}
		filter.Page = list.GetNextPage()
	}
}

func snapshotTable(list *debvisorv1.SnapshotList, wide bool) table {
	t := table{head: []string{"SNAPSHOT", "CREATED", "LABEL", "USED", "REFERENCED", "NOTES"}}
	if wide {
		t.head = append(t.head, "OPERATION", "SET", "GUID")
	}
	for _, s := range list.GetSnapshots() {
		row := []string{snapshotName(s.GetRef()), stamp(s.GetCreatedAt()), s.GetLabel(), size(s.GetUsedBytes()), size(s.GetReferencedBytes()), snapshotNotes(s)}
		if wide {
			row = append(row, s.GetOperationId(), s.GetSet(), s.GetGuid())
		}
		t.add(row...)
	}
	return t
}

// snapshotNotes tells what keeps a snapshot.
func snapshotNotes(s *debvisorv1.Snapshot) string {
	var notes []string
	if s.GetTemplate() {
		notes = append(notes, "template")
	}
	if s.GetOperationId() == "" {
		notes = append(notes, "not ours")
	}
	if len(s.GetHolds()) > 0 {
		notes = append(notes, "held by "+strings.Join(s.GetHolds(), ", "))
	}
	if len(s.GetClones()) > 0 {
		notes = append(notes, "cloned by "+strings.Join(s.GetClones(), ", "))
	}
	return strings.Join(notes, "\n")
}

func snapshotShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show DATASET@SNAPSHOT", Short: "Show a snapshot", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := readSnapshot(args[0])
			if err != nil {
				return err
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				s, err := c.storage.GetSnapshot(ctx, ref)
				if err != nil {
					return err
				}
				return a.print(s, func() error {
					var f facts
					f.add("snapshot", snapshotName(s.GetRef()))
					f.add("node", nodeName(s.GetRef().GetDataset().GetNode()))
					f.add("created", stamp(s.GetCreatedAt()))
					f.add("label", s.GetLabel())
					f.add("operation", orWord(s.GetOperationId(), "not ours"))
					f.add("set", s.GetSet())
					f.add("used", size(s.GetUsedBytes())+" by it alone")
					f.add("referenced", size(s.GetReferencedBytes()))
					f.add("held by", strings.Join(s.GetHolds(), "\n"))
					f.add("cloned by", strings.Join(s.GetClones(), "\n"))
					f.add("guid", s.GetGuid())
					return a.printFacts(f)
				})
			})
		},
	}
}

func snapshotDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete DATASET@SNAPSHOT...", Short: "Remove snapshots of one node, all of them or none",
		Long: "Remove snapshots of one node, all of them or none: where one is held, cloned, needed by a replication or\nnot DebVisor's, nothing is removed and each such is named (exit code 4).",
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &debvisorv1.DeleteSnapshotsRequest{}
			for _, text := range args {
				ref, err := readSnapshot(text)
				if err != nil {
					return err
				}
				req.Snapshots = append(req.Snapshots, ref)
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				return a.see(ctx, c, func(ctx context.Context, header grpc.CallOption) (string, error) {
					result, err := c.storage.DeleteSnapshots(ctx, req, header)
					return result.GetOperationId(), err
				})
			})
		},
	}
}

// snapshotLine is the last line of an operation on snapshots.
func snapshotLine(op *debvisorv1.Operation) string {
	d := op.GetSnapshot()
	if op.GetKind() == "snapshot.create" {
		var names []string
		for _, name := range detailNames(d) {
			names = append(names, name+"@"+d.GetName())
		}
		if text := freezeText(d.GetFreeze()); text != "" {
			names = append(names, text)
		}
		return strings.Join(names, "\n")
	}
	line := fmt.Sprintf("%s of %s on %s removed in %s, %s freed",
		count(int(d.GetRemoved()), "snapshot"), strings.Join(detailNames(d), ", "), nodeName(d.GetNode()), took(op), size(d.GetFreedBytes()))
	if d.GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
		line = fmt.Sprintf("%s of %s removed in %s", count(int(d.GetRemoved()), "snapshot"), strings.Join(detailNames(d), ", "), took(op))
	}
	for _, kept := range d.GetKeptBecause() {
		line += "\nstill there: " + kept
	}
	return line
}
