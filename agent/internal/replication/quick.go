package replication

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// quickKind is zfs-snapshot with a shorter way for most.
type quickKind struct{ snapshotKind }

// Do takes the snapshots of a task that was not begun before in one transaction with
// those of other tasks that wait: no commands for looking before and behind, and
// none of its own. Where nothing was taken so, the long way finds out why; a task
// that has to look first, or freezes a guest, goes it at once.
func (k quickKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetZfsSnapshotCreate()
	if run.Resumed() || isCancelled(run) || spec.GetFreeze() != nil || spec.GetOperation() == "" {
		return k.snapshotKind.Do(ctx, t, run)
	}
	k.r.pass(pointSnapshotBefore)
	guids, err := k.r.zfs.Take(ctx, setOf(spec))
	if err != nil || len(guids) == 0 {
		return k.snapshotKind.Do(ctx, t, run)
	}
	k.r.pass(pointSnapshotTaken)
	out := &agentv1.TaskOutcome{Zfs: &agentv1.ZfsOutcome{}}
	for i, guid := range guids {
		out.Zfs.Made = append(out.Zfs.Made, &agentv1.ZfsSnapshotID{Dataset: spec.GetDatasets()[i], Name: spec.GetName(), Guid: guid})
	}
	return out
}

// setOf is what a task has taken, with who took it.
func setOf(spec *agentv1.ZfsSnapshotCreate) zfs.SnapshotSpec {
	properties := map[string]string{zfs.PropertyOperation: spec.GetOperation()}
	for name, value := range map[string]string{zfs.PropertyLabel: spec.GetLabel(), zfs.PropertySet: spec.GetSet()} {
		if value != "" {
			properties[name] = value
		}
	}
	return zfs.SnapshotSpec{Datasets: spec.GetDatasets(), Name: spec.GetName(), Properties: properties}
}
