//go:build ceph_preview

package rbd

import (
	"context"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// leave notes that an image's part of a group's snapshot may go, and removes the
// whole of it when all parts may. s is nil where the part is gone, the rest perhaps
// not.
func (c *cluster) leave(ctx context.Context, r *request, i *image, name string, mark snapshotMark, s *agentv1.RbdSnapshot) (proto.Message, error) {
	if s != nil {
		name = s.GetSnapshot().GetName()
		if err := unkept(s); err != nil {
			return nil, err
		}
		mark.Image, mark.Group, mark.Leaving = i.is.GetId(), s.GetGroup(), true
		if err := i.mark(ctx, r, snapshotKey+name, mark); err != nil {
			return nil, err
		}
		r.pass(pointGroupLeaving)
	}
	stay, err := c.staying(ctx, r, i, name, mark)
	if err != nil || stay {
		return &agentv1.RbdOutcome{}, err
	}
	pool, err := c.groupPool(ctx, r, i, mark, s)
	if err != nil {
		return nil, err
	}
	defer pool.Destroy()
	state, err := c.groupSnapshot(ctx, r, pool, mark.Group, name)
	if err != nil {
		return nil, err
	}
	if state != none {
		if err := r.slowStep(ctx, changeWithin, "removing the snapshot %s of group %s", name, mark.Group); err != nil {
			return nil, err
		}
		if err := rbd.GroupSnapRemove(pool, mark.Group, name); err != nil && errno(err) != notFound {
			return nil, translate(err, true, "removing the snapshot %s of group %s", name, mark.Group)
		}
	}
	r.pass(pointGroupRemoved)
	for _, p := range mark.Parts {
		if err := c.unmark(ctx, r, p, name); err != nil {
			return nil, err
		}
	}
	return &agentv1.RbdOutcome{Removed: 1}, i.mark(ctx, r, snapshotKey+name, nil)
}

// staying tells whether another image's part is to stay.
func (c *cluster) staying(ctx context.Context, r *request, i *image, name string, mark snapshotMark) (bool, error) {
	for _, p := range mark.Parts {
		if p.ID == i.is.GetId() {
			continue
		}
		other, err := c.open(ctx, r, &agentv1.RbdImageID{Pool: p.Pool, Namespace: p.Namespace, Id: p.ID}, false)
		if has(err, CodeImageNotFound, CodePoolNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		m, err := other.marks(ctx, r)
		other.close()
		if err != nil {
			return false, err
		}
		if theirs, marked := m.snapshots[name]; marked && theirs.Group == mark.Group && !theirs.Leaving {
			return true, nil
		}
	}
	return false, nil
}

// unmark removes the mark of a part that is gone.
func (c *cluster) unmark(ctx context.Context, r *request, p part, name string) error {
	other, err := c.open(ctx, r, &agentv1.RbdImageID{Pool: p.Pool, Namespace: p.Namespace, Id: p.ID}, true)
	if has(err, CodeImageNotFound, CodePoolNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer other.close()
	return other.mark(ctx, r, snapshotKey+name, nil)
}

// groupPool is where the group is: where the snapshot says, else where the first of
// its images is.
func (c *cluster) groupPool(ctx context.Context, r *request, i *image, mark snapshotMark, s *agentv1.RbdSnapshot) (*rados.IOContext, error) {
	name := i.is.GetPool()
	if len(mark.Parts) > 0 {
		name = mark.Parts[0].Pool
	}
	if s != nil {
		group, err := i.GetSnapGroupNamespace(s.GetSnapshot().GetId())
		if err != nil {
			return nil, translate(err, false, "asking for the group of %s", ShownSnapshot(s.GetSnapshot()))
		}
		if name, err = c.conn.GetPoolByID(int64(group.Pool)); err != nil {
			return nil, translate(err, false, "asking for the pool of group %s", group.GroupName)
		}
	}
	return c.pool(ctx, r, name, i.is.GetNamespace())
}
