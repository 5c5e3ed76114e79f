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
	"github.com/debvisor/debvisor/controlplane/internal/retention/facts"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// anyImage tells whether any of some snapshots is one of RBD.
func anyImage(refs []*debvisorv1.SnapshotRef) bool {
	return slices.ContainsFunc(refs, func(ref *debvisorv1.SnapshotRef) bool { return isImage(ref.GetDataset()) })
}

// removeNamedImages says what a deletion of snapshots of images is about.
func (s *storageService) removeNamedImages(ctx context.Context, scope cluster.Scope, refs []*debvisorv1.SnapshotRef, spec *operations.Spec) error {
	var datasets []*debvisorv1.DatasetRef
	wanted := map[string]bool{}
	for i, ref := range refs {
		field := fmt.Sprintf("snapshots[%d]", i)
		if err := cluster.RBDSnapshot(field+".snapshot_name", ref.GetSnapshotName()); err != nil {
			return err
		}
		datasets = append(datasets, ref.GetDataset())
		wanted[ref.GetDataset().GetPool()+"/"+ref.GetDataset().GetName()+"@"+ref.GetSnapshotName()] = true
	}
	found, err := s.findImages(ctx, scope, func(i int) string { return fmt.Sprintf("snapshots[%d].dataset", i) }, datasets)
	if err != nil {
		return err
	}
	detail := &storev1.RemoveSnapshots{Fsid: found[0].fsid, Node: found[0].node}
	var images []*agentv1.RbdImageID
	var going []*agentv1.RbdSnapshot
	for _, one := range found {
		images = append(images, one.id)
		spec.Resources = append(spec.Resources, cluster.RBDResource(one.fsid, one.id))
		for _, snapshot := range one.snapshots {
			full := cluster.RBDSnapshotPath(snapshot.GetSnapshot())
			if !wanted[full] {
				continue
			}
			delete(wanted, full)
			id, err := encodeMessage(snapshot.GetSnapshot())
			if err != nil {
				return fmt.Errorf("encoding a snapshot's name: %w", err)
			}
			detail.Snapshots, going = append(detail.Snapshots, id), append(going, snapshot)
		}
	}
	if len(wanted) > 0 {
		return noImageSnapshot(someOf(sortedNames(wanted))...)
	}
	spec.Remove, spec.Owner = detail, s.ownerOfImages(scope.Snapshot(), images...)
	return s.neededImages(scope, going)
}

// neededImages refuses to remove snapshots where any has to stay, and names each.
func (s *storageService) neededImages(scope cluster.Scope, going []*agentv1.RbdSnapshot) error {
	var kept, names []string
	for _, v := range retention.Decide(s.imageFacts(scope, going), retention.Policy{}, retention.Protection{}, time.Now(), nil).Verdicts {
		full := fullName(v.Snapshot.Dataset, v.Snapshot.Name)
		if why := v.Against(); len(why) > 0 {
			kept, names = append(kept, full+": "+strings.Join(why, ", ")), append(names, full)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return errdefs.New(errdefs.FailedPrecondition, "SNAPSHOTS_NEEDED", "nothing was removed, since %d cannot be: %s", len(kept), clipTo(strings.Join(someOf(kept), "; "), maxListText)).
		With("snapshots", clipTo(strings.Join(names, ","), maxChangesText))
}

// imageFacts gives what retention decides on, without the names that the scope's
// callers may not read.
func (s *storageService) imageFacts(scope cluster.Scope, snapshots []*agentv1.RbdSnapshot) []retention.Snapshot {
	all := facts.Images(snapshots)
	for i := range all {
		all[i].Clones = nil
		for _, child := range snapshots[i].GetChildren() {
			all[i].Clones = append(all[i].Clones, s.shownImage(scope, child))
		}
	}
	return all
}

// pruneImages says what a pruning of an image's snapshots is about.
func (s *storageService) pruneImages(ctx context.Context, scope cluster.Scope, req *debvisorv1.PruneRequest, spec *operations.Spec) error {
	if err := plainly("recursive", req.GetRecursive()); err != nil {
		return err
	}
	found, err := s.findImage(ctx, scope, "dataset", req.GetDataset())
	if err != nil {
		return err
	}
	rules, err := encodeMessage(req.GetPolicy())
	if err != nil {
		return fmt.Errorf("encoding a retention policy: %w", err)
	}
	id, err := encodeMessage(found.id)
	if err != nil {
		return fmt.Errorf("encoding an image's name: %w", err)
	}
	spec.Remove = &storev1.RemoveSnapshots{Fsid: found.fsid, Node: found.node, Images: [][]byte{id}, Retention: rules}
	spec.Owner = s.ownerOfImages(scope.Snapshot(), found.id)
	spec.Resources = []string{cluster.RBDResource(found.fsid, found.id)}
	return nil
}

// planImagePrune is the dry run of that.
func (s *storageService) planImagePrune(
	ctx context.Context, scope cluster.Scope, req *debvisorv1.PruneRequest, policy retention.Policy, zone *time.Location,
) (*debvisorv1.PrunePlan, error) {
	if err := plainly("recursive", req.GetRecursive()); err != nil {
		return nil, err
	}
	found, err := s.findImage(ctx, scope, "dataset", req.GetDataset())
	if err != nil {
		return nil, err
	}
	decision := retention.Decide(s.imageFacts(scope, found.snapshots), policy, retention.Protection{}, time.Now(), zone)
	plan := &debvisorv1.PrunePlan{
		Keep: uint32(decision.Kept), Remove: uint32(decision.Removed), //nolint:gosec // at most maxListed
		FreedBytes: decision.FreesAtLeast, Truncated: len(decision.Verdicts) > shownVerdicts,
	}
	for _, v := range decision.Verdicts[:min(shownVerdicts, len(decision.Verdicts))] {
		m := verdictMessage("", v)
		m.Snapshot.Dataset = imageRef(found.id)
		plan.Verdicts = append(plan.Verdicts, m)
	}
	return plan, nil
}
