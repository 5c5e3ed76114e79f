package rbd

import (
	"context"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// GroupSpec is one snapshot of several images, all of one moment.
type GroupSpec struct {
	// Group is made in the first image's pool and namespace if need be, and has
	// these images then, and no others.
	Group  string
	Images []*agentv1.RbdImageID
	Name   string
	// Operation is who takes it: the same one gets the same snapshots.
	Operation  string
	Label, Set string
}

// CreateGroupSnapshot takes a snapshot of all images at one moment, or finds those
// that the operation has taken; in the order of the images. IMAGE_IN_GROUP where an
// image is in another group, SNAPSHOT_EXISTS where one has such a snapshot already.
// What is part of a group's snapshot cannot be cloned.
func (c *Client) CreateGroupSnapshot(ctx context.Context, s GroupSpec) ([]*agentv1.RbdSnapshotID, error) {
	if s.Group == "" || len(s.Images) == 0 {
		return nil, errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "a group's snapshot needs a group and images")
	}
	for _, image := range s.Images {
		if err := named("images", image); err != nil {
			return nil, err
		}
	}
	return c.create(ctx, &agentv1.RbdSnapshotCreate{
		Images: s.Images, Name: s.Name, Operation: s.Operation, Label: s.Label, Set: s.Set, Group: s.Group,
	})
}

// RemoveSnapshot removes a snapshot; gone: it is not there any more, now or since
// before. SNAPSHOT_CLONED and SNAPSHOT_PROTECTED say who keeps it.
//
// A part of a group's snapshot cannot go alone: it is noted that it may go, gone is
// false without an error, and the last part's turn removes them all.
func (c *Client) RemoveSnapshot(ctx context.Context, id *agentv1.RbdSnapshotID) (gone bool, err error) {
	if err := named("snapshot", id.GetImage()); err != nil {
		return false, err
	}
	outcome, err := asked(ctx, c, call{verb: verbRemove, pools: poolsOf(id.GetImage()), changes: true, limit: changeWithin},
		&agentv1.RbdSnapshotRemove{Snapshots: []*agentv1.RbdSnapshotID{id}}, &agentv1.RbdOutcome{})
	return outcome.GetRemoved() > 0, err
}

// CloneSpec is a clone to make.
type CloneSpec struct {
	Template *agentv1.RbdSnapshotID
	// Image may be in another pool and namespace than the template.
	Image *agentv1.RbdImageID
	// Operation is who makes it: the same one gets the same image. Its letters are
	// part of the name that the clone has until it is complete.
	Operation string
	// MaxDepth is how many parents may stand above the clone; 0: any number.
	MaxDepth uint32
}

// Clone makes an image of a snapshot, or finds the one that the operation has made,
// and tells its id and how many parents stand above it. IMAGE_EXISTS where another
// has the name; CLONE_TOO_DEEP.
func (c *Client) Clone(ctx context.Context, s CloneSpec) (image *agentv1.RbdImageID, depth uint32, err error) {
	if err := named("template", s.Template.GetImage()); err != nil {
		return nil, 0, err
	}
	if err := named("image", s.Image); err != nil {
		return nil, 0, err
	}
	if s.Operation == "" {
		return nil, 0, errdefs.Field("operation", "", "the operation that makes the clone")
	}
	outcome, err := asked(ctx, c, call{verb: verbClone, pools: poolsOf(s.Template.GetImage(), s.Image), changes: true, limit: changeWithin},
		&agentv1.RbdClone{Template: s.Template, Image: s.Image, Operation: s.Operation, MaxDepth: s.MaxDepth}, &agentv1.RbdOutcome{})
	return outcome.GetImage(), outcome.GetDepth(), err
}

// Flatten copies into a clone what it shares with its parents; one that has none is
// done. The clone must be the operation clonedBy's, else FOREIGN_IMAGE. When ctx ends
// the copying does too; another call goes on where it ended. progress counts objects.
func (c *Client) Flatten(ctx context.Context, id *agentv1.RbdImageID, clonedBy string, progress func(done, total uint64)) error {
	if err := named("image", id); err != nil {
		return err
	}
	_, err := asked(ctx, c, call{verb: verbFlatten, pools: poolsOf(id), changes: true, mortal: true, part: func(payload []byte) error {
		p, err := decoded(payload, &agentv1.RbdProgress{})
		if err == nil {
			progress(p.GetDone(), p.GetTotal())
		}
		return err
	}}, &agentv1.RbdFlatten{Image: id, ClonedBy: clonedBy}, &agentv1.RbdOutcome{})
	return err
}

// RemoveImage removes a clone that the operation clonedBy made, else FOREIGN_IMAGE;
// gone: it is not there any more, now or since before. IMAGE_HAS_SNAPSHOTS,
// IMAGE_HAS_CLONES and IMAGE_IN_USE say what keeps it.
func (c *Client) RemoveImage(ctx context.Context, id *agentv1.RbdImageID, clonedBy string) (gone bool, err error) {
	if err := named("image", id); err != nil {
		return false, err
	}
	outcome, err := asked(ctx, c, call{verb: verbRemoveImage, pools: poolsOf(id), changes: true, limit: removeWithin},
		&agentv1.RbdImageRemove{Image: id, ClonedBy: clonedBy}, &agentv1.RbdOutcome{})
	return outcome.GetRemoved() > 0, err
}

// Fence makes sure that nobody who had images open can write to them any more:
// watchers and lock owners are blocklisted, for expire, until nobody is there who is
// not, and every primary OSD of the images' pools has then answered with a map that
// has them. NO_EXCLUSIVE_LOCK where the lock is not the images' own guard,
// OTHER_CEPH_CLUSTER where fsid is another's. After a CEPH_UNKNOWN some may be
// blocklisted already; the next call's evidence names those that are there still.
func (c *Client) Fence(ctx context.Context, images []*agentv1.RbdImageID, fsid string, expire time.Duration) (*agentv1.FenceEvidence, error) {
	for _, image := range images {
		if err := named("images", image); err != nil {
			return nil, err
		}
	}
	outcome, err := asked(ctx, c, call{verb: verbFence, pools: poolsOf(images...), changes: true, limit: changeWithin},
		&agentv1.RbdFence{Images: images, Fsid: fsid, ExpireSeconds: uint64(expire / time.Second)}, &agentv1.RbdOutcome{})
	return outcome.GetEvidence(), err
}

// Unfence takes addresses off the blocklist, as Fence's evidence has them.
func (c *Client) Unfence(ctx context.Context, fsid string, entries []string) error {
	_, err := asked(ctx, c, call{verb: verbUnfence, changes: true, limit: changeWithin}, &agentv1.RbdUnfence{Fsid: fsid, Entries: entries}, &agentv1.RbdOutcome{})
	return err
}

// Blocklist tells which addresses Ceph takes nothing from.
func (c *Client) Blocklist(ctx context.Context) ([]string, error) {
	list, err := asked(ctx, c, call{verb: verbBlocklist, limit: lookWithin}, nil, &agentv1.RbdUnfence{})
	return list.GetEntries(), err
}
