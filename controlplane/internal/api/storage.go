package api

import (
	"context"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// storageService has the contract's methods; none is built yet. What they name
// must be the caller's, as it will have to be once they are.
type storageService struct {
	debvisorv1.UnimplementedStorageServiceServer
	view  *store.View
	authz *authz.Authorizer
}

// unbuilt says that a method of the contract is not built in this version.
func unbuilt(what string) error {
	return errdefs.New(errdefs.Unimplemented, "NOT_BUILT_YET", "this version of DebVisor cannot %s yet", what)
}

// CreateSnapshot is not built yet.
func (s *storageService) CreateSnapshot(ctx context.Context, req *debvisorv1.SnapshotRequest) (*debvisorv1.SnapshotStatus, error) {
	return nil, s.unbuilt(ctx, "take snapshots", req.GetDataset())
}

// PruneSnapshots is not built yet.
func (s *storageService) PruneSnapshots(ctx context.Context, req *debvisorv1.PruneRequest) (*debvisorv1.PruneResult, error) {
	return nil, s.unbuilt(ctx, "prune snapshots", req.GetDataset())
}

// PlanZfsReplication is not built yet.
func (s *storageService) PlanZfsReplication(ctx context.Context, req *debvisorv1.ZfsReplicationPlan) (*debvisorv1.ReplicationJob, error) {
	return nil, s.unbuilt(ctx, "replicate datasets", req.GetDataset())
}

// RunZfsReplication is not built yet: there is no job of anybody's.
func (s *storageService) RunZfsReplication(ctx context.Context, _ *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	return nil, s.unbuilt(ctx, "replicate datasets")
}

// GetReplicationStatus is not built yet: there is no job of anybody's.
func (s *storageService) GetReplicationStatus(ctx context.Context, _ *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	return nil, s.unbuilt(ctx, "replicate datasets")
}

// CreateRbdTemplateSnapshot is not built yet.
func (s *storageService) CreateRbdTemplateSnapshot(ctx context.Context, req *debvisorv1.RbdTemplateRequest) (*debvisorv1.SnapshotStatus, error) {
	return nil, s.unbuilt(ctx, "make templates of images", req.GetImage())
}

// CloneRbdFromTemplate is not built yet.
func (s *storageService) CloneRbdFromTemplate(ctx context.Context, req *debvisorv1.RbdCloneRequest) (*debvisorv1.CloneResult, error) {
	return nil, s.unbuilt(ctx, "clone images", req.GetTemplateSnapshot().GetDataset(), req.GetNewImage())
}

// unbuilt refuses storage that is not the caller's, NotFound, and then says that
// the method is not built.
func (s *storageService) unbuilt(ctx context.Context, what string, named ...*debvisorv1.DatasetRef) error {
	snapshot := s.view.Current()
	for _, ref := range named {
		if err := s.own(snapshot, tenantOf(ctx), ref); err != nil {
			return err
		}
	}
	return unbuilt(what)
}

// own refuses storage that is not the tenant's; whoever belongs to none may name
// any.
func (s *storageService) own(snapshot *cluster.Snapshot, tenant string, ref *debvisorv1.DatasetRef) error {
	backend := map[debvisorv1.StorageBackend]string{
		debvisorv1.StorageBackend_BACKEND_ZFS: "zfs", debvisorv1.StorageBackend_BACKEND_RBD: "rbd",
	}[ref.GetBackend()]
	tenants := func(yield func(string, *storev1.Tenant) bool) {
		for _, t := range s.authz.Tenants(snapshot) {
			if !yield(t.Name, t.Value) {
				return
			}
		}
	}
	if tenant == "" || cluster.TenantOfStorage(tenants, backend, ref.GetPool(), ref.GetName()) == tenant {
		return nil
	}
	path := clip(ref.GetPool() + "/" + ref.GetName())
	return errdefs.New(errdefs.NotFound, "DATASET_NOT_FOUND", "no dataset or image %q of backend %s", path, backend).With("dataset", path)
}
