//go:build ceph_preview

package rbd

import (
	"context"
	"fmt"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// removal takes away one clone, by way of the trash, where nobody finds it by its
// name any more and where what is left of it after a crash is found again.
type removal struct {
	cluster *cluster
	request *request
	want    *agentv1.RbdImageRemove
	pool    *rados.IOContext
}

func (c *cluster) removeImage(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdImageRemove{})
	if err != nil {
		return nil, err
	}
	pool, err := c.pool(ctx, r, q.GetImage().GetPool(), q.GetImage().GetNamespace())
	if err != nil {
		return nil, err
	}
	defer pool.Destroy()
	gone := &agentv1.RbdOutcome{Removed: 1}
	if q.GetClonedBy() != "" && q.GetImage().GetName() == growing(q.GetClonedBy()) {
		cl := &cloning{cluster: c, request: r, pool: pool, growing: q.GetImage()}
		return gone, cl.uproot(ctx)
	}
	rm := &removal{c, r, q, pool}
	id, err := rm.check(ctx)
	if err != nil {
		return nil, err
	}
	if id != "" {
		if err := rm.trash(ctx); err != nil {
			return nil, err
		}
		return gone, rm.finishOrRestore(ctx, id)
	}
	if id, err = rm.trashed(ctx); err != nil || id == "" {
		return gone, err
	}
	return gone, rm.finish(ctx, id)
}

// check looks whether the image is there and may go; "": it is not there.
func (rm *removal) check(ctx context.Context) (id string, err error) {
	i, err := rm.cluster.open(ctx, rm.request, rm.want.GetImage(), false)
	if has(err, CodeImageNotFound, CodeImageReplaced) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer i.close()
	if err := i.clonedBy(ctx, rm.request, rm.want.GetClonedBy()); err != nil {
		return "", err
	}
	d := &describer{cluster: rm.cluster, request: rm.request, wanted: wanted{snapshots: true, watchers: true, children: true}, depths: map[string]uint32{}}
	image, snapshots, err := d.describe(ctx, i)
	if err != nil {
		return "", err
	}
	about := Shown(i.is)
	if len(image.GetChildren()) > 0 {
		return "", errdefs.New(errdefs.FailedPrecondition, CodeHasClones, "%s is kept by its clones: %s", about, several(image.GetChildren())).
			With("image", about).With("clones", several(image.GetChildren()))
	}
	if len(snapshots) > 0 {
		var names []string
		for _, s := range snapshots[:min(len(snapshots), 10)] {
			names = append(names, s.GetSnapshot().GetName())
		}
		return "", errdefs.New(errdefs.FailedPrecondition, CodeHasSnapshots, "%s has %d snapshots: %s", about, len(snapshots), strings.Join(names, ", ")).With("image", about)
	}
	if len(image.GetWatchers()) > 0 {
		return "", errdefs.New(errdefs.FailedPrecondition, CodeInUse, "%s is open at %s", about, addresses(image.GetWatchers())).
			With("image", about).With("clients", addresses(image.GetWatchers()))
	}
	return image.GetImage().GetId(), nil
}

func addresses(clients []*agentv1.CephClient) string {
	var list []string
	for _, c := range clients[:min(len(clients), 10)] {
		list = append(list, c.GetAddress())
	}
	return strings.Join(list, ", ")
}

// trash moves the image there; a move that was cut off goes on.
func (rm *removal) trash(ctx context.Context) error {
	about := Shown(rm.want.GetImage())
	if err := rm.request.step(ctx, "moving %s to the trash", about); err != nil {
		return err
	}
	if err := rbd.GetImage(rm.pool, rm.want.GetImage().GetName()).Trash(0); err != nil {
		return translate(err, true, "moving %s to the trash", about)
	}
	rm.request.pass(pointImageTrashed)
	return nil
}

// trashed looks for the image in the trash, where an attempt before this one has
// left it; "": it is gone.
func (rm *removal) trashed(ctx context.Context) (id string, err error) {
	about := Shown(rm.want.GetImage())
	if err := rm.request.step(ctx, "looking for %s in the trash", about); err != nil {
		return "", err
	}
	list, err := rbd.GetTrashList(rm.pool)
	if err != nil && errno(err) != notFound {
		return "", translate(err, false, "looking for %s in the trash", about)
	}
	for _, t := range list {
		if t.Name != rm.want.GetImage().GetName() || rm.want.GetImage().GetId() != "" && t.Id != rm.want.GetImage().GetId() {
			continue
		}
		ours, err := rm.ours(ctx, t.Id)
		if err != nil {
			return "", err
		}
		if !ours {
			continue
		}
		at, err := rm.cluster.directory(ctx, rm.request, rm.pool, rm.want.GetImage())
		if err == nil && at.dir == t.Id {
			err = rm.trash(ctx)
		}
		return t.Id, err
	}
	return "", nil
}

// ours tells whether an image in the trash is the operation's. One that is half
// removed already may not say.
func (rm *removal) ours(ctx context.Context, id string) (bool, error) {
	at := &agentv1.RbdImageID{Pool: rm.want.GetImage().GetPool(), Namespace: rm.want.GetImage().GetNamespace(), Id: id}
	i, err := rm.cluster.open(ctx, rm.request, at, false)
	if has(err, CodeImageNotFound) {
		return rm.want.GetImage().GetId() == id, nil
	}
	if err != nil {
		return false, err
	}
	defer i.close()
	m, err := i.marks(ctx, rm.request)
	return m.clone.Operation == rm.want.GetClonedBy(), err
}

// finish removes the image from the trash, where it stays if Ceph refuses: nobody
// knows how much of it an attempt before this one has removed.
func (rm *removal) finish(ctx context.Context, id string) error {
	about := Shown(rm.want.GetImage())
	for moved := false; ; moved = true {
		if err := rm.request.slowStep(ctx, deleteWithin, "removing %s, which is in the trash", about); err != nil {
			return err
		}
		err := rbd.TrashRemove(rm.pool, id, false)
		switch {
		case err == nil || errno(err) == notFound:
			rm.request.pass(pointImageRemoved)
			return nil
		case errno(err) != -int(unix.EUCLEAN) || moved:
			return translate(err, true, "removing %s, which is in the trash", about)
		}
		// It was not moved to its end.
		if err := rm.trash(ctx); err != nil {
			return err
		}
	}
}

// finishOrRestore removes an image that this request has moved to the trash. Where
// Ceph refuses, the image is whole and has its name again.
func (rm *removal) finishOrRestore(ctx context.Context, id string) error {
	about := Shown(rm.want.GetImage())
	refusal := rm.finish(ctx, id)
	if refusal == nil || !has(refusal, CodeInUse) {
		return refusal
	}
	if err := rm.request.step(ctx, "taking %s out of the trash", about); err != nil {
		return err
	}
	if err := rbd.TrashRestore(rm.pool, id, rm.want.GetImage().GetName()); err != nil {
		return fmt.Errorf("%w, and it stays there: %w", refusal, translate(err, true, "taking %s out of the trash", about))
	}
	return refusal
}
