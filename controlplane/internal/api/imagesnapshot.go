package api

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// takeImages makes the detail for snapshots of images of one Ceph cluster, of one
// moment. The images are theirs by Ceph's own id: another that has taken a name
// meanwhile is left alone.
func (s *storageService) takeImages(ctx context.Context, scope cluster.Scope, field func(int) string, refs []*debvisorv1.DatasetRef) (*storev1.TakeSnapshots, error) {
	found, err := s.findImages(ctx, scope, field, refs)
	if err != nil {
		return nil, err
	}
	take := &storev1.TakeSnapshots{Fsid: found[0].fsid, Node: found[0].node}
	for _, one := range found {
		id, err := encodeMessage(one.id)
		if err != nil {
			return nil, fmt.Errorf("encoding an image's name: %w", err)
		}
		take.Images = append(take.Images, id)
	}
	return take, nil
}

// takeVMImages makes the detail for a VM's disks that are images of RBD.
func (s *storageService) takeVMImages(ctx context.Context, scope cluster.Scope, vm *storev1.VM, disks []*debvisorv1.VMDisk) (*storev1.TakeSnapshots, error) {
	var refs []*debvisorv1.DatasetRef
	for _, disk := range disks {
		sees, _ := scope.Snapshot().CephOf(vm.GetNode())
		if cluster.RBDOfDiskIn(sees.GetFsid(), disk) == "" {
			return nil, errdefs.New(errdefs.FailedPrecondition, "DISK_NOT_ON_RBD", "disk %s of VM %s is in a Ceph cluster that %s does not see with its own client",
				disk.GetTarget(), vm.GetName(), vm.GetNode()).With("vm", vm.GetUuid()).With("disk", disk.GetTarget())
		}
		pool, name, _ := strings.Cut(cluster.RBDOfDisk(disk), "/")
		refs = append(refs, &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: pool, Name: name, Node: nodeRef(vm.GetNode())})
	}
	take, err := s.takeImages(ctx, scope, func(int) string { return "vm" }, refs)
	if errdefs.Is(err, errdefs.NotFound) || errdefs.Is(err, errdefs.InvalidArgument) {
		return nil, errdefs.New(errdefs.FailedPrecondition, "DISK_NOT_ON_RBD", "the disks of VM %s are not images that %s finds, or not yours: %v",
			vm.GetName(), vm.GetNode(), err).With("vm", vm.GetUuid())
	}
	if err != nil {
		return nil, err
	}
	take.VmUuid, take.VmName = vm.GetUuid(), vm.GetName()
	return take, nil
}

// imageDisks are a VM's disks where all that a guest can write to are images of
// RBD; else none.
func imageDisks(vm *storev1.VM) []*debvisorv1.VMDisk {
	var images []*debvisorv1.VMDisk
	for _, disk := range vmDisks(vm.GetDomain()) {
		switch {
		case disk.GetDevice() == "cdrom" || disk.GetDevice() == "floppy" || disk.GetReadOnly():
		case cluster.RBDOfDisk(disk) == "":
			return nil
		default:
			images = append(images, disk)
		}
	}
	return images
}

// takenImages gives the images of a record.
func takenImages(take *storev1.TakeSnapshots) []*agentv1.RbdImageID {
	all := make([]*agentv1.RbdImageID, 0, len(take.GetImages()))
	for _, b := range take.GetImages() {
		all = append(all, decode(b, &agentv1.RbdImageID{}))
	}
	return all
}

// takenRefs name the snapshots that an operation takes.
func takenRefs(take *storev1.TakeSnapshots) []*debvisorv1.SnapshotRef {
	var refs []*debvisorv1.SnapshotRef
	for _, id := range takenImages(take) {
		refs = append(refs, &debvisorv1.SnapshotRef{Dataset: imageRef(id), SnapshotName: take.GetName()})
	}
	for _, path := range take.GetDatasets() {
		refs = append(refs, &debvisorv1.SnapshotRef{Dataset: datasetRef(take.GetNode(), path), SnapshotName: take.GetName()})
	}
	return refs
}

// freezeResult is how a guest's freeze went; nil: none was asked for.
func freezeResult(take *storev1.TakeSnapshots) *debvisorv1.FreezeResult {
	if len(take.GetFreeze()) == 0 {
		return nil
	}
	out := decode(take.GetFreeze(), &agentv1.FreezeOutcome{})
	return &debvisorv1.FreezeResult{Frozen: out.GetFrozen(), Filesystems: out.GetFilesystems(), FrozenMs: out.GetFrozenMs(), Reason: out.GetReason()}
}

