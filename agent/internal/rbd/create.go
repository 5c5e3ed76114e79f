//go:build ceph_preview

package rbd

import (
	"context"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// create takes a snapshot. The mark comes first: whatever dies, a snapshot of ours
// is known as such.
func (c *cluster) create(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdSnapshotCreate{})
	if err != nil {
		return nil, err
	}
	if q.GetGroup() != "" {
		made, err := c.createGroup(ctx, r, q)
		return &agentv1.RbdOutcome{Made: made}, err
	}
	i, err := c.open(ctx, r, q.GetImages()[0], true)
	if err != nil {
		return nil, err
	}
	defer i.close()
	made, err := c.createOne(ctx, r, i, q)
	if err != nil {
		return nil, err
	}
	return &agentv1.RbdOutcome{Made: []*agentv1.RbdSnapshotID{made}}, nil
}

func (c *cluster) createOne(ctx context.Context, r *request, i *image, q *agentv1.RbdSnapshotCreate) (*agentv1.RbdSnapshotID, error) {
	taken, err := c.taken(ctx, r, i, q.GetName())
	if err != nil {
		return nil, err
	}
	if taken {
		id, err := i.made(ctx, r, q, "")
		if id != nil || err != nil {
			return id, err
		}
	}
	if err := c.remark(ctx, r, i.pool, i.is.GetId(), nil, snapshotKey+q.GetName(), markOf(i, q, "")); err != nil {
		return nil, err
	}
	r.pass(pointSnapshotMarked)
	if err := r.step(ctx, "taking the snapshot %s of %s", q.GetName(), Shown(i.is)); err != nil {
		return nil, err
	}
	// There is one by now: a former child's, that came late.
	if _, err := i.CreateSnapshot(q.GetName()); err != nil && errno(err) != -int(unix.EEXIST) {
		refusal := translate(err, true, "taking the snapshot %s of %s", q.GetName(), Shown(i.is))
		if !silent(refusal) {
			// Else a snapshot that somebody else gives that name would be taken for ours.
			_ = i.mark(ctx, r, snapshotKey+q.GetName(), nil)
		}
		return nil, refusal
	}
	r.pass(pointSnapshotTaken)
	number, err := c.newest(ctx, r, i, q.GetName())
	if err != nil {
		return nil, err
	}
	if number == 0 { // somebody has taken another one since
		if number, err = i.GetSnapID(q.GetName()); err != nil {
			return nil, translate(err, true, "asking for the snapshot %s of %s", q.GetName(), Shown(i.is))
		}
	}
	return &agentv1.RbdSnapshotID{Image: i.is, Name: q.GetName(), Id: number}, nil
}

// taken tells whether the image may have a snapshot of that name.
func (c *cluster) taken(ctx context.Context, r *request, i *image, name string) (bool, error) {
	if _, err := i.GetSnapID(name); err == nil {
		return true, nil
	} else if errno(err) != notFound {
		return false, translate(err, false, "asking for the snapshot %s of %s", name, Shown(i.is))
	}
	// One that is part of a group's is not known by its name.
	if err := r.step(ctx, "reading the metadata of %s", Shown(i.is)); err != nil {
		return false, err
	}
	key := metadataKey + snapshotKey + name
	values, err := i.pool.GetOmapValues(headerObject+i.is.GetId(), "", key, 1)
	if err != nil {
		return false, translate(err, false, "reading the metadata of %s", Shown(i.is))
	}
	return values[key] != nil, nil
}

func markOf(i *image, q *agentv1.RbdSnapshotCreate, group string) snapshotMark {
	return snapshotMark{Image: i.is.GetId(), Operation: q.GetOperation(), Label: q.GetLabel(), Set: q.GetSet(), Template: q.GetTemplate(), Group: group}
}

// made looks for the snapshot that the operation has taken; nil: there is none of
// that name yet.
func (i *image) made(ctx context.Context, r *request, q *agentv1.RbdSnapshotCreate, group string) (*agentv1.RbdSnapshotID, error) {
	m, err := i.marks(ctx, r)
	if err != nil {
		return nil, err
	}
	snapshots, err := (&describer{request: r}).snapshots(ctx, i, m)
	if err != nil {
		return nil, err
	}
	for _, s := range snapshots {
		if s.GetSnapshot().GetName() != q.GetName() {
			continue
		}
		if s.GetOperation() == q.GetOperation() && s.GetGroup() == group {
			return s.GetSnapshot(), nil
		}
		return nil, errdefs.New(errdefs.AlreadyExists, CodeSnapshotExists, "%s has a snapshot %s already, which is not this operation's", Shown(i.is), q.GetName()).
			With("image", Shown(i.is)).With("snapshot", q.GetName())
	}
	return nil, nil
}
