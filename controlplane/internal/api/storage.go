package api

import (
	"context"

	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Asker puts a read-only question to a node's agent, from any replica, and
// gives the answer part by part. What it asks changes nothing.
type Asker interface {
	Ask(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error
}

// storageService protects disks. What a call names must be the caller's; a name
// is checked by ZFS's grammar before anything else is done with it.
type storageService struct {
	debvisorv1.UnimplementedStorageServiceServer
	view       *store.View
	operations *operations.Operations
	authz      *authz.Authorizer
	asker      Asker
	seen       *inventories
}

// own refuses storage that is not the scope's tenant's; whoever belongs to none
// may name any.
func (s *storageService) own(scope cluster.Scope, ref *debvisorv1.DatasetRef) error {
	if !scope.Confined() || s.ownerOf(scope.Snapshot(), ref.GetBackend(), ref.GetPool(), ref.GetName()) == scope.Tenant() {
		return nil
	}
	return noDataset(ref)
}

// noDataset is what comes of a dataset that does not exist, and of another's.
func noDataset(ref *debvisorv1.DatasetRef) error {
	path := clip(ref.GetPool() + "/" + ref.GetName())
	return errdefs.New(errdefs.NotFound, "DATASET_NOT_FOUND", "no dataset or image %q of backend %s", path, backendWord(ref.GetBackend())).With("dataset", path)
}

// ownerOf tells whose storage is; empty: nobody's in particular.
func (s *storageService) ownerOf(snapshot *cluster.Snapshot, backend debvisorv1.StorageBackend, pool, name string) string {
	tenants := func(yield func(string, *storev1.Tenant) bool) {
		for _, t := range s.authz.Tenants(snapshot) {
			if !yield(t.Name, t.Value) {
				return
			}
		}
	}
	return cluster.TenantOfStorage(tenants, backendWord(backend), pool, name)
}

func backendWord(b debvisorv1.StorageBackend) string {
	switch b {
	case debvisorv1.StorageBackend_BACKEND_ZFS:
		return "zfs"
	case debvisorv1.StorageBackend_BACKEND_RBD:
		return "rbd"
	}
	return ""
}
