package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// shownVerdicts is how many verdicts an answer has.
const shownVerdicts = 10_000

// PruneSnapshots removes the snapshots that the rules let go, and waits until
// they are gone. The leader decides, by what is there when it does it.
func (s *storageService) PruneSnapshots(ctx context.Context, req *debvisorv1.PruneRequest) (*debvisorv1.PruneResult, error) {
	if _, _, err := retention.FromProto("policy", req.GetPolicy()); err != nil {
		return nil, err
	}
	op, err := s.submit(ctx, kindPrune, req, func(scope cluster.Scope, spec *operations.Spec) error {
		if isImage(req.GetDataset()) {
			return s.pruneImages(ctx, scope, req, spec)
		}
		d, err := s.resolve(ctx, scope, "dataset", req.GetDataset(), "prune the snapshots")
		if err != nil {
			return err
		}
		rules, err := encodeMessage(req.GetPolicy())
		if err != nil {
			return fmt.Errorf("encoding a retention policy: %w", err)
		}
		detail := &storev1.RemoveSnapshots{Node: d.node, Datasets: []string{d.path}, Recursive: req.GetRecursive(), Retention: rules}
		if scope.Confined() && req.GetRecursive() {
			// What is below is the tenant's too, unless it was given to another.
			if detail.Datasets, err = s.ownBelow(ctx, scope, d); err != nil {
				return err
			}
			detail.Recursive = false
		}
		spec.Remove, spec.Owner = detail, s.ownerOfAll(scope.Snapshot(), detail.GetDatasets()...)
		spec.Resources = []string{cluster.ZFSResource(d.node, d.path)}
		return heardForStorage(scope.Snapshot(), d.node)
	})
	if err != nil {
		return nil, err
	}
	return s.pruneResult(scopeOf(ctx, s.view.Current()), op), nil
}

// ownBelow gives the scope's datasets from one on.
func (s *storageService) ownBelow(ctx context.Context, scope cluster.Scope, d dataset) ([]string, error) {
	listing, err := s.listing(ctx, d.node, &agentv1.ListZfs{Datasets: []string{d.path}, Recursive: true})
	if err != nil {
		return nil, err
	}
	own := []string{d.path}
	for _, below := range listing.GetDatasets() {
		if strings.HasPrefix(below.GetName(), d.path+"/") && s.own(scope, datasetRef(d.node, below.GetName())) == nil {
			own = append(own, below.GetName())
		}
	}
	return own, nil
}

// PlanPrune is the dry run of PruneSnapshots: it decides as the leader would,
// by what the node has now.
func (s *storageService) PlanPrune(ctx context.Context, req *debvisorv1.PruneRequest) (*debvisorv1.PrunePlan, error) {
	policy, zone, err := retention.FromProto("policy", req.GetPolicy())
	if err != nil {
		return nil, err
	}
	scope := scopeOf(ctx, s.view.Current())
	if isImage(req.GetDataset()) {
		return s.planImagePrune(ctx, scope, req, policy, zone)
	}
	d, err := s.resolve(ctx, scope, "dataset", req.GetDataset(), "prune the snapshots")
	if err != nil {
		return nil, err
	}
	listing, err := s.listing(ctx, d.node, &agentv1.ListZfs{Datasets: []string{d.path}, Recursive: req.GetRecursive(), Snapshots: true})
	if err != nil {
		return nil, err
	}
	all, protection := s.facts(scope, d.node, listing)
	all = slices.DeleteFunc(all, func(one retention.Snapshot) bool { return s.own(scope, datasetRef(d.node, one.Dataset)) != nil })
	decision := retention.Decide(all, policy, protection, time.Now(), zone)
	plan := &debvisorv1.PrunePlan{
		Keep: uint32(decision.Kept), Remove: uint32(decision.Removed), //nolint:gosec // at most maxListed
		Truncated: len(decision.Verdicts) > shownVerdicts,
	}
	for i, v := range decision.Verdicts {
		if i == shownVerdicts {
			break
		}
		plan.Verdicts = append(plan.Verdicts, verdictMessage(d.node, v))
	}
	freed, err := s.freedBy(ctx, d.node, decision)
	if err != nil {
		return nil, err
	}
	plan.FreedBytes = max(freed, decision.FreesAtLeast)
	return plan, nil
}

func verdictMessage(node string, v retention.Verdict) *debvisorv1.PruneVerdict {
	m := &debvisorv1.PruneVerdict{
		Snapshot: &debvisorv1.SnapshotRef{Dataset: datasetRef(node, v.Snapshot.Dataset), SnapshotName: v.Snapshot.Name},
		Keep:     v.Keep, Label: v.Snapshot.Label, UsedBytes: v.Snapshot.Used,
	}
	if !v.Snapshot.Created.IsZero() {
		m.CreatedAt = moment(v.Snapshot.Created)
	}
	for _, r := range v.Reasons {
		m.Rules = append(m.Rules, r.Text)
	}
	return m
}

// freedBy asks how much the removals of a decision free together: more than what
// each alone holds, where several share it.
func (s *storageService) freedBy(ctx context.Context, node string, decision retention.Decision) (uint64, error) {
	sum := uint64(0)
	var names []string
	for i, v := range decision.Verdicts {
		if !v.Keep {
			names = append(names, v.Snapshot.Name)
		}
		if len(names) == 0 || i+1 < len(decision.Verdicts) && decision.Verdicts[i+1].Snapshot.Dataset == v.Snapshot.Dataset {
			continue
		}
		freed, err := s.frees(ctx, node, v.Snapshot.Dataset, names)
		if err != nil {
			return 0, err
		}
		sum, names = sum+freed, nil
	}
	return sum, nil
}
