package replication

import (
	"context"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// destroyAtOnce is how many snapshots are destroyed between two looks at whether
// the task is still wanted.
const destroyAtOnce = 100

// destroyKind is zfs-destroy: snapshots, each by its guid.
type destroyKind struct{ r *Replication }

// Name is the kind's.
func (destroyKind) Name() string { return "zfs-destroy" }

// Do destroys the snapshots. One that is gone is done; one that something keeps
// stays, and the outcome tells.
func (k destroyKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	result := &agentv1.ZfsOutcome{}
	all := slices.Clone(t.GetSpec().GetZfsSnapshotDestroy().GetSnapshots())
	slices.SortStableFunc(all, func(a, b *agentv1.ZfsSnapshotID) int { return strings.Compare(pool(a), pool(b)) })
	for len(all) > 0 {
		n := min(destroyAtOnce, len(all))
		for n > 1 && pool(all[n-1]) != pool(all[0]) {
			n--
		}
		if isCancelled(run) {
			out := cancelled()
			out.Zfs = result
			return out
		}
		k.r.pass(pointDestroyBatch)
		if err := k.batch(ctx, all[:n], result); err != nil {
			out := outcomeOf(ctx, err)
			if out != nil {
				out.Zfs = result
			}
			return out
		}
		all = all[n:]
	}
	return &agentv1.TaskOutcome{Zfs: result}
}

func pool(id *agentv1.ZfsSnapshotID) string {
	name, _, _ := strings.Cut(id.GetDataset(), "/")
	return name
}

// batch destroys snapshots of one pool.
func (k destroyKind) batch(ctx context.Context, ids []*agentv1.ZfsSnapshotID, result *agentv1.ZfsOutcome) error {
	refs := make([]zfs.Ref, 0, len(ids))
	for _, id := range ids {
		refs = append(refs, zfs.Ref{Dataset: id.GetDataset(), Name: id.GetName(), GUID: id.GetGuid()})
	}
	errs, err := k.r.zfs.DestroySnapshots(ctx, refs)
	if err != nil {
		return err
	}
	for i, err := range errs {
		if err == nil || gone(err) {
			result.Destroyed++
			continue
		}
		result.Kept = append(result.Kept, &agentv1.ZfsKept{Snapshot: ids[i], Code: codeOf(err), Reason: messageOf(err)})
	}
	return nil
}

// Observe tells what is gone.
func (k destroyKind) Observe(ctx context.Context, t *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
	result, left := &agentv1.ZfsOutcome{}, 0
	for _, id := range t.GetSpec().GetZfsSnapshotDestroy().GetSnapshots() {
		guid, err := k.r.guidOf(ctx, id.GetDataset()+"@"+id.GetName())
		switch {
		case err != nil && !gone(err):
			return outcomeOf(ctx, err)
		case err != nil, guid != id.GetGuid():
			result.Destroyed++
		default:
			left++
		}
	}
	if left == 0 {
		return &agentv1.TaskOutcome{Zfs: result}
	}
	// Nothing keeps those that are left, so none is told of as kept: they go another time.
	out := broken(CodeInterrupted, "the agent's journal was lost before %d snapshots were destroyed", left)
	out.Zfs = result
	return out
}
