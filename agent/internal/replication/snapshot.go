package replication

import (
	"context"
	"strconv"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// snapshotKind is zfs-snapshot: one atomic set of snapshots, whose name says which
// operation took it, so that a second one finds the first.
type snapshotKind struct{ r *Replication }

// Name is the kind's.
func (snapshotKind) Name() string { return "zfs-snapshot" }

// Do takes the snapshots, or finds them.
func (k snapshotKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetZfsSnapshotCreate()
	if len(spec.GetDatasets()) == 0 || spec.GetOperation() == "" {
		return failure(codeInternal, "the task %s names no dataset or no operation", t.GetId())
	}
	made, err := k.find(ctx, spec)
	if err != nil || len(made) > 0 {
		return k.end(ctx, made, err)
	}
	if isCancelled(run) {
		return cancelled()
	}
	k.r.pass(pointSnapshotBefore)
	properties := map[string]string{zfs.PropertyOperation: spec.GetOperation()}
	for name, value := range map[string]string{zfs.PropertyLabel: spec.GetLabel(), zfs.PropertySet: spec.GetSet()} {
		if value != "" {
			properties[name] = value
		}
	}
	if err := k.r.zfs.Snapshot(ctx, zfs.SnapshotSpec{Datasets: spec.GetDatasets(), Name: spec.GetName(), Properties: properties}); err != nil {
		return k.end(ctx, nil, err)
	}
	k.r.pass(pointSnapshotTaken)
	made, err = k.find(ctx, spec)
	return k.end(ctx, made, err)
}

// Observe looks for the snapshots.
func (k snapshotKind) Observe(ctx context.Context, t *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
	made, err := k.find(ctx, t.GetSpec().GetZfsSnapshotCreate())
	if err == nil && len(made) == 0 && ctx.Err() == nil {
		return broken(CodeInterrupted, "the agent's journal was lost before a snapshot was taken")
	}
	return k.end(ctx, made, err)
}

func (k snapshotKind) end(ctx context.Context, made []*agentv1.ZfsSnapshotID, err error) *agentv1.TaskOutcome {
	out := outcomeOf(ctx, err)
	if out != nil {
		out.Zfs = &agentv1.ZfsOutcome{Made: made}
	}
	return out
}

// find gives the operation's snapshots; none where it has taken none. That of
// another is an error, and so is a set of which a part has gone since.
func (k snapshotKind) find(ctx context.Context, spec *agentv1.ZfsSnapshotCreate) (made []*agentv1.ZfsSnapshotID, err error) {
	missing := ""
	for _, dataset := range spec.GetDatasets() {
		full := dataset + "@" + spec.GetName()
		found, err := k.r.zfs.Get(ctx, full, "guid", zfs.PropertyOperation)
		switch {
		case gone(err):
			missing = full
			continue
		case err != nil:
			return nil, err
		case found[zfs.PropertyOperation].Value != spec.GetOperation():
			return nil, errdefs.New(errdefs.AlreadyExists, zfs.CodeSnapshotExists, "there is a snapshot %s already, of somebody else", full).With("dataset", full)
		}
		guid, err := strconv.ParseUint(found["guid"].Value, 10, 64)
		if err != nil {
			return nil, err
		}
		made = append(made, &agentv1.ZfsSnapshotID{Dataset: dataset, Name: spec.GetName(), Guid: guid})
	}
	if len(made) > 0 && missing != "" {
		return made, errdefs.New(errdefs.Aborted, zfs.CodeDatasetChanged, "%s was taken with the rest of its set, and is gone since", missing).With("dataset", missing)
	}
	return made, nil
}
