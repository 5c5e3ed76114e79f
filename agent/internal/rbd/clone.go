//go:build ceph_preview

package rbd

import (
	"context"
	"slices"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// cloning is one clone. It grows under a name that only its operation uses; once it
// is complete it is marked so, and then has its own name. Whatever dies in between,
// what is found says how far it came: without a mark it is made anew.
type cloning struct {
	cluster *cluster
	request *request
	want    *agentv1.RbdClone
	pool    *rados.IOContext // of the clone
	growing *agentv1.RbdImageID
}

func (c *cluster) clone(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdClone{})
	if err != nil {
		return nil, err
	}
	pool, err := c.pool(ctx, r, q.GetImage().GetPool(), q.GetImage().GetNamespace())
	if err != nil {
		return nil, err
	}
	defer pool.Destroy()
	cl := &cloning{c, r, q, pool, Growing(q.GetImage(), q.GetOperation())}
	id, err := cl.begun(ctx)
	if err == nil && id == "" {
		err = cl.grow(ctx)
	}
	if err == nil && id == "" {
		id, err = cl.complete(ctx)
	}
	if err == nil {
		err = cl.rename(ctx, id)
	}
	if err != nil {
		if !silent(err) && !errdefs.Is(err, errdefs.Cancelled) {
			_ = cl.uproot(ctx) // a refusal is final: nothing stays
		}
		return nil, err
	}
	return cl.outcome(ctx, id)
}

// begun looks for the clone, complete but perhaps not renamed; "": there is none.
// What is there without being complete is taken away.
func (cl *cloning) begun(ctx context.Context) (id string, err error) {
	for _, name := range []string{cl.want.GetImage().GetName(), cl.growing.GetName()} {
		at := &agentv1.RbdImageID{Pool: cl.growing.GetPool(), Namespace: cl.growing.GetNamespace(), Name: name}
		id, ours, err := cl.look(ctx, at)
		switch {
		case err != nil:
			return "", err
		case ours:
			return id, nil
		case id != "" && name != cl.growing.GetName():
			return "", errdefs.New(errdefs.AlreadyExists, CodeImageExists, "there is an image %s already, which is not this operation's", Shown(at)).With("image", Shown(at))
		}
	}
	return "", cl.uproot(ctx)
}

// look tells the id of what has a name, and whether it is the operation's, complete.
func (cl *cloning) look(ctx context.Context, at *agentv1.RbdImageID) (id string, ours bool, err error) {
	i, err := cl.cluster.open(ctx, cl.request, at, false)
	if has(err, CodeImageNotFound) {
		return "", false, nil
	}
	if err != nil {
		if at.GetName() == cl.growing.GetName() && !silent(err) {
			return "", false, nil // so little of it is there that it cannot be opened
		}
		return "", false, err
	}
	defer i.close()
	m, err := i.marks(ctx, cl.request)
	return i.is.GetId(), m.clone.Operation == cl.want.GetOperation(), err
}

// uproot takes away what has grown.
func (cl *cloning) uproot(ctx context.Context) error {
	at, err := cl.cluster.directory(ctx, cl.request, cl.pool, cl.growing)
	if err != nil {
		return err
	}
	if at.dir == "" && at.object == "" {
		half, err := cl.cluster.halfRemoved(ctx, cl.request, cl.pool, cl.growing)
		if err != nil || !half {
			return err
		}
	}
	if err := cl.request.slowStep(ctx, deleteWithin, "removing %s, which is incomplete", Shown(cl.growing)); err != nil {
		return err
	}
	if err := rbd.RemoveImage(cl.pool, cl.growing.GetName()); err != nil && errno(err) != notFound {
		return translate(err, true, "removing %s, which is incomplete", Shown(cl.growing))
	}
	return nil
}

// carried are the features that a clone has where its parent has them.
const carried = rbd.FeatureLayering | rbd.FeatureStripingV2 | rbd.FeatureObjectMap | rbd.FeatureFastDiff | rbd.FeatureDeepFlatten

// grow makes the clone, under the name that it has until it is complete.
func (cl *cloning) grow(ctx context.Context) error {
	r := cl.request
	parent, err := cl.cluster.open(ctx, r, cl.want.GetTemplate().GetImage(), false)
	if err != nil {
		return err
	}
	defer parent.close()
	d := &describer{cluster: cl.cluster, request: r, depths: map[string]uint32{}}
	if err := cl.template(ctx, d, parent); err != nil {
		return err
	}
	depth, err := d.depth(ctx, parent, 0)
	if err != nil {
		return err
	}
	if most := cl.want.GetMaxDepth(); most > 0 && depth+1 > most {
		return errdefs.New(errdefs.FailedPrecondition, CodeCloneTooDeep, "%d parents would stand above the clone; at most %d may: flatten %s first", depth+1, most, Shown(parent.is)).
			With("image", Shown(parent.is))
	}
	features, err := parent.GetFeatures()
	if err != nil {
		return translate(err, false, "asking %s for its features", Shown(parent.is))
	}
	options := rbd.NewRbdImageOptions()
	defer options.Destroy()
	for option, value := range map[rbd.ImageOption]uint64{
		rbd.ImageOptionCloneFormat: 2,
		// Only one may write: failovers rest on it.
		rbd.ImageOptionFeatures: features&carried | rbd.FeatureLayering | rbd.FeatureExclusiveLock,
	} {
		if err := options.SetUint64(option, value); err != nil {
			return translate(err, false, "preparing a clone")
		}
	}
	if err := r.step(ctx, "cloning %s", ShownSnapshot(cl.want.GetTemplate())); err != nil {
		return err
	}
	if err := rbd.CloneFromImage(parent.Image, cl.want.GetTemplate().GetName(), cl.pool, cl.growing.GetName(), options); err != nil {
		return translate(err, true, "cloning %s to %s", ShownSnapshot(cl.want.GetTemplate()), Shown(cl.want.GetImage()))
	}
	r.pass(pointCloneGrown)
	return nil
}

