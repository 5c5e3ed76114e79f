//go:build ceph_preview

package rbd

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// progressEvery bounds how often it is told how far a flatten is.
const progressEvery = 250 * time.Millisecond

// lockWithin is longer than Ceph waits for a dead owner of an image's lock, such as
// a former child of ours.
const lockWithin = time.Minute

// flatten copies what a clone shares with its parents.
func (c *cluster) flatten(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdFlatten{})
	if err != nil {
		return nil, err
	}
	i, err := c.open(ctx, r, q.GetImage(), true)
	if err != nil {
		return nil, err
	}
	defer i.close()
	if err := i.clonedBy(ctx, r, q.GetClonedBy()); err != nil {
		return nil, err
	}
	if err := r.slowStep(ctx, lockWithin, "flattening %s", Shown(i.is)); err != nil {
		return nil, err
	}
	var told time.Time
	var last uint64
	err = i.FlattenWithProgress(func(done, total uint64, _ any) int {
		if ctx.Err() != nil {
			return -int(unix.ECANCELED)
		}
		if time.Since(told) < progressEvery && done < total {
			return 0
		}
		told, last = time.Now(), total
		// Each object copied is a step of its own: Ceph is there.
		if r.step(ctx, "flattening %s", Shown(i.is)) != nil || r.part(&agentv1.RbdProgress{Done: done, Total: total}) != nil {
			return -int(unix.ECANCELED)
		}
		return 0
	}, nil)
	if err != nil && errno(err) != -int(unix.EINVAL) { // it has no parent: there is nothing to copy
		return nil, translate(err, true, "flattening %s", Shown(i.is))
	}
	if _, still := i.GetParent(); errno(still) != notFound {
		return nil, translate(err, true, "flattening %s", Shown(i.is))
	}
	return &agentv1.RbdOutcome{Image: i.is}, r.part(&agentv1.RbdProgress{Done: last, Total: last})
}

// clonedBy refuses an image that the operation has not made.
func (i *image) clonedBy(ctx context.Context, r *request, operation string) error {
	m, err := i.marks(ctx, r)
	if err != nil {
		return err
	}
	if operation == "" || m.clone.Operation != operation {
		return errdefs.New(errdefs.FailedPrecondition, CodeForeignImage, "%s is no clone of operation %s: it is left alone", Shown(i.is), operation).With("image", Shown(i.is))
	}
	return nil
}
