package api

import (
	"context"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// CreateRbdTemplateSnapshot takes a snapshot that clones are made of, which no
// retention policy lets go, and waits until it is there.
func (s *storageService) CreateRbdTemplateSnapshot(ctx context.Context, req *debvisorv1.RbdTemplateRequest) (*debvisorv1.SnapshotStatus, error) {
	op, err := s.take(ctx, req, req.GetLabel(), quietness{}, func(scope cluster.Scope) (*storev1.TakeSnapshots, error) {
		take, err := s.takeImages(ctx, scope, func(int) string { return "image" }, []*debvisorv1.DatasetRef{req.GetImage()})
		if err != nil {
			return nil, err
		}
		take.Template = true
		return take, nil
	})
	if err != nil {
		return nil, err
	}
	return snapshotStatus(op), nil
}