// template checks that the snapshot is the one that was meant.
func (cl *cloning) template(ctx context.Context, d *describer, parent *image) error {
	id := cl.want.GetTemplate()
	s, err := d.find(ctx, parent, marks{}, id)
	switch {
	case err != nil:
		return err
	case s == nil:
		return errdefs.New(errdefs.NotFound, CodeSnapshotNotFound, "there is no snapshot %s", ShownSnapshot(id)).With("snapshot", ShownSnapshot(id))
	case s.GetGroup() != "":
		return errdefs.New(errdefs.FailedPrecondition, CodeNoTemplate, "%s is part of a group's snapshot, which Ceph does not clone", ShownSnapshot(id)).With("snapshot", ShownSnapshot(id))
	}
	// Ceph is given the name, which may be another's than the id's.
	cl.want.Template = &agentv1.RbdSnapshotID{Image: id.GetImage(), Name: s.GetSnapshot().GetName(), Id: s.GetSnapshot().GetId()}
	return nil
}

// complete marks what has grown as the operation's, after what Ceph copied of the
// template's marks is gone.
func (cl *cloning) complete(ctx context.Context) (string, error) {
	i, err := cl.cluster.open(ctx, cl.request, cl.growing, true)
	if err != nil {
		return "", err
	}
	defer i.close()
	if err := cl.request.step(ctx, "asking %s for its parent", Shown(i.is)); err != nil {
		return "", err
	}
	parent, err := i.GetParent()
	if err != nil {
		return "", translate(err, true, "asking %s for its parent", Shown(i.is))
	}
	if parent.Snap.ID != cl.want.GetTemplate().GetId() {
		return "", errdefs.New(errdefs.Aborted, CodeSnapshotReplaced, "%s was replaced while it was cloned", ShownSnapshot(cl.want.GetTemplate()))
	}
	m, err := i.marks(ctx, cl.request)
	if err != nil {
		return "", err
	}
	for _, key := range slices.Sorted(slices.Values(m.strange)) {
		if err := i.mark(ctx, cl.request, key, nil); err != nil {
			return "", err
		}
	}
	cl.request.pass(pointCloneCleaned)
	if err := i.mark(ctx, cl.request, cloneKey, cloneMark{Image: i.is.GetId(), Operation: cl.want.GetOperation()}); err != nil {
		return "", err
	}
	cl.request.pass(pointCloneMarked)
	return i.is.GetId(), nil
}

// rename gives the clone its name. Ceph takes three steps for it and does not go on
// where it died between them: what it has left is put right first.
func (cl *cloning) rename(ctx context.Context, id string) error {
	r, final := cl.request, cl.want.GetImage()
	was, err := cl.cluster.directory(ctx, r, cl.pool, cl.growing)
	if err != nil {
		return err
	}
	is, err := cl.cluster.directory(ctx, r, cl.pool, final)
	if err != nil {
		return err
	}
	if is.dir == id { // it is renamed, perhaps not quite
		if was.object == id {
			return cl.cluster.forget(ctx, r, cl.pool, cl.growing)
		}
		return nil
	}
	if is.object == id { // its new name came to be, and no more
		if err := cl.cluster.forget(ctx, r, cl.pool, final); err != nil {
			return err
		}
	}
	if err := r.step(ctx, "renaming %s to %s", Shown(cl.growing), final.GetName()); err != nil {
		return err
	}
	err = rbd.GetImage(cl.pool, cl.growing.GetName()).Rename(final.GetName())
	if errno(err) == -int(unix.EEXIST) {
		return errdefs.New(errdefs.AlreadyExists, CodeImageExists, "there is an image %s by now, which is not this operation's", Shown(final)).With("image", Shown(final))
	}
	if err != nil {
		return translate(err, true, "renaming %s to %s", Shown(cl.growing), final.GetName())
	}
	r.pass(pointCloneRenamed)
	return nil
}

func (cl *cloning) outcome(ctx context.Context, id string) (proto.Message, error) {
	i, err := cl.cluster.open(ctx, cl.request, &agentv1.RbdImageID{
		Pool: cl.want.GetImage().GetPool(), Namespace: cl.want.GetImage().GetNamespace(), Name: cl.want.GetImage().GetName(), Id: id,
	}, false)
	if err != nil {
		return nil, err
	}
	defer i.close()
	d := &describer{cluster: cl.cluster, request: cl.request, depths: map[string]uint32{}}
	depth, err := d.depth(ctx, i, 0)
	return &agentv1.RbdOutcome{Image: i.is, Depth: depth}, err
}
