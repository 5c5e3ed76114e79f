package image

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// removeKind is rbd-snapshot-remove: snapshots, each by its id.
type removeKind struct{ i *Images }

// Name is the kind's.
func (removeKind) Name() string { return "rbd-snapshot-remove" }

// Do removes the snapshots. One that is gone is done; one that something keeps
// stays, and the outcome tells.
func (k removeKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	r := &removal{work: k.i.work(t, run), result: &agentv1.RbdOutcome{}}
	err := r.do(ctx, t.GetSpec().GetRbdSnapshotRemove().GetSnapshots())
	out := r.end(ctx, err)
	if out != nil {
		out.Rbd = r.result
	}
	return out
}

// removal is one rbd-snapshot-remove at work.
type removal struct {
	*work
	result *agentv1.RbdOutcome
}

func (r *removal) do(ctx context.Context, all []*agentv1.RbdSnapshotID) error {
	var waiting []*agentv1.RbdSnapshotID // for the others of their groups
	for n, id := range all {
		gone, err := r.one(ctx, id)
		if err != nil {
			return err
		}
		if !gone {
			waiting = append(waiting, id)
		}
		r.step(uint64(n+1), uint64(len(all)), "removing snapshots")
	}
	for _, id := range waiting {
		gone, err := r.one(ctx, id)
		if err != nil {
			return err
		}
		if !gone {
			r.keep(id, CodeInGroup, "it goes with the snapshots of its group's other images only")
		}
	}
	return nil
}

// one removes a snapshot; gone is false where it waits for others, an error ends
// the task.
func (r *removal) one(ctx context.Context, id *agentv1.RbdSnapshotID) (gone bool, err error) {
	if isCancelled(r.run) {
		return false, errCancelled
	}
	r.pass(pointRemoveBefore)
	err = r.insist(ctx, "removing snapshots", func(ctx context.Context) error {
		gone, err = r.cfg.Ceph.RemoveSnapshot(ctx, id)
		return err
	})
	switch {
	case passing(err) || ctx.Err() != nil:
		return false, err
	case err != nil && !missing(err):
		r.keep(id, codeOf(err), messageOf(err))
		return true, nil
	case err == nil && !gone:
		return false, nil
	}
	r.result.Removed++
	r.pass(pointRemoved)
	return true, nil
}

func (r *removal) keep(id *agentv1.RbdSnapshotID, code, reason string) {
	r.result.Kept = append(r.result.Kept, &agentv1.RbdKept{Snapshot: id, Code: code, Reason: reason})
}

// Observe tells what is gone.
func (k removeKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	r := &removal{work: k.i.work(t, run), result: &agentv1.RbdOutcome{}}
	for _, id := range t.GetSpec().GetRbdSnapshotRemove().GetSnapshots() {
		var there bool
		err := r.insist(ctx, "looking for snapshots", func(ctx context.Context) (err error) {
			there, err = k.i.exists(ctx, id)
			return err
		})
		switch {
		case err != nil:
			return observed(ctx, err)
		case there:
			r.keep(id, CodeInterrupted, "the agent's journal was lost before it was removed")
		default:
			r.result.Removed++
		}
	}
	out := &agentv1.TaskOutcome{}
	if n := len(r.result.GetKept()); n > 0 {
		out = broken("the agent's journal was lost before %d snapshots were removed", n)
	}
	out.Rbd = r.result
	return out
}

// exists tells whether there is that snapshot, and none of another id.
func (i *Images) exists(ctx context.Context, id *agentv1.RbdSnapshotID) (bool, error) {
	_, snapshots, err := i.cfg.Ceph.Image(ctx, id.GetImage(), false)
	if err != nil {
		if isGone(err) {
			err = nil
		}
		return false, err
	}
	for _, s := range snapshots {
		if s.GetSnapshot().GetId() == id.GetId() || id.GetId() == 0 && s.GetSnapshot().GetName() == id.GetName() {
			return true, nil
		}
	}
	return false, nil
}
