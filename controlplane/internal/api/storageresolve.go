package api

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// inventories are the nodes' ZFS inventories, decoded once for each change.
type inventories struct {
	mu   sync.Mutex
	seen map[string]inventoryOf
}

type inventoryOf struct {
	revision int64
	*agentv1.ZfsInventory
	byName map[string]*agentv1.ZfsDataset
}

// of gives what a node last reported of its ZFS; ok is false where it never did.
func (i *inventories) of(s *cluster.Snapshot, node string) (inventory inventoryOf, ok bool) {
	entry, ok := s.ZFS[node]
	if !ok {
		return inventoryOf{}, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if was, ok := i.seen[node]; ok && was.revision == entry.ModRevision {
		return was, true
	}
	is := inventoryOf{
		revision: entry.ModRevision, byName: map[string]*agentv1.ZfsDataset{},
		ZfsInventory: decode(entry.Value.GetInventory(), &agentv1.ZfsInventory{}),
	}
	for _, d := range is.GetDatasets() {
		is.byName[d.GetName()] = d
	}
	for other := range i.seen {
		if _, exists := s.ZFS[other]; !exists {
			delete(i.seen, other)
		}
	}
	i.seen[node] = is
	return is, true
}

// dataset is a ZFS dataset that a caller named.
type dataset struct {
	field string // of the request
	node  string
	path  string // pool/name
	known *agentv1.ZfsDataset
}

// ref names it as answers do.
func (d dataset) ref() *debvisorv1.DatasetRef { return datasetRef(d.node, d.path) }

func datasetRef(node, path string) *debvisorv1.DatasetRef {
	pool, name, _ := strings.Cut(path, "/")
	return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: pool, Name: name, Node: nodeRef(node)}
}

// named checks what a caller calls a dataset, before it is looked for: ZFS's
// grammar, then that it is the caller's.
func (s *storageService) named(scope cluster.Scope, field string, ref *debvisorv1.DatasetRef, what string) (path string, err error) {
	if ref.GetBackend() != debvisorv1.StorageBackend_BACKEND_ZFS {
		if err := s.own(scope, ref); err != nil {
			return "", err
		}
		return "", errdefs.Field(field+".backend", ref.GetBackend().String(), "BACKEND_ZFS, to "+what)
	}
	if path, err = cluster.ZFSPath(field, ref.GetPool(), ref.GetName()); err != nil {
		return "", err
	}
	return path, s.own(scope, ref)
}

// resolve finds the dataset that a reference means. One that names no node means
// that of the only node that has it; a replication's copy is left out as long as
// there is another, since the copy has the same name on purpose and is nobody's
// to change. On a named node it is asked for where the node has not reported it
// yet. Errors: InvalidArgument for a name that ZFS does not have; NotFound;
// FailedPrecondition AMBIGUOUS_DATASET with the nodes.
func (s *storageService) resolve(ctx context.Context, scope cluster.Scope, field string, ref *debvisorv1.DatasetRef, what string) (dataset, error) {
	path, err := s.named(scope, field, ref, what)
	if err != nil {
		return dataset{}, err
	}
	node, err := findNode(scope.Snapshot(), ref.GetNode())
	if err != nil {
		return dataset{}, err
	}
	if node == "" {
		return s.findOwner(scope, field, path, ref)
	}
	if inventory, ok := s.seen.of(scope.Snapshot(), node); ok && inventory.byName[path] != nil {
		return dataset{field, node, path, inventory.byName[path]}, nil
	}
	listing, err := s.listing(ctx, node, &agentv1.ListZfs{Datasets: []string{path}})
	if err != nil {
		return dataset{}, err
	}
	for _, d := range listing.GetDatasets() {
		if d.GetName() == path {
			return dataset{field, node, path, d}, nil
		}
	}
	return dataset{}, noDataset(ref)
}

// findOwner finds the only node that has a dataset.
func (s *storageService) findOwner(scope cluster.Scope, field, path string, ref *debvisorv1.DatasetRef) (dataset, error) {
	var owners, copies []dataset
	for node := range scope.Snapshot().ZFS {
		inventory, _ := s.seen.of(scope.Snapshot(), node)
		switch d := inventory.byName[path]; {
		case d.GetReplicationJob() != "":
			copies = append(copies, dataset{field, node, path, d})
		case d != nil:
			owners = append(owners, dataset{field, node, path, d})
		}
	}
	if len(owners) == 0 {
		owners = copies
	}
	switch len(owners) {
	case 0:
		return dataset{}, noDataset(ref)
	case 1:
		return owners[0], nil
	}
	var nodes []string
	for _, d := range owners {
		nodes = append(nodes, d.node)
	}
	slices.Sort(nodes)
	return dataset{}, errdefs.New(errdefs.FailedPrecondition, "AMBIGUOUS_DATASET",
		"%d nodes have a dataset %s; name one of them in %s.node: %s", len(nodes), path, field, strings.Join(nodes, ", ")).
		With("dataset", path).With("nodes", strings.Join(nodes, ","))
}

// resolveAll finds several datasets of one node, each once.
func (s *storageService) resolveAll(ctx context.Context, scope cluster.Scope, field string, refs []*debvisorv1.DatasetRef, what string) ([]dataset, error) {
	var all []dataset
	for i, ref := range refs {
		d, err := s.resolve(ctx, scope, fmt.Sprintf("%s[%d]", field, i), ref, what)
		if err != nil {
			return nil, err
		}
		if len(all) > 0 && d.node != all[0].node {
			return nil, errdefs.New(errdefs.FailedPrecondition, "SEVERAL_NODES", "%s is on node %s and %s on node %s; name those of one node",
				all[0].path, all[0].node, d.path, d.node).With("nodes", all[0].node+","+d.node)
		}
		if !slices.ContainsFunc(all, func(o dataset) bool { return o.path == d.path }) {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b dataset) int { return cmp.Compare(a.path, b.path) })
	return all, nil
}

// ownerOfAll is the tenant that all of some datasets belong to; empty: none.
func (s *storageService) ownerOfAll(snapshot *cluster.Snapshot, paths ...string) string {
	tenant := ""
	for i, path := range paths {
		pool, name, _ := strings.Cut(path, "/")
		of := s.ownerOf(snapshot, debvisorv1.StorageBackend_BACKEND_ZFS, pool, name)
		if i > 0 && of != tenant {
			return ""
		}
		tenant = of
	}
	return tenant
}

// heardForStorage refuses what is to happen now on a node that is not heard.
func heardForStorage(s *cluster.Snapshot, node string) error {
	switch s.Statuses[node].Value.GetLiveness() {
	case storev1.NodeLiveness_NODE_LIVENESS_ONLINE, storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
		return nil
	}
	return errdefs.New(errdefs.FailedPrecondition, "NODE_NOT_REACHABLE",
		"the agent of %s is not heard: nothing is done with its datasets until it is", node).With("node", node)
}