// listImageSnapshots answers an image's snapshots, oldest first.
func (s *storageService) listImageSnapshots(ctx context.Context, scope cluster.Scope, filter *debvisorv1.SnapshotFilter, after *agentv1.ZfsSnapshot) (*debvisorv1.SnapshotList, error) {
	if err := plainly("recursive", filter.GetRecursive()); err != nil {
		return nil, err
	}
	found, err := s.findImage(ctx, scope, "dataset", filter.GetDataset())
	if err != nil {
		return nil, err
	}
	all := slices.DeleteFunc(found.snapshots, func(one *agentv1.RbdSnapshot) bool {
		as := likeZFS(one)
		return !filter.GetAll() && one.GetOperation() == "" || !matches(filter.GetPattern(), as) || after != nil && byAge(as, after) <= 0
	})
	slices.SortFunc(all, func(a, b *agentv1.RbdSnapshot) int { return byAge(likeZFS(a), likeZFS(b)) })
	limit := int(cmp.Or(filter.GetLimit(), snapshotsAPage))
	list := &debvisorv1.SnapshotList{}
	for i, one := range all {
		if i == limit {
			list.NextPage = pageAfter(likeZFS(all[i-1]))
			break
		}
		list.Snapshots = append(list.Snapshots, s.imageSnapshotMessage(scope, one))
	}
	return list, nil
}

// likeZFS gives what orders and names a snapshot, as of ZFS: its number in its
// pool grows as ZFS's transactions do.
func likeZFS(one *agentv1.RbdSnapshot) *agentv1.ZfsSnapshot {
	id := one.GetSnapshot()
	return &agentv1.ZfsSnapshot{
		Dataset: cluster.RBDPath(id.GetImage()), Name: id.GetName(), Created: one.GetCreated(), CreateTxg: id.GetId(), Label: one.GetLabel(),
	}
}

// getImageSnapshot answers one snapshot of an image.
func (s *storageService) getImageSnapshot(ctx context.Context, scope cluster.Scope, ref *debvisorv1.SnapshotRef) (*debvisorv1.Snapshot, error) {
	if err := cluster.RBDSnapshot("snapshot_name", ref.GetSnapshotName()); err != nil {
		return nil, err
	}
	_, one, err := s.findImageSnapshot(ctx, scope, "dataset", ref)
	if err != nil {
		return nil, err
	}
	return s.imageSnapshotMessage(scope, one), nil
}

// findImageSnapshot finds a snapshot and its image.
func (s *storageService) findImageSnapshot(ctx context.Context, scope cluster.Scope, field string, ref *debvisorv1.SnapshotRef) (image, *agentv1.RbdSnapshot, error) {
	found, err := s.findImage(ctx, scope, field, ref.GetDataset())
	if err != nil {
		return image{}, nil, err
	}
	for _, one := range found.snapshots {
		if one.GetSnapshot().GetName() == ref.GetSnapshotName() {
			return found, one, nil
		}
	}
	return image{}, nil, noImageSnapshot(snapshotText(found.id, ref.GetSnapshotName()))
}

func noImageSnapshot(names ...string) error {
	return errdefs.New(errdefs.NotFound, "SNAPSHOT_NOT_FOUND", "there is no %s", clipTo(strings.Join(names, ", "), maxListText)).
		With("snapshots", clipTo(strings.Join(names, ","), maxChangesText))
}

// imageSnapshotMessage gives a snapshot as the scope's callers may see it.
func (s *storageService) imageSnapshotMessage(scope cluster.Scope, one *agentv1.RbdSnapshot) *debvisorv1.Snapshot {
	id := one.GetSnapshot()
	m := &debvisorv1.Snapshot{
		Ref:       &debvisorv1.SnapshotRef{Dataset: imageRef(id.GetImage()), SnapshotName: id.GetName()},
		CreatedAt: &debvisorv1.Timestamp{Seconds: one.GetCreated()}, Label: one.GetLabel(), OperationId: one.GetOperation(), Set: one.GetSet(),
		UsedBytes: one.GetUsedBytes(), ReferencedBytes: one.GetSizeBytes(), Guid: strconv.FormatUint(id.GetId(), 10), Template: one.GetTemplate(),
	}
	if one.GetProtected() {
		m.Holds = []string{"RBD's protection"}
	}
	for _, child := range one.GetChildren() {
		m.Clones = append(m.Clones, s.shownImage(scope, child))
	}
	return m
}
