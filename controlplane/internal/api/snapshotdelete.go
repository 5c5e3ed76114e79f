package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// shownKept is how many snapshots an error or an answer names.
const shownKept = 20

// maxDeleted is how many snapshots of ZFS are deleted at once: what an agent does
// in one task, so that none goes where one must stay.
const maxDeleted = 500

// maxListText keeps a list in an error within what a header takes, bytes.
const maxListText = 3072

// DeleteSnapshots removes named snapshots that are ours and waits until they are
// gone. Where any is held, cloned, needed by a replication or not ours, none is
// removed and each is named: FailedPrecondition; NotFound where any is missing.
func (s *storageService) DeleteSnapshots(ctx context.Context, req *debvisorv1.DeleteSnapshotsRequest) (*debvisorv1.PruneResult, error) {
	op, err := s.submit(ctx, kindRemove, req, func(scope cluster.Scope, spec *operations.Spec) error {
		if anyImage(req.GetSnapshots()) {
			return s.removeNamedImages(ctx, scope, req.GetSnapshots(), spec)
		}
		node, names, err := s.namedSnapshots(ctx, scope, req.GetSnapshots())
		if err != nil {
			return err
		}
		if n := len(names.order); n > maxDeleted {
			return errdefs.Field("snapshots", fmt.Sprintf("%d of them", n), fmt.Sprintf("at most %d of ZFS at once: all or none of them go", maxDeleted))
		}
		detail := &storev1.RemoveSnapshots{Node: node}
		found, err := s.removable(ctx, scope, node, names)
		if err != nil {
			return err
		}
		for _, one := range found {
			id, err := proto.Marshal(&agentv1.ZfsSnapshotID{Dataset: one.Dataset, Name: one.Name, Guid: one.GUID})
			if err != nil {
				return fmt.Errorf("encoding a snapshot's name: %w", err)
			}
			detail.Snapshots = append(detail.Snapshots, id)
		}
		spec.Remove, spec.Owner = detail, s.ownerOfAll(scope.Snapshot(), names.datasets...)
		for _, path := range names.datasets {
			spec.Resources = append(spec.Resources, cluster.ZFSResource(node, path))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.pruneResult(scopeOf(ctx, s.view.Current()), op), nil
}

// snapshotNames are snapshots of one node, each once: their datasets, and all.
type snapshotNames struct {
	datasets []string
	wanted   map[[2]string]bool
	order    [][2]string
}

// full are their full names, as many as are named in an error.
func (n snapshotNames) full() []string {
	var all []string
	for _, key := range n.order {
		all = append(all, fullName(key[0], key[1]))
	}
	return someOf(all)
}

// namedSnapshots checks and finds what a caller named.
func (s *storageService) namedSnapshots(ctx context.Context, scope cluster.Scope, refs []*debvisorv1.SnapshotRef) (node string, names snapshotNames, err error) {
	names.wanted = map[[2]string]bool{}
	seen := map[string]dataset{} // one reference to a dataset is like another
	for i, ref := range refs {
		field := fmt.Sprintf("snapshots[%d]", i)
		key := fmt.Sprintf("%d %q %q %q", ref.GetDataset().GetBackend(), ref.GetDataset().GetNode().GetNodeId().GetId(), ref.GetDataset().GetPool(), ref.GetDataset().GetName())
		d, ok := seen[key]
		if !ok {
			if d, err = s.resolve(ctx, scope, field+".dataset", ref.GetDataset(), "delete the snapshots"); err != nil {
				return "", names, err
			}
			seen[key] = d
		}
		if err = cluster.ZFSSnapshot(field+".snapshot_name", d.path, ref.GetSnapshotName()); err != nil {
			return "", names, err
		}
		if node != "" && d.node != node {
			return "", names, errdefs.Field(field+".dataset.node", d.node, "snapshots of one node, such as "+node)
		}
		node = d.node
		one := [2]string{d.path, ref.GetSnapshotName()}
		if !names.wanted[one] {
			names.wanted[one], names.order = true, append(names.order, one)
		}
		if !slices.Contains(names.datasets, d.path) {
			names.datasets = append(names.datasets, d.path)
		}
	}
	return node, names, nil
}

// removable asks a node for snapshots and gives them with their guids, or tells
// which of them cannot be removed, and why.
func (s *storageService) removable(ctx context.Context, scope cluster.Scope, node string, names snapshotNames) ([]retention.Snapshot, error) {
	listing, err := s.listing(ctx, node, &agentv1.ListZfs{Datasets: names.datasets, Snapshots: true})
	if err != nil {
		return nil, err
	}
	var found []retention.Snapshot
	there := map[[2]string]bool{}
	all, protection := s.facts(scope, node, listing)
	for _, one := range all {
		if key := [2]string{one.Dataset, one.Name}; names.wanted[key] {
			there[key] = true
			found = append(found, one)
		}
	}
	var missing, kept []string
	for _, key := range names.order {
		if !there[key] {
			missing = append(missing, fullName(key[0], key[1]))
		}
	}
	if len(missing) > 0 {
		return nil, noSnapshot(node, someOf(missing)...)
	}
	for _, v := range retention.Decide(found, retention.Policy{}, protection, time.Now(), nil).Verdicts {
		if why := reasons(v); len(why) > 0 {
			kept = append(kept, fullName(v.Snapshot.Dataset, v.Snapshot.Name)+": "+strings.Join(why, ", "))
		}
	}
	if len(kept) > 0 {
		return nil, errdefs.New(errdefs.FailedPrecondition, "SNAPSHOTS_NEEDED", "nothing was removed, since %d cannot be: %s", len(kept), clipTo(strings.Join(someOf(kept), "; "), maxListText)).
			With("node", node).With("snapshots", clipTo(strings.Join(names.full(), ","), maxChangesText))
	}
	return found, nil
}

// someOf are those of a list that are named.
func someOf(list []string) []string {
	if len(list) <= shownKept {
		return list
	}
	return append(list[:shownKept:shownKept], fmt.Sprintf("%d more", len(list)-shownKept))
}

// reasons are why a snapshot stays. What a clock says is no reason where somebody
// asks for its end by name.
func reasons(v retention.Verdict) []string {
	var texts []string
	for _, r := range v.Reasons {
		if r.Rule != retention.Future && (r.Rule != retention.Unknown || v.Snapshot.GUID == 0) {
			texts = append(texts, r.Text)
		}
	}
	return texts
}

// pruneResult is what came of a removal.
func (s *storageService) pruneResult(scope cluster.Scope, op *storev1.Operation) *debvisorv1.PruneResult {
	r := op.GetRemoveSnapshots()
	result := &debvisorv1.PruneResult{
		Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(), RemovedCount: r.GetRemoved(), FreedBytes: r.GetFreedBytes(),
		KeptBecause: keptBecause(scope, r), Message: fmt.Sprintf("operation %s removes them; watch it for its end", op.GetId()),
	}
	if op.GetState() == task.OpSucceeded {
		result.Message = fmt.Sprintf("%d snapshots are removed", r.GetRemoved())
	}
	if n := len(result.GetKeptBecause()); n > 0 {
		result.Status = debvisorv1.StatusCode_STATUS_WARN
		result.Message += fmt.Sprintf("; %d that were to go are still there", max(int(r.GetKept()), n))
	}
	return result
}

// keptBecause tells of the snapshots that were to go and stayed.
func keptBecause(scope cluster.Scope, r *storev1.RemoveSnapshots) []string {
	var texts []string
	if r.GetFsid() != "" {
		own := removedImages(r)
		for _, b := range r.GetKeptBecause() {
			kept := decode(b, &agentv1.RbdKept{})
			texts = append(texts, cluster.RBDSnapshotPath(kept.GetSnapshot())+": "+discreetText(scope, own, kept.GetReason()))
		}
		return texts
	}
	for _, b := range r.GetKeptBecause() {
		kept := decode(b, &agentv1.ZfsKept{})
		reason := discreetText(scope, slices.Concat(r.GetDatasets(), []string{kept.GetSnapshot().GetDataset()}), kept.GetReason())
		texts = append(texts, fullName(kept.GetSnapshot().GetDataset(), kept.GetSnapshot().GetName())+": "+reason)
	}
	return texts
}
