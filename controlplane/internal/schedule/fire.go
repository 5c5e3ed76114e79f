package schedule

import (
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of the operations that policies begin.
const (
	TakeKind      = "snapshot.create"
	PruneKind     = "snapshot.prune"
	ReplicateKind = "replication.run"
)

// group is the datasets of one operation; vm is the one that is frozen for it.
type group struct{ kind, node, pool, owner, vm string }

// retain begins the operations of a retention policy: where it has snapshots
// taken these first, each pruned once it has succeeded; of copies none are
// taken.
func (d *decision) retain() {
	takes := d.retention.GetSnapshotLabel() != ""
	groups, images := map[group][]string{}, newImageGroups()
	var order []group
	d.dealWith(d.inventories.retentionSubjects(d.retention, takes), func(s *subject) {
		if s.image != nil {
			d.retainImage(s, takes, images)
			return
		}
		if takes && !s.copied() && len(s.dataset)+cluster.SnapshotNameLength > 255 {
			d.skip("%v: its name is too long for snapshots of it", s)
			return
		}
		resource := cluster.ZFSResource(s.node, s.dataset)
		if !d.free(s, resource) {
			return
		}
		pool, name, _ := strings.Cut(s.dataset, "/")
		g := group{kind: PruneKind, node: s.node, owner: d.owner("zfs", pool, name)}
		switch {
		case takes && !s.copied():
			g.kind, g.pool = TakeKind, pool
			g.vm = d.guest(s.dataset, (*debvisorv1.VMDisk).GetZfsDataset, []string{s.node}).GetUuid()
		case !takes && d.retention.GetRecursive():
			g.owner = "" // what is below may be another's
		}
		if groups[g] == nil && !d.claims(s, &g) {
			return
		}
		if groups[g] == nil {
			order = append(order, g)
		}
		d.taken[resource] = "of this policy"
		if groups[g] = append(groups[g], s.dataset); len(groups[g]) == mostDatasets && g.vm == "" {
			d.beginGroup(g, groups[g], !takes)
			groups[g] = groups[g][:0:0]
		}
	})
	for _, g := range order {
		if len(groups[g]) > 0 {
			d.beginGroup(g, groups[g], !takes)
		}
	}
	for _, g := range images.order {
		d.beginImages(g, images.of[g])
	}
}

// beginGroup begins the operation of a group. named: the datasets are those that
// the policy names, of which it may want those below too.
func (d *decision) beginGroup(g group, datasets []string, named bool) {
	op := d.operation(id(d.title, d.due.UTC().Format(time.RFC3339Nano), g.kind, g.node, datasets[0]), g, datasets)
	if g.kind == TakeKind {
		take := &storev1.TakeSnapshots{
			Node: g.node, Datasets: datasets, Name: cluster.SnapshotName(op.GetId(), d.now), Label: d.retention.GetSnapshotLabel(),
		}
		if g.vm != "" {
			op.Resources = append(op.Resources, "vm/"+g.vm)
			d.quiet(take, d.snapshot.VMs[g.vm].Value)
		}
		op.Detail = &storev1.Operation_TakeSnapshots{TakeSnapshots: take}
		d.next.Awaited = append(d.next.Awaited, op.GetId())
	} else {
		op.Detail = d.removal(g.node, datasets, named && d.retention.GetRecursive())
	}
	d.begin(op)
}

func (d *decision) operation(id string, g group, datasets []string) *storev1.Operation {
	op := &storev1.Operation{Id: id, Kind: g.kind, Tenant: g.owner, Method: debvisorv1.StorageService_SetRetentionPolicy_FullMethodName}
	for _, dataset := range datasets {
		op.Resources = append(op.Resources, cluster.ZFSResource(g.node, dataset))
	}
	return op
}

func (d *decision) removal(node string, datasets []string, recursive bool) *storev1.Operation_RemoveSnapshots {
	rules, err := proto.Marshal(d.retention.GetRules())
	if err != nil {
		rules = nil // rules that keep nothing are refused by whoever carries them out
	}
	return &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{
		Node: node, Datasets: datasets, Recursive: recursive, Retention: rules, Policy: d.name,
	}}
}

// follow prunes what new snapshots have been taken of. Where none could be taken
// nothing is pruned: old snapshots would go while no new ones come; nor where the
// policy was changed since: its rules may be meant for other datasets by now.
func (d *decision) follow() {
	d.next.Awaited = nil
	if n := len(d.run.GetAwaited()); n > 0 && d.changedAt.After(d.lastDue()) {
		d.skip("nothing is pruned after %d operations that took snapshots: the policy was changed since", n)
		return
	}
	for _, id := range d.run.GetAwaited() {
		entry, ok := d.snapshot.Operations[id]
		switch op := entry.Value; {
		case !ok:
			d.skip("nothing is pruned: operation %s, which took snapshots, is no longer in the records", id)
		case !task.OpEnded(op.GetState()) || len(d.taken)+len(d.ops) >= mostKeys:
			d.next.Awaited = append(d.next.Awaited, id)
		case op.GetState() != task.OpSucceeded:
			d.skip("nothing is pruned of %s: operation %s took no snapshots (%s)", op.GetTakeSnapshots().GetNode(), id, op.GetErrorCode())
		case d.retention != nil:
			d.pruneAfter(op)
		}
	}
}

func (d *decision) pruneAfter(taken *storev1.Operation) {
	if len(taken.GetTakeSnapshots().GetImages()) > 0 {
		d.pruneImagesAfter(taken)
		return
	}
	node, datasets := taken.GetTakeSnapshots().GetNode(), []string(nil)
	for _, dataset := range taken.GetTakeSnapshots().GetDatasets() {
		if s := (&subject{node: node, dataset: dataset}); d.free(s, cluster.ZFSResource(node, dataset)) {
			datasets = append(datasets, dataset)
		}
	}
	if len(datasets) == 0 {
		return
	}
	op := d.operation(id(taken.GetId(), PruneKind), group{kind: PruneKind, node: node, owner: taken.GetTenant()}, datasets)
	op.Detail = d.removal(node, datasets, false)
	d.begin(op)
}

// replicate begins a run of each of a replication policy's jobs.
func (d *decision) replicate() {
	d.dealWith(d.inventories.replicationSubjects(d.name), func(s *subject) {
		job := s.job
		resources := []string{cluster.ReplicationResource(job.GetId()), cluster.CopyResource(job.GetTarget(), job.GetTargetDataset())}
		if !d.free(s, resources...) {
			return
		}
		op := &storev1.Operation{
			Id: id(d.title, d.due.UTC().Format(time.RFC3339Nano), job.GetId()), Kind: ReplicateKind, Tenant: job.GetTenant(),
			Method: debvisorv1.StorageService_SetReplicationPolicy_FullMethodName, Resources: resources,
		}
		run := &storev1.Replicate{
			JobId: job.GetId(), Source: job.GetSource(), Target: job.GetTarget(), Dataset: job.GetDataset(), TargetDataset: job.GetTargetDataset(),
			Policy: d.name,
		}
		if !s.options().GetNoSnapshot() {
			run.Snapshot = cluster.SnapshotName(op.GetId(), d.now)
		}
		op.Detail = &storev1.Operation_Replicate{Replicate: run}
		d.begin(op)
	})
}
