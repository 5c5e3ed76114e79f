package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of the operations on snapshots.
const (
	kindTake   = "snapshot.create"
	kindRemove = "snapshot.delete"
	kindPrune  = "snapshot.prune"
)

// CreateSnapshot takes a snapshot of a dataset and waits until it is there.
// FailedPrecondition for a replication's copy, which would diverge by it, and
// for a node that is not heard.
func (s *storageService) CreateSnapshot(ctx context.Context, req *debvisorv1.SnapshotRequest) (*debvisorv1.SnapshotStatus, error) {
	q := quietness{req.GetConsistency(), req.GetFreezeBudgetMs()}
	op, err := s.take(ctx, req, req.GetLabel(), q, func(scope cluster.Scope) (*storev1.TakeSnapshots, error) {
		if isImage(req.GetDataset()) {
			return s.takeImages(ctx, scope, func(int) string { return "dataset" }, []*debvisorv1.DatasetRef{req.GetDataset()})
		}
		d, err := s.resolve(ctx, scope, "dataset", req.GetDataset(), "take snapshots")
		if err != nil {
			return nil, err
		}
		return s.takeOf(scope, []dataset{d})
	})
	if err != nil {
		return nil, err
	}
	return snapshotStatus(op), nil
}

// snapshotStatus answers the making of one snapshot.
func snapshotStatus(op *storev1.Operation) *debvisorv1.SnapshotStatus {
	status := &debvisorv1.SnapshotStatus{
		Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(), Message: taken(op), Freeze: freezeResult(op.GetTakeSnapshots()),
	}
	for _, ref := range takenRefs(op.GetTakeSnapshots()) {
		status.Snapshot = ref
	}
	return status
}

// CreateSnapshotSet takes snapshots of several datasets of one node and pool in
// one moment, of those named or of a VM's disks, and waits until they are there.
func (s *storageService) CreateSnapshotSet(ctx context.Context, req *debvisorv1.SnapshotSetRequest) (*debvisorv1.SnapshotSetStatus, error) {
	if (req.GetVm().GetVmId() == "") == (len(req.GetDatasets()) == 0) {
		return nil, errdefs.Field("datasets", fmt.Sprintf("%d datasets and the VM %q", len(req.GetDatasets()), clip(req.GetVm().GetVmId())),
			"datasets of one node and pool, or vm, and not both")
	}
	q := quietness{req.GetConsistency(), req.GetFreezeBudgetMs()}
	op, err := s.take(ctx, req, req.GetLabel(), q, func(scope cluster.Scope) (*storev1.TakeSnapshots, error) {
		if req.GetVm().GetVmId() != "" {
			return s.takeVM(ctx, scope, req.GetVm())
		}
		if isImage(req.GetDatasets()[0]) {
			return s.takeImages(ctx, scope, func(i int) string { return fmt.Sprintf("datasets[%d]", i) }, req.GetDatasets())
		}
		all, err := s.resolveAll(ctx, scope, "datasets", req.GetDatasets(), "take snapshots")
		if err != nil {
			return nil, err
		}
		return s.takeOf(scope, all)
	})
	if err != nil {
		return nil, err
	}
	return &debvisorv1.SnapshotSetStatus{
		Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(), Message: taken(op), Snapshots: takenRefs(op.GetTakeSnapshots()),
		Freeze: freezeResult(op.GetTakeSnapshots()),
	}, nil
}

// taken tells people of an operation that takes snapshots.
func taken(op *storev1.Operation) string {
	take := op.GetTakeSnapshots()
	if op.GetState() != task.OpSucceeded {
		return fmt.Sprintf("operation %s takes it; watch it for its end", op.GetId())
	}
	if len(take.GetImages()) > 0 {
		return fmt.Sprintf("@%s of %s is taken", take.GetName(), strings.Join(imageNames(take.GetImages()), ", "))
	}
	return fmt.Sprintf("@%s of %s on %s is taken", take.GetName(), strings.Join(take.GetDatasets(), ", "), take.GetNode())
}

