package api

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// ListStorage answers pools and datasets as the nodes last reported them. A
// tenant's caller sees its own datasets, and their pools without their sizes,
// which tell of others.
func (s *storageService) ListStorage(ctx context.Context, filter *debvisorv1.StorageFilter) (*debvisorv1.StorageList, error) {
	scope := scopeOf(ctx, s.view.Current())
	only, err := findNode(scope.Snapshot(), filter.GetNode())
	if err != nil {
		return nil, err
	}
	if filter.GetPool() != "" {
		if err := checkPool(filter.GetBackend(), filter.GetPool()); err != nil {
			return nil, err
		}
	}
	list := &debvisorv1.StorageList{}
	for _, node := range slices.Sorted(maps.Keys(scope.Snapshot().Nodes)) {
		if only != "" && node != only {
			continue
		}
		if filter.GetBackend() != debvisorv1.StorageBackend_BACKEND_RBD {
			s.listNode(scope, node, filter.GetPool(), list)
		}
		if filter.GetBackend() != debvisorv1.StorageBackend_BACKEND_ZFS {
			s.listCeph(scope, node, filter.GetPool(), list)
		}
	}
	if size := proto.Size(list); size > rpc.MaxResponseBytes*9/10 {
		return nil, errdefs.New(errdefs.ResourceExhausted, "ANSWER_TOO_LARGE",
			"%d datasets are more than fit into an answer; ask for those of a node, or of a pool", len(list.GetDatasets()))
	}
	return list, nil
}

// checkPool checks a pool's name by the grammars that it may be of.
func checkPool(backend debvisorv1.StorageBackend, pool string) error {
	if backend != debvisorv1.StorageBackend_BACKEND_ZFS && cluster.RBDPool("pool", pool) == nil {
		return nil
	}
	return cluster.ZFSDataset("pool", pool)
}

// listNode adds a node's pools and datasets.
func (s *storageService) listNode(scope cluster.Scope, node, pool string, list *debvisorv1.StorageList) {
	inventory, _ := s.seen.of(scope.Snapshot(), node)
	users := diskUsers(scope, node)
	own := map[string]bool{}
	for _, d := range inventory.GetDatasets() {
		ref := datasetRef(node, d.GetName())
		if pool != "" && ref.GetPool() != pool || s.own(scope, ref) != nil {
			continue
		}
		own[ref.GetPool()] = true
		list.Datasets = append(list.Datasets, s.datasetMessage(scope, node, d, users[d.GetName()]))
	}
	stale := inventory.GetError()
	if err := heardForStorage(scope.Snapshot(), node); stale == "" && err != nil {
		stale = "the agent of " + node + " is not heard"
	}
	for _, p := range inventory.GetPools() {
		if pool != "" && p.GetName() != pool || scope.Confined() && !own[p.GetName()] {
			continue
		}
		m := &debvisorv1.StoragePool{
			Node: nodeRef(node), Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Name: p.GetName(), Health: p.GetHealth(),
			SizeBytes: p.GetSizeBytes(), FreeBytes: p.GetFreeBytes(), Version: inventory.GetVersion(), StaleBecause: stale,
		}
		if scope.Confined() {
			m.SizeBytes, m.FreeBytes, m.StaleBecause = 0, 0, ""
			if stale != "" {
				m.StaleBecause = "its node does not answer"
			}
		}
		list.Pools = append(list.Pools, m)
	}
}

// datasetMessage gives a dataset as the scope's callers may see it.
func (s *storageService) datasetMessage(scope cluster.Scope, node string, d *agentv1.ZfsDataset, vms []string) *debvisorv1.Dataset {
	return &debvisorv1.Dataset{
		Ref: datasetRef(node, d.GetName()), Volume: d.GetType() == agentv1.ZfsType_ZFS_TYPE_VOLUME, VolumeBytes: d.GetVolumeBytes(),
		UsedBytes: d.GetUsedBytes(), ReferencedBytes: d.GetReferencedBytes(), AvailableBytes: d.GetAvailableBytes(),
		Encrypted: d.GetEncrypted(), ReadOnly: d.GetReadOnly(), Origin: s.shown(scope, node, d.GetOrigin()),
		ReplicationJob: shownJob(scope, d.GetReplicationJob()), Vms: vms, Guid: strconv.FormatUint(d.GetGuid(), 10),
	}
}

// shown is a dataset's or a snapshot's full name, unless it is another's.
func (s *storageService) shown(scope cluster.Scope, node, full string) string {
	path, _, _ := strings.Cut(full, "@")
	if full == "" || s.own(scope, datasetRef(node, path)) == nil {
		return full
	}
	return hidden
}

// shownJob is a replication job's id, unless it is another's.
func shownJob(scope cluster.Scope, id string) string {
	if _, ok := scope.Replication(id); id == "" || ok || !scope.Confined() {
		return id
	}
	return hidden
}

// holdPrefix begins the tags of replication jobs' holds.
const holdPrefix = "debvisor:"

// shownHolds are the tags of a snapshot's holds, without others' jobs.
func shownHolds(scope cluster.Scope, tags []string) []string {
	if !scope.Confined() {
		return tags
	}
	shown := make([]string, 0, len(tags))
	for _, tag := range tags {
		job, ours := strings.CutPrefix(tag, holdPrefix)
		if ours {
			tag = holdPrefix + shownJob(scope, job)
		}
		shown = append(shown, tag)
	}
	return shown
}

// diskUsers gives the VMs of a scope on a node by the datasets that are their
// disks.
func diskUsers(scope cluster.Scope, node string) map[string][]string {
	users := map[string][]string{}
	for _, entry := range scope.VMsOn(node) {
		for _, disk := range vmDisks(entry.Value.GetDomain()) {
			path, id := disk.GetZfsDataset(), entry.Value.GetUuid()
			if path != "" && !slices.Contains(users[path], id) {
				users[path] = append(users[path], id)
			}
		}
	}
	return users
}

// vmDisks are the disks of a VM's domain as it is recorded.
func vmDisks(domain []byte) []*debvisorv1.VMDisk {
	return decode(domain, &agentv1.Domain{}).GetDisks()
}

// snapshotMessage gives a snapshot as the scope's callers may see it.
func (s *storageService) snapshotMessage(scope cluster.Scope, node string, one *agentv1.ZfsSnapshot) *debvisorv1.Snapshot {
	m := &debvisorv1.Snapshot{
		Ref:       &debvisorv1.SnapshotRef{Dataset: datasetRef(node, one.GetDataset()), SnapshotName: one.GetName()},
		CreatedAt: &debvisorv1.Timestamp{Seconds: one.GetCreated()}, Label: one.GetLabel(), OperationId: one.GetOperation(), Set: one.GetSet(),
		UsedBytes: one.GetUsedBytes(), ReferencedBytes: one.GetReferencedBytes(), Holds: shownHolds(scope, one.GetHolds()),
		Guid: strconv.FormatUint(one.GetGuid(), 10),
	}
	for _, clone := range one.GetClones() {
		m.Clones = append(m.Clones, s.shown(scope, node, clone))
	}
	return m
}

// byAge orders snapshots from old to new, the same each time.
func byAge(a, b *agentv1.ZfsSnapshot) int {
	return cmp.Or(cmp.Compare(a.GetCreated(), b.GetCreated()), cmp.Compare(a.GetCreateTxg(), b.GetCreateTxg()),
		cmp.Compare(a.GetDataset(), b.GetDataset()), cmp.Compare(a.GetName(), b.GetName()))
}

// fullName writes a snapshot's full name.
func fullName(path, name string) string { return fmt.Sprintf("%s@%s", path, name) }
