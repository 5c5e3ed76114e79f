package replication

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// releaseKind is replication-release: a job's end on a node.
type releaseKind struct{ r *Replication }

// Name is the kind's.
func (releaseKind) Name() string { return "replication-release" }

// Do takes away what the job keeps; what is gone is done.
func (k releaseKind) Do(ctx context.Context, t *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
	return outcomeOf(ctx, k.do(ctx, t.GetSpec().GetReplicationRelease()))
}

func (k releaseKind) do(ctx context.Context, spec *agentv1.ReplicationRelease) error {
	if spec.GetJobId() == "" {
		return refuse(codeInternal, "no job is named")
	}
	keep := keeper{k.r.zfs, spec.GetJobId(), spec.GetDataset()}
	k.r.pass(pointReleaseHolds)
	if err := keep.release(ctx); err != nil {
		return err
	}
	if err := keep.unmark(ctx); err != nil {
		return err
	}
	if !spec.GetTarget() {
		return nil
	}
	found, err := k.r.look(ctx, spec.GetDataset())
	if err != nil || found.job != spec.GetJobId() {
		return err // another job's copy, or nobody's any more
	}
	if found.token != "" {
		if err := k.r.zfs.AbortReceive(ctx, spec.GetDataset()); err != nil {
			return err
		}
		if found, err = k.r.look(ctx, spec.GetDataset()); err != nil || !found.exists {
			return err
		}
	}
	k.r.pass(pointReleaseMark)
	if err := k.r.zfs.Inherit(ctx, spec.GetDataset(), "readonly"); err != nil {
		return err
	}
	return k.r.zfs.Inherit(ctx, spec.GetDataset(), zfs.PropertyJob) // last: with it the rest is found again
}

// Observe tells whether anything is left.
func (k releaseKind) Observe(ctx context.Context, t *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetReplicationRelease()
	keep := keeper{k.r.zfs, spec.GetJobId(), spec.GetDataset()}
	held, err := keep.held(ctx)
	if err != nil {
		return outcomeOf(ctx, err)
	}
	marks, err := keep.marks(ctx)
	if err != nil {
		return outcomeOf(ctx, err)
	}
	found, err := k.r.look(ctx, spec.GetDataset())
	if err != nil {
		return outcomeOf(ctx, err)
	}
	if len(held)+len(marks) > 0 || spec.GetTarget() && found.job == spec.GetJobId() {
		return broken(CodeInterrupted, "the agent's journal was lost before all of the job's marks were taken away")
	}
	return &agentv1.TaskOutcome{}
}