// take submits an operation that takes the snapshots that of finds and, where
// the caller wants it, waits for its end.
func (s *storageService) take(
	ctx context.Context, req proto.Message, label string, quiet quietness, of func(cluster.Scope) (*storev1.TakeSnapshots, error),
) (*storev1.Operation, error) {
	if err := checkLabel("label", label); err != nil {
		return nil, err
	}
	return s.submit(ctx, kindTake, req, func(scope cluster.Scope, spec *operations.Spec) error {
		detail, err := of(scope)
		if err != nil {
			return err
		}
		detail.Label = label
		spec.Take, spec.Owner = detail, s.ownerOfAll(scope.Snapshot(), detail.GetDatasets()...)
		if spec.Resources, err = quiet.quiet(scope, detail); err != nil {
			return err
		}
		spec.Begin = func(id string) { detail.Name = cluster.SnapshotName(id, time.Now()) }
		if images := takenImages(detail); len(images) > 0 {
			spec.Owner = s.ownerOfImages(scope.Snapshot(), images...)
			for _, id := range images {
				spec.Resources = append(spec.Resources, cluster.RBDResource(detail.GetFsid(), id))
			}
			return nil
		}
		for _, path := range detail.GetDatasets() {
			spec.Resources = append(spec.Resources, cluster.ZFSResource(detail.GetNode(), path))
		}
		return heardForStorage(scope.Snapshot(), detail.GetNode())
	})
}

// submit writes an operation that fill says, unless an earlier request with the
// same id has, and waits for its end where the caller wants that; else it gives
// the operation as it was written.
func (s *storageService) submit(
	ctx context.Context, kind string, req proto.Message, fill func(cluster.Scope, *operations.Spec) error,
) (*storev1.Operation, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	id, err := s.begin(ctx, kind, req, fill)
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, id)
	if !wait {
		op, err := s.operations.Get(id)
		if err != nil {
			op = &storev1.Operation{Id: id} // this replica does not see yet what it has begun
		}
		return readable(scopeOf(ctx, s.view.Current()), op), nil
	}
	op, err := awaitEnd(ctx, s.view, s.operations, id)
	if err != nil {
		return nil, err
	}
	if op.GetState() != task.OpSucceeded {
		return nil, storageFailure(op)
	}
	return op, nil
}

func (s *storageService) begin(
	ctx context.Context, kind string, req proto.Message, fill func(cluster.Scope, *operations.Spec) error,
) (string, error) {
	scope := scopeOf(ctx, s.view.Current())
	spec, err := specOf(ctx, scope, kind, req)
	if err != nil {
		return "", err
	}
	if op, err := s.operations.Repeated(spec); op != nil || err != nil {
		return op.GetId(), err
	}
	if err = fill(scope, &spec); err == nil {
		err = inUse(scope, spec.Resources)
	}
	if err != nil {
		// It may be held by what another replica has just begun for this very request.
		if op, repeated := s.operations.Repeated(spec); op != nil || repeated != nil {
			return op.GetId(), repeated
		}
		return "", err
	}
	return s.operations.Submit(ctx, spec)
}

func inUse(scope cluster.Scope, resources []string) error {
	for _, resource := range resources {
		if err := operations.InUse(scope, resource); err != nil {
			return err
		}
	}
	return nil
}

// takeOf makes the detail for datasets of one node.
func (s *storageService) takeOf(scope cluster.Scope, all []dataset) (*storev1.TakeSnapshots, error) {
	take := &storev1.TakeSnapshots{Node: all[0].node}
	pool, _, _ := strings.Cut(all[0].path, "/")
	for _, d := range all {
		if other, _, _ := strings.Cut(d.path, "/"); other != pool {
			return nil, errdefs.New(errdefs.FailedPrecondition, "SEVERAL_POOLS",
				"%s and %s are in different pools: ZFS takes snapshots in one moment of one pool only", all[0].path, d.path).With("node", d.node)
		}
		if err := snapshottable(scope, d); err != nil {
			return nil, err
		}
		take.Datasets = append(take.Datasets, d.path)
	}
	return take, nil
}

