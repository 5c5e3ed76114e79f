package image

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// cloneKind is rbd-clone: an image of a snapshot, which says which operation made
// it, so that a second one finds the first.
type cloneKind struct{ i *Images }

// Name is the kind's.
func (cloneKind) Name() string { return "rbd-clone" }

// Do makes the image, or finds it.
func (k cloneKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetRbdClone()
	if spec.GetTemplate().GetImage().GetName() == "" || spec.GetImage().GetName() == "" || spec.GetOperation() == "" {
		return failure(codeInternal, "the task %s names no template, no image or no operation", t.GetId())
	}
	w, result := k.i.work(t, run), &agentv1.RbdOutcome{}
	if w.unwanted() {
		return w.end(ctx, errCancelled)
	}
	w.pass(pointCloneBefore)
	err := w.insist(ctx, "cloning", func(ctx context.Context) (err error) {
		result.Image, result.Depth, err = w.cfg.Ceph.Clone(ctx, rbd.CloneSpec{
			Template: spec.GetTemplate(), Image: spec.GetImage(), Operation: spec.GetOperation(), MaxDepth: spec.GetMaxDepth(),
		})
		return err
	})
	if err == nil {
		w.pass(pointCloned)
	}
	out := w.end(ctx, err)
	if out != nil && err == nil {
		out.Rbd = result
	}
	return out
}

// Observe looks for the image under its name. Where it is not there, what has been
// begun of it only another attempt can tell.
func (k cloneKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetRbdClone()
	found, err := k.i.look(ctx, k.i.work(t, run), spec.GetImage())
	switch {
	case err == nil && found.GetOperation() == spec.GetOperation():
		return &agentv1.TaskOutcome{Rbd: &agentv1.RbdOutcome{Image: found.GetImage(), Depth: found.GetDepth()}}
	case err == nil, isGone(err):
		return broken("the agent's journal was lost before %s was cloned", rbd.Shown(spec.GetImage()))
	}
	return observed(ctx, err)
}

// look looks at an image until Ceph answers.
func (i *Images) look(ctx context.Context, w *work, id *agentv1.RbdImageID) (found *agentv1.RbdImage, err error) {
	err = w.insist(ctx, "looking at the image", func(ctx context.Context) (err error) {
		found, _, err = i.cfg.Ceph.Image(ctx, id, false)
		return err
	})
	return found, err
}

// imageRemoveKind is rbd-image-remove: a clone of ours.
type imageRemoveKind struct{ i *Images }

// Name is the kind's.
func (imageRemoveKind) Name() string { return "rbd-image-remove" }

// Do removes the image. One that is gone is done.
func (k imageRemoveKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetRbdImageRemove()
	if spec.GetImage().GetName() == "" || spec.GetClonedBy() == "" {
		return failure(codeInternal, "the task %s names no image, or not who made it", t.GetId())
	}
	w := k.i.work(t, run)
	if w.unwanted() {
		return w.end(ctx, errCancelled)
	}
	w.pass(pointDeleteBefore)
	err := w.insist(ctx, "removing the image", func(ctx context.Context) error {
		_, err := w.cfg.Ceph.RemoveImage(ctx, spec.GetImage(), spec.GetClonedBy())
		return err
	})
	if missing(err) {
		err = nil
	}
	if err == nil {
		w.pass(pointDeleted)
	}
	return w.end(ctx, err)
}

// Observe leaves it to another attempt: whether something of the image is left in
// the trash cannot be seen from outside.
func (k imageRemoveKind) Observe(_ context.Context, t *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
	return broken("the agent's journal was lost before %s was known to be removed", rbd.Shown(t.GetSpec().GetRbdImageRemove().GetImage()))
}
