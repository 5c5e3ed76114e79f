//go:build ceph_preview

package rbd

import (
	"context"

	"github.com/ceph/go-ceph/rbd"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// snapshots describes those of an image that somebody has taken: not those that
// Ceph keeps for clones' sake only, nor those of mirroring.
func (d *describer) snapshots(ctx context.Context, i *image, m marks) ([]*agentv1.RbdSnapshot, error) {
	if err := d.request.step(ctx, "asking for the snapshots of %s", Shown(i.is)); err != nil {
		return nil, err
	}
	list, err := i.GetSnapshotNames()
	if err != nil {
		return nil, translate(err, false, "asking for the snapshots of %s", Shown(i.is))
	}
	var out []*agentv1.RbdSnapshot
	for _, info := range list {
		s, err := d.snapshot(ctx, i, info, m)
		if errno(err) == notFound {
			continue // removed just now
		}
		if err != nil {
			return nil, translate(err, false, "asking for the snapshots of %s", Shown(i.is))
		}
		if s != nil {
			out = append(out, s)
		}
	}
	return out, nil
}

// snapshot describes one; nil for Ceph's own.
func (d *describer) snapshot(ctx context.Context, i *image, info rbd.SnapInfo, m marks) (*agentv1.RbdSnapshot, error) {
	if err := d.request.step(ctx, "asking for %s@%s", Shown(i.is), info.Name); err != nil {
		return nil, err
	}
	kind, err := i.GetSnapNamespaceType(info.Id)
	if err != nil {
		return nil, err
	}
	said := &agentv1.RbdSnapshot{Snapshot: &agentv1.RbdSnapshotID{Image: i.is, Name: info.Name, Id: info.Id}, SizeBytes: info.Size}
	switch kind {
	case rbd.SnapNamespaceTypeUser:
		if said.Protected, err = i.GetSnapshot(info.Name).IsProtected(); err != nil {
			return nil, err
		}
	case rbd.SnapNamespaceTypeGroup:
		group, err := i.GetSnapGroupNamespace(info.Id)
		if err != nil {
			return nil, err
		}
		said.Group, said.GroupSnapshot, said.Snapshot.Name = group.GroupName, group.GroupSnapName, group.GroupSnapName
	default:
		return nil, nil
	}
	taken, err := i.GetSnapTimestamp(info.Id)
	if err != nil {
		return nil, err
	}
	said.Created = taken.Sec
	if mark := m.snapshots[said.GetSnapshot().GetName()]; mark.Group == said.GetGroup() {
		said.Operation, said.Label, said.Set, said.Template = mark.Operation, mark.Label, mark.Set, mark.Template
	}
	if !d.wanted.children {
		return said, nil
	}
	said.Children, err = d.clonesOf(ctx, i, info.Id)
	return said, err
}

// clonesOf are the clones of one snapshot.
func (d *describer) clonesOf(ctx context.Context, i *image, snapshot uint64) ([]*agentv1.RbdImageID, error) {
	if err := d.request.step(ctx, "choosing a snapshot of %s", Shown(i.is)); err != nil {
		return nil, err
	}
	if err := i.SetSnapByID(snapshot); err != nil {
		return nil, err
	}
	defer func() { _ = i.SetSnapshot(rbd.NoSnapshot) }()
	return children(ctx, d.request, i)
}