// snapshottable refuses a dataset of which no snapshot of ours may be taken.
func snapshottable(scope cluster.Scope, d dataset) error {
	if job := d.known.GetReplicationJob(); job != "" {
		return errdefs.New(errdefs.FailedPrecondition, "DATASET_IS_COPY",
			"%s on %s is the copy of replication job %s, and would diverge by a snapshot of its own: take it on the source", d.path, d.node, shownJob(scope, job)).
			With("dataset", d.path).With("node", d.node)
	}
	if len(d.path)+cluster.SnapshotNameLength > 255 {
		return errdefs.Field(d.field+".name", clip(d.path), fmt.Sprintf("a dataset of at most %d bytes, so that its snapshots' names fit", 255-cluster.SnapshotNameLength))
	}
	return nil
}

// takeVM makes the detail for a VM's disks on ZFS. FailedPrecondition, naming
// the disks, where they are not all of one pool, or not all on ZFS.
func (s *storageService) takeVM(ctx context.Context, scope cluster.Scope, ref *debvisorv1.VMRef) (*storev1.TakeSnapshots, error) {
	vm, err := findVM(scope, ref)
	if err != nil {
		return nil, err
	}
	var all []dataset
	var elsewhere, pools, where []string
	if images := imageDisks(vm); len(images) > 0 {
		return s.takeVMImages(ctx, scope, vm, images)
	}
	for _, disk := range vmDisks(vm.GetDomain()) {
		path := disk.GetZfsDataset()
		pool, name, below := strings.Cut(path, "/")
		switch {
		case disk.GetDevice() == "cdrom" || disk.GetDevice() == "floppy" || disk.GetReadOnly():
			continue
		case !below || name == "":
			elsewhere = append(elsewhere, disk.GetTarget())
			continue
		}
		if !slices.Contains(pools, pool) {
			pools = append(pools, pool)
		}
		where = append(where, disk.GetTarget()+" in "+pool)
		d, err := s.resolve(ctx, scope, "vm", datasetRef(vm.GetNode(), path), "take snapshots")
		if errdefs.Is(err, errdefs.NotFound) {
			err = errdefs.New(errdefs.FailedPrecondition, "DISK_NOT_ON_ZFS", "disk %s of VM %s is on %s of %s, which is not there, or not yours",
				disk.GetTarget(), vm.GetName(), path, vm.GetNode()).With("vm", vm.GetUuid()).With("disk", disk.GetTarget())
		}
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all, func(o dataset) bool { return o.path == d.path }) {
			all = append(all, d)
		}
	}
	switch {
	case len(elsewhere) > 0 || len(all) == 0:
		return nil, errdefs.New(errdefs.FailedPrecondition, "DISK_NOT_ON_ZFS", "disks of VM %s that are not on ZFS, as far as %s has reported: %s",
			vm.GetName(), vm.GetNode(), orNoDisk(elsewhere)).With("vm", vm.GetUuid()).With("disks", strings.Join(elsewhere, ","))
	case len(pools) > 1:
		return nil, errdefs.New(errdefs.FailedPrecondition, "SEVERAL_POOLS", "VM %s has its disks in several pools, and ZFS takes snapshots in one moment of one pool only: %s",
			vm.GetName(), strings.Join(where, ", ")).With("vm", vm.GetUuid()).With("pools", strings.Join(pools, ","))
	}
	slices.SortFunc(all, func(a, b dataset) int { return strings.Compare(a.path, b.path) })
	take, err := s.takeOf(scope, all)
	if err != nil {
		return nil, err
	}
	take.VmUuid, take.VmName = vm.GetUuid(), vm.GetName()
	return take, nil
}

func orNoDisk(disks []string) string {
	if len(disks) == 0 {
		return "it has none at all"
	}
	return strings.Join(disks, ", ")
}

// checkLabel refuses a label that lists of ZFS could not carry.
func checkLabel(field, label string) error {
	if label == "-" || strings.ContainsFunc(label, func(r rune) bool { return unicode.IsControl(r) || r == unicode.ReplacementChar }) {
		return errdefs.Field(field, clip(label), `text without control characters, and not "-" alone`)
	}
	return nil
}

// storageFailure is an operation on storage that has ended otherwise than well.
// Of one that was cancelled the operation says what had been done by then.
func storageFailure(op *storev1.Operation) error { return powerFailure(op) }
