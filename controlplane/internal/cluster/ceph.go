package cluster

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// CephOf gives what a node last reported of its Ceph cluster; false: it has none,
// or never told.
func (s *Snapshot) CephOf(node string) (*agentv1.CephInventory, bool) {
	entry, ok := s.Ceph[node]
	inventory := &agentv1.CephInventory{}
	if !ok || proto.Unmarshal(entry.Value.GetInventory(), inventory) != nil || inventory.GetFsid() == "" {
		return nil, false
	}
	return inventory, true
}

// CephWith tells which Ceph cluster, by its fsid, is meant by a pool: that of the
// node that is named, else the only one of which any node has seen that pool. An
// empty pool is in every cluster. Errors: FailedPrecondition NO_CEPH for a node
// without one; FailedPrecondition AMBIGUOUS_DATASET with the nodes of each
// candidate; NotFound.
func (s *Snapshot) CephWith(field, node, pool string) (fsid string, err error) {
	if node != "" {
		inventory, ok := s.CephOf(node)
		if !ok {
			return "", errdefs.New(errdefs.FailedPrecondition, "NO_CEPH", "node %s has no Ceph, as far as it has reported", node).With("node", node)
		}
		return inventory.GetFsid(), nil
	}
	found := map[string][]string{}
	for _, node := range slices.Sorted(maps.Keys(s.Ceph)) {
		inventory, ok := s.CephOf(node)
		if ok && (pool == "" || hasPool(inventory, pool)) {
			found[inventory.GetFsid()] = append(found[inventory.GetFsid()], node)
		}
	}
	switch len(found) {
	case 0:
		return "", errdefs.New(errdefs.NotFound, "POOL_NOT_FOUND", "no node has reported a Ceph cluster with a pool %q", clip(pool)).With("pool", clip(pool))
	case 1:
		for fsid := range found {
			return fsid, nil
		}
	}
	var candidates []string
	for _, fsid := range slices.Sorted(maps.Keys(found)) {
		candidates = append(candidates, fmt.Sprintf("%s (seen by %s)", fsid, strings.Join(found[fsid][:min(3, len(found[fsid]))], ", ")))
	}
	return "", errdefs.New(errdefs.FailedPrecondition, "AMBIGUOUS_DATASET",
		"%d Ceph clusters are meant by that; name a node that sees the one in %s.node: %s", len(found), field, strings.Join(candidates, "; ")).
		With("pool", clip(pool)).With("clusters", strings.Join(slices.Sorted(maps.Keys(found)), ","))
}

func hasPool(inventory *agentv1.CephInventory, pool string) bool {
	return slices.ContainsFunc(inventory.GetPools(), func(p *agentv1.CephPool) bool { return p.GetName() == pool })
}

// CephNodes gives the nodes that can do something in a Ceph cluster now: they are
// heard, and it answers them; those whose last sign is freshest first. Where there
// is none, why says what has to pass.
func (s *Snapshot) CephNodes(fsid string) (nodes []string, why string) {
	suspect := map[string]int{}
	for _, node := range slices.Sorted(maps.Keys(s.Ceph)) {
		inventory, ok := s.CephOf(node)
		if _, known := s.Nodes[node]; !ok || !known || inventory.GetFsid() != fsid {
			continue
		}
		switch liveness := s.Statuses[node].Value.GetLiveness(); {
		case liveness != storev1.NodeLiveness_NODE_LIVENESS_ONLINE && liveness != storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
			why = cmp.Or(why, "the agent of "+node+" is not heard")
		case inventory.GetError() != "":
			why = "Ceph does not answer " + node + ": " + inventory.GetError()
		default:
			nodes = append(nodes, node)
			if liveness == storev1.NodeLiveness_NODE_LIVENESS_SUSPECT {
				suspect[node] = 1
			}
		}
	}
	slices.SortStableFunc(nodes, func(a, b string) int { return cmp.Compare(suspect[a], suspect[b]) })
	if len(nodes) > 0 {
		return nodes, ""
	}
	return nil, cmp.Or(why, "no node sees the Ceph cluster "+fsid)
}

// CephUsers gives the nodes to which VMs belong that have an image as a disk, by
// its full name, ascending.
func (s *Snapshot) CephUsers(fsid, path string) []string {
	var nodes []string
	for node := range s.Ceph {
		if inventory, ok := s.CephOf(node); !ok || inventory.GetFsid() != fsid {
			continue
		}
		for _, vm := range s.VMsOn(node) {
			domain := &agentv1.Domain{}
			// Few of very many VMs are worth reading: a name stands in the record as it is.
			if !bytes.Contains(vm.Value.GetDomain(), []byte(path)) || proto.Unmarshal(vm.Value.GetDomain(), domain) != nil {
				continue
			}
			for _, disk := range domain.GetDisks() {
				if RBDOfDiskIn(fsid, disk) == path && !slices.Contains(nodes, node) {
					nodes = append(nodes, node)
				}
			}
		}
	}
	slices.Sort(nodes)
	return nodes
}
