package image

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// flattenKind is rbd-flatten: what a clone of ours shares with its parents is
// copied into it, beside whoever uses it.
type flattenKind struct{ i *Images }

// Name is the kind's.
func (flattenKind) Name() string { return "rbd-flatten" }

// Do flattens the image, or goes on with it. Cancelled, it stays as far as it is,
// which harms nobody.
func (k flattenKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetRbdFlatten()
	if spec.GetImage().GetName() == "" || spec.GetClonedBy() == "" {
		return failure(codeInternal, "the task %s names no image, or not who made it", t.GetId())
	}
	w := k.i.work(t, run)
	if isCancelled(run) {
		return w.end(ctx, errCancelled)
	}
	w.pass(pointFlattenBefore)
	wanted, stop := untilCancelled(ctx, run)
	defer stop()
	err := w.insist(wanted, "flattening", func(ctx context.Context) error {
		return w.cfg.Ceph.Flatten(ctx, spec.GetImage(), spec.GetClonedBy(), func(done, total uint64) {
			w.step(done, total, "flattening")
			w.pass(pointFlattening)
		})
	})
	if err == nil {
		w.pass(pointFlattened)
		return &agentv1.TaskOutcome{}
	}
	if isCancelled(run) {
		err = errCancelled
	}
	return w.end(ctx, err)
}

// Observe tells whether the image has a parent still.
func (k flattenKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	image := t.GetSpec().GetRbdFlatten().GetImage()
	found, err := k.i.look(ctx, k.i.work(t, run), image)
	if err == nil && found.GetParent() != nil {
		return broken("the agent's journal was lost before %s was flattened", rbd.Shown(image))
	}
	return observed(ctx, err)
}
