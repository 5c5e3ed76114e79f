package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// storageCommand is "hvctl storage": pools and datasets.
func storageCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "storage", Short: "Storage: the nodes' pools and datasets"}
	c.AddCommand(storageList(a))
	return c
}

func storageList(a *app) *cobra.Command {
	filter := &debvisorv1.StorageFilter{}
	var node string
	c := &cobra.Command{
		Use: "list", Short: "List pools and datasets as the nodes last reported them", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter.Node = nodeRef(node)
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.storage.ListStorage(ctx, filter)
				if err != nil {
					return err
				}
				return a.print(list, func() error {
					if err := a.printTable(poolTable(list)); err != nil {
						return err
					}
					return a.printTableBelow(datasetTable(list, a.wide()))
				})
			})
		},
	}
	c.Flags().StringVar(&node, "node", "", "only of this node")
	c.Flags().StringVar(&filter.Pool, "pool", "", "only of this pool")
	complete(c, "node", a.completeNodeFlag)
	complete(c, "pool", cobra.NoFileCompletions)
	return c
}

func poolTable(list *debvisorv1.StorageList) table {
	t := table{head: []string{"NODE", "POOL", "HEALTH", "SIZE", "FREE", "VERSION", "STALE"}}
	for _, p := range list.GetPools() {
		bytes, free := "", ""
		if p.GetSizeBytes() > 0 {
			bytes, free = size(p.GetSizeBytes()), size(p.GetFreeBytes())
		}
		name := p.GetName()
		if p.GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
			name = rbdPrefix + name
		}
		t.add(nodeName(p.GetNode()), name, p.GetHealth(), bytes, free, p.GetVersion(), p.GetStaleBecause())
	}
	return t
}

func datasetTable(list *debvisorv1.StorageList, wide bool) table {
	t := table{head: []string{"NODE", "DATASET", "KIND", "USED", "REFERENCED", "AVAILABLE", "NOTES"}}
	if wide {
		t.head = append(t.head, "VMS", "GUID")
	}
	for _, d := range list.GetDatasets() {
		kind := "filesystem"
		if d.GetVolume() {
			kind = "volume " + size(d.GetVolumeBytes())
		}
		var notes []string
		if d.GetEncrypted() {
			notes = append(notes, "encrypted")
		}
		if d.GetReadOnly() {
			notes = append(notes, "read-only")
		}
		if d.GetReplicationJob() != "" {
			notes = append(notes, "copy of job "+d.GetReplicationJob())
		}
		if d.GetOrigin() != "" {
			notes = append(notes, "clone of "+d.GetOrigin())
		}
		if n := len(d.GetVms()); n > 0 {
			notes = append(notes, "disk of "+vmCount(n))
		}
		row := []string{nodeName(d.GetRef().GetNode()), datasetName(d.GetRef()), kind, size(d.GetUsedBytes()), size(d.GetReferencedBytes()), size(d.GetAvailableBytes()), strings.Join(notes, ", ")}
		if wide {
			row = append(row, strings.Join(d.GetVms(), "\n"), d.GetGuid())
		}
		t.add(row...)
	}
	return t
}

// rbdPrefix tells images of RBD from datasets of ZFS.
const rbdPrefix = "rbd:"

// datasetName writes a dataset's full name, an image's as rbd:pool/[namespace/]image.
func datasetName(d *debvisorv1.DatasetRef) string {
	name := strings.TrimSuffix(d.GetPool()+"/"+d.GetName(), "/")
	if d.GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
		return rbdPrefix + name
	}
	return name
}

// snapshotName writes a snapshot's full name.
func snapshotName(s *debvisorv1.SnapshotRef) string {
	return datasetName(s.GetDataset()) + "@" + s.GetSnapshotName()
}

// datasetArgument writes a dataset as readDataset reads it, with its node.
func datasetArgument(d *debvisorv1.DatasetRef) string {
	node := nodeName(d.GetNode())
	if node != "" {
		node += ":"
	}
	name, image := strings.CutPrefix(datasetName(d), rbdPrefix)
	if image {
		return rbdPrefix + node + name
	}
	return node + name
}

// readDataset reads [NODE:]POOL/PATH, or rbd:[NODE:]POOL/[NAMESPACE/]IMAGE.
func readDataset(text string) (*debvisorv1.DatasetRef, error) {
	if rest, ok := strings.CutPrefix(text, rbdPrefix); ok {
		ref, err := readDataset(rest)
		if err != nil || ref.GetBackend() != debvisorv1.StorageBackend_BACKEND_ZFS {
			return nil, usage("%q is no image; expected rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE, with rbd:NODE: before where nodes see several Ceph clusters", text)
		}
		ref.Backend = debvisorv1.StorageBackend_BACKEND_RBD
		return ref, nil
	}
	node, rest := "", text
	if at, slash := strings.IndexByte(text, ':'), strings.IndexByte(text, '/'); at >= 0 && at < slash {
		node, rest = text[:at], text[at+1:]
	}
	pool, name, below := strings.Cut(rest, "/")
	if !below || pool == "" || name == "" || strings.HasPrefix(text, ":") {
		return nil, usage("%q is no dataset; expected POOL/PATH, or NODE:POOL/PATH where several nodes have one of that name, or rbd:POOL/IMAGE", text)
	}
	return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: pool, Name: name, Node: nodeRef(node)}, nil
}

func readDatasets(texts []string) ([]*debvisorv1.DatasetRef, error) {
	var refs []*debvisorv1.DatasetRef
	for _, text := range texts {
		ref, err := readDataset(text)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// readImage reads rbd:[NODE:]POOL/[NAMESPACE/]IMAGE, whose rbd: may be left out where
// nothing else can be meant.
func readImage(text string) (*debvisorv1.DatasetRef, error) {
	return readDataset(rbdPrefix + strings.TrimPrefix(text, rbdPrefix))
}

// readSnapshot reads DATASET@NAME.
func readSnapshot(text string) (*debvisorv1.SnapshotRef, error) {
	path, name, ok := strings.Cut(text, "@")
	if !ok || name == "" {
		return nil, usage("%q is no snapshot; expected POOL/PATH@NAME, NODE:POOL/PATH@NAME or rbd:POOL/IMAGE@NAME", text)
	}
	ref, err := readDataset(path)
	return &debvisorv1.SnapshotRef{Dataset: ref, SnapshotName: name}, err
}

// count writes a number of things.
func count(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func (a *app) completeDatasets(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, datasetNames)
}

func (a *app) completeDataset(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.first(cmd, args, typed, datasetNames)
}

// datasetNames offers datasets by their names, and with their node those that
// several nodes have.
func datasetNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	list, err := c.storage.ListStorage(ctx, &debvisorv1.StorageFilter{})
	if err != nil {
		return nil, err
	}
	owners := map[string]int{}
	for _, d := range list.GetDatasets() {
		owners[datasetName(d.GetRef())]++
	}
	var out []cobra.Completion
	for _, d := range list.GetDatasets() {
		name := datasetName(d.GetRef())
		if d.GetRef().GetName() == "" {
			continue // a pool
		}
		if owners[name] > 1 {
			name = nodeName(d.GetRef().GetNode()) + ":" + name
		}
		out = append(out, described(name, size(d.GetUsedBytes())+" on "+nodeName(d.GetRef().GetNode())))
	}
	return out, nil
}
