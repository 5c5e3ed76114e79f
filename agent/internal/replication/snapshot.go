package replication

import (
	"context"
	"errors"
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
	if err == nil && len(made) > 0 && spec.GetFreeze().GetRequired() && !run.Marked(markFrozen) {
		// Taken by a former process, of which nobody knows whether the guest was frozen
		// to the end.
		made, err = nil, k.undo(ctx, made)
	}
	if err != nil || len(made) > 0 {
		return k.end(ctx, made, k.unknown(spec), err)
	}
	if isCancelled(run) {
		return cancelled()
	}
	// To its own end, not to the freeze's: the guest is thawed in time nevertheless, and
	// a command that was abandoned might take the snapshots after they were looked for.
	freeze, err := k.r.cfg.Freezer.Frozen(ctx, spec.GetFreeze(), func(context.Context) error { return k.take(ctx, spec) })
	if err != nil {
		left, looked := k.find(ctx, spec)
		switch {
		case looked != nil || len(left) == 0:
		case spec.GetFreeze() == nil:
			// What a former process had begun came to its end only now: a command outlives
			// its agent.
			return k.end(ctx, left, nil, nil)
		default:
			err = errors.Join(err, k.undo(ctx, left))
		}
		return k.end(ctx, nil, freeze, err)
	}
	if freeze.GetFrozen() {
		if err := run.Mark(ctx, markFrozen); err != nil {
			return k.end(ctx, nil, freeze, err)
		}
	}
	made, err = k.find(ctx, spec)
	return k.end(ctx, made, freeze, err)
}

// markFrozen says that the guest was frozen while the snapshots were taken.
const markFrozen = "frozen"

// unknown is what is told of the freeze of snapshots that a former process took.
func (k snapshotKind) unknown(spec *agentv1.ZfsSnapshotCreate) *agentv1.FreezeOutcome {
	switch {
	case spec.GetFreeze() == nil:
		return nil
	case spec.GetFreeze().GetRequired(): // it has the mark
		return &agentv1.FreezeOutcome{Frozen: true}
	}
	return &agentv1.FreezeOutcome{Reason: "the agent ended after the snapshots were taken: nobody knows whether the guest was frozen to their end"}
}

// undo destroys snapshots that are not what was asked for. No replication has
// them: until the operation's end nobody knows of them.
func (k snapshotKind) undo(ctx context.Context, made []*agentv1.ZfsSnapshotID) error {
	refs := make([]zfs.Ref, 0, len(made))
	for _, id := range made {
		refs = append(refs, zfs.Ref{Dataset: id.GetDataset(), Name: id.GetName(), GUID: id.GetGuid()})
	}
	failed, err := k.r.zfs.DestroySnapshots(ctx, refs)
	for _, one := range failed {
		if one != nil && !gone(one) {
			err = errors.Join(err, one)
		}
	}
	return err
}

// take takes the snapshots, in one moment.
func (k snapshotKind) take(ctx context.Context, spec *agentv1.ZfsSnapshotCreate) error {
	k.r.pass(pointSnapshotBefore)
	properties := map[string]string{zfs.PropertyOperation: spec.GetOperation()}
	for name, value := range map[string]string{zfs.PropertyLabel: spec.GetLabel(), zfs.PropertySet: spec.GetSet()} {
		if value != "" {
			properties[name] = value
		}
	}
	err := k.r.zfs.Snapshot(ctx, zfs.SnapshotSpec{Datasets: spec.GetDatasets(), Name: spec.GetName(), Properties: properties})
	if err == nil {
		k.r.pass(pointSnapshotTaken)
	}
	return err
}

// Observe looks for the snapshots.
func (k snapshotKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetZfsSnapshotCreate()
	made, err := k.find(ctx, spec)
	if err == nil && len(made) == 0 && ctx.Err() == nil {
		return broken(CodeInterrupted, "the agent's journal was lost before a snapshot was taken")
	}
	if err == nil && len(made) > 0 && spec.GetFreeze().GetRequired() && !run.Marked(markFrozen) {
		if err = k.undo(ctx, made); err == nil {
			return broken(CodeInterrupted, "the agent's journal was lost: nobody knew whether the guest was frozen when the snapshots were taken")
		}
	}
	return k.end(ctx, made, k.unknown(spec), err)
}

func (k snapshotKind) end(ctx context.Context, made []*agentv1.ZfsSnapshotID, freeze *agentv1.FreezeOutcome, err error) *agentv1.TaskOutcome {
	out := outcomeOf(ctx, err)
	if out != nil {
		out.Zfs, out.Freeze = &agentv1.ZfsOutcome{Made: made}, freeze
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
