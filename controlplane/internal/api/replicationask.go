package api

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff/look"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// decide asks both ends what they have and decides what a run would do.
func (s *storageService) decide(ctx context.Context, scope cluster.Scope, job *storev1.ReplicationJob) (*repldiff.Plan, error) {
	return look.Plan(ctx, s.ask, scope.Snapshot(), job, look.More{}, time.Now())
}

// discreetDecision is a job's plan as the scope's callers may read it.
func discreetDecision(scope cluster.Scope, job *storev1.ReplicationJob, d *debvisorv1.ReplicationDecision) *debvisorv1.ReplicationDecision {
	if d == nil || !scope.Confined() {
		return d
	}
	d = proto.CloneOf(d)
	for i, reason := range d.GetReasons() {
		d.Reasons[i] = discreetText(scope, []string{job.GetDataset(), job.GetTargetDataset()}, reason)
	}
	return d
}
