package api

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/repldiff"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// estimatedSteps is how many of a plan's streams are estimated one by one; of
// more, the whole is estimated as one stream.
const estimatedSteps = 16

// decide asks both ends what they have and decides what a run would do.
func (s *storageService) decide(ctx context.Context, scope cluster.Scope, job *storev1.ReplicationJob) (*repldiff.Plan, error) {
	in := &repldiff.Input{
		Job: job.GetId(), Dataset: job.GetDataset(), TargetDataset: job.GetTargetDataset(), SourceGUID: job.GetDatasetGuid(), Cursor: job.GetCursorGuid(),
		EncryptedUnsafe: s.encryptedUnsafe(scope.Snapshot(), job), Now: time.Now(),
	}
	in.Options(jobOptions(job))
	var err error
	if in.Source, err = s.side(ctx, job.GetSource(), job.GetDataset(), true); err != nil {
		return nil, err
	}
	if in.Target, err = s.side(ctx, job.GetTarget(), job.GetTargetDataset(), false); err != nil {
		return nil, err
	}
	token := in.Target.Dataset.GetResumeToken()
	if token != "" {
		if in.Token, err = s.token(ctx, job.GetSource(), token); err != nil {
			return nil, err
		}
	}
	plan := repldiff.Decide(in)
	if err := s.estimate(ctx, job, plan, in.Token); err != nil {
		return nil, err
	}
	if available, known := s.room(scope.Snapshot(), job); known {
		plan.Fit(available)
	}
	return plan, nil
}

// side asks one end for one dataset.
func (s *storageService) side(ctx context.Context, node, path string, bookmarks bool) (repldiff.Side, error) {
	listing, err := s.listing(ctx, node, &agentv1.ListZfs{Datasets: []string{path}, Snapshots: true, Bookmarks: bookmarks})
	if err != nil {
		return repldiff.Side{}, err
	}
	side := repldiff.Side{Snapshots: listing.GetSnapshots(), Bookmarks: listing.GetBookmarks()}
	for _, d := range listing.GetDatasets() {
		if d.GetName() == path {
			side.Dataset = d
		}
	}
	return side, nil
}

// token asks the source what a resume token stands for; nil where its ZFS cannot
// make anything of it, as of one whose snapshot is gone.
func (s *storageService) token(ctx context.Context, source, token string) (*agentv1.ZfsSendEstimate, error) {
	estimate, err := s.sends(ctx, source, &agentv1.EstimateZfsSend{Token: token})
	switch {
	case errdefs.Is(err, errdefs.FailedPrecondition):
		return nil, nil //nolint:nilnil // it leads to nothing
	case err != nil:
		return nil, err
	}
	return estimate, nil
}

// estimate asks the source how much the steps would carry.
func (s *storageService) estimate(ctx context.Context, job *storev1.ReplicationJob, plan *repldiff.Plan, token *agentv1.ZfsSendEstimate) error {
	ask := func(from, to string) (uint64, error) {
		e, err := s.sends(ctx, job.GetSource(), &agentv1.EstimateZfsSend{Dataset: job.GetDataset(), From: from, To: "@" + to, Raw: plan.Raw})
		if errdefs.Is(err, errdefs.FailedPrecondition) {
			return 0, nil // it is gone since; the run looks again
		}
		return e.GetBytes(), err
	}
	each := map[int]uint64{}
	for i, step := range plan.Steps {
		if i == estimatedSteps {
			break
		}
		if i == 0 && plan.Decision.GetMode() == debvisorv1.ReplicationMode_REPLICATION_MODE_RESUME {
			each[0] = token.GetBytes()
			continue
		}
		bytes, err := ask(step.GetFrom(), step.GetTo())
		if err != nil {
			return err
		}
		each[i] = bytes
	}
	total := uint64(0)
	if n := len(plan.Steps); n > estimatedSteps {
		var err error
		if total, err = ask(plan.Steps[0].GetFrom(), plan.Steps[n-1].GetTo()); err != nil {
			return err
		}
	}
	plan.Estimate(each, total)
	return nil
}

// encryptedUnsafe is why encrypted datasets are not sent between a job's nodes.
func (s *storageService) encryptedUnsafe(snapshot *cluster.Snapshot, job *storev1.ReplicationJob) string {
	for _, node := range []string{job.GetSource(), job.GetTarget()} {
		if inventory, ok := s.seen.of(snapshot, node); ok && inventory.GetEncryptedSendUnsafe() != "" {
			return "node " + node + ": " + inventory.GetEncryptedSendUnsafe()
		}
	}
	return ""
}

// room is what a job's target has left for its copy, as last reported: of the
// copy, or of what it will lie in.
func (s *storageService) room(snapshot *cluster.Snapshot, job *storev1.ReplicationJob) (bytes uint64, known bool) {
	inventory, ok := s.seen.of(snapshot, job.GetTarget())
	if !ok || inventory.GetError() != "" {
		return 0, false
	}
	for path := job.GetTargetDataset(); path != ""; {
		if d := inventory.byName[path]; d != nil {
			return d.GetAvailableBytes(), true
		}
		path = path[:max(0, strings.LastIndexByte(path, '/'))]
	}
	return 0, false
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
