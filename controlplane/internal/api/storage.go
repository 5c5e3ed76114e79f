package api

import (
	"context"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// storageService has the contract's methods; none is built yet.
type storageService struct {
	debvisorv1.UnimplementedStorageServiceServer
}

// unbuilt says that a method of the contract is not built in this version.
func unbuilt(what string) error {
	return errdefs.New(errdefs.Unimplemented, "NOT_BUILT_YET", "this version of DebVisor cannot %s yet", what)
}

// CreateSnapshot is not built yet.
func (*storageService) CreateSnapshot(context.Context, *debvisorv1.SnapshotRequest) (*debvisorv1.SnapshotStatus, error) {
	return nil, unbuilt("take snapshots")
}

// PruneSnapshots is not built yet.
func (*storageService) PruneSnapshots(context.Context, *debvisorv1.PruneRequest) (*debvisorv1.PruneResult, error) {
	return nil, unbuilt("prune snapshots")
}

// PlanZfsReplication is not built yet.
func (*storageService) PlanZfsReplication(context.Context, *debvisorv1.ZfsReplicationPlan) (*debvisorv1.ReplicationJob, error) {
	return nil, unbuilt("replicate datasets")
}

// RunZfsReplication is not built yet.
func (*storageService) RunZfsReplication(context.Context, *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	return nil, unbuilt("replicate datasets")
}

// GetReplicationStatus is not built yet.
func (*storageService) GetReplicationStatus(context.Context, *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	return nil, unbuilt("replicate datasets")
}

// CreateRbdTemplateSnapshot is not built yet.
func (*storageService) CreateRbdTemplateSnapshot(context.Context, *debvisorv1.RbdTemplateRequest) (*debvisorv1.SnapshotStatus, error) {
	return nil, unbuilt("make templates of images")
}

// CloneRbdFromTemplate is not built yet.
func (*storageService) CloneRbdFromTemplate(context.Context, *debvisorv1.RbdCloneRequest) (*debvisorv1.CloneResult, error) {
	return nil, unbuilt("clone images")
}
