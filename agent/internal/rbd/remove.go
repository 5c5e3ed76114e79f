//go:build ceph_preview

package rbd

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// remove removes a snapshot.
func (c *cluster) remove(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdSnapshotRemove{})
	if err != nil {
		return nil, err
	}
	id := q.GetSnapshots()[0]
	gone := &agentv1.RbdOutcome{Removed: 1}
	i, err := c.open(ctx, r, id.GetImage(), true)
	if has(err, CodeImageNotFound, CodeImageReplaced) {
		return gone, nil
	}
	if err != nil {
		return nil, err
	}
	defer i.close()
	m, err := i.marks(ctx, r)
	if err != nil {
		return nil, err
	}
	d := &describer{cluster: c, request: r, wanted: wanted{children: true}}
	s, err := d.find(ctx, i, m, id)
	if err != nil {
		return nil, err
	}
	mark, marked := m.snapshots[id.GetName()]
	switch {
	case s.GetGroup() != "" || s == nil && mark.Leaving:
		return c.leave(ctx, r, i, id.GetName(), mark, s)
	case s == nil && !marked:
		return gone, nil
	case s != nil:
		if err := r.removeSnapshot(ctx, i, s); err != nil {
			return nil, err
		}
	}
	return gone, i.mark(ctx, r, snapshotKey+id.GetName(), nil)
}

// find looks for a snapshot; nil: it is gone.
func (d *describer) find(ctx context.Context, i *image, m marks, id *agentv1.RbdSnapshotID) (*agentv1.RbdSnapshot, error) {
	list, err := d.snapshots(ctx, i, m)
	if err != nil {
		return nil, err
	}
	var named *agentv1.RbdSnapshot
	for _, s := range list {
		if id.GetId() != 0 && s.GetSnapshot().GetId() == id.GetId() {
			return s, nil
		}
		if s.GetSnapshot().GetName() == id.GetName() {
			named = s
		}
	}
	if named != nil && id.GetId() != 0 {
		return nil, errdefs.New(errdefs.Aborted, CodeSnapshotReplaced, "%s is another snapshot by now: its id is %d, not %d", ShownSnapshot(id), named.GetSnapshot().GetId(), id.GetId()).
			With("snapshot", ShownSnapshot(id))
	}
	return named, nil
}

func (r *request) removeSnapshot(ctx context.Context, i *image, s *agentv1.RbdSnapshot) error {
	about := ShownSnapshot(s.GetSnapshot())
	if err := unkept(s); err != nil {
		return err
	}
	if err := r.step(ctx, "removing %s", about); err != nil {
		return err
	}
	if err := i.RemoveSnapByID(s.GetSnapshot().GetId()); err != nil && errno(err) != notFound {
		return translate(err, true, "removing %s", about)
	}
	r.pass(pointSnapshotRemoved)
	return nil
}

// unkept refuses where somebody keeps a snapshot.
func unkept(s *agentv1.RbdSnapshot) error {
	about := ShownSnapshot(s.GetSnapshot())
	if len(s.GetChildren()) > 0 {
		return errdefs.New(errdefs.FailedPrecondition, CodeSnapshotCloned, "%s is kept by its clones: %s", about, several(s.GetChildren())).
			With("snapshot", about).With("clones", several(s.GetChildren()))
	}
	if s.GetProtected() {
		return errdefs.New(errdefs.FailedPrecondition, CodeSnapshotProtected, "%s is protected: somebody wants it kept", about).With("snapshot", about)
	}
	return nil
}

// several names images, not all where there are many.
func several(ids []*agentv1.RbdImageID) string {
	const most = 10
	var names []string
	for _, id := range ids[:min(len(ids), most)] {
		names = append(names, Shown(id))
	}
	if len(ids) > most {
		names = append(names, "…")
	}
	return strings.Join(names, ", ")
}
