//go:build ceph_preview

package rbd

import (
	"context"
	"errors"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sync/errgroup"
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
	depth   uint32 // once it was made by this request
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
	cl := &cloning{cluster: c, request: r, want: q, pool: pool, growing: Growing(q.GetImage(), q.GetOperation())}
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
	final := cl.want.GetImage()
	var named, old, grown string
	var half bool
	// Looks that need not wait for each other.
	if err := cl.cluster.together(
		func() (err error) { named, err = cl.cluster.idOf(ctx, cl.request, cl.pool, final); return err },
		func() (err error) { old, err = cl.format1(ctx); return err },
		func() (err error) { grown, err = cl.cluster.idOf(ctx, cl.request, cl.pool, cl.growing); return err },
		func() (err error) {
			half, err = cl.cluster.halfRemoved(ctx, cl.request, cl.pool, cl.growing)
			return err
		},
	); err != nil {
		return "", err
	}
	for _, id := range []string{named, grown} {
		if id == "" {
			continue
		}
		m, err := cl.cluster.rawMarks(ctx, cl.request, cl.pool, id)
		if err != nil {
			return "", err
		}
		if m.clone.Operation == cl.want.GetOperation() {
			return id, nil
		}
	}
	if named != "" || old != "" {
		return "", cl.exists()
	}
	if grown != "" || half {
		return "", cl.uproot(ctx)
	}
	return "", nil
}

func (cl *cloning) exists() error {
	about := Shown(cl.want.GetImage())
	return errdefs.New(errdefs.AlreadyExists, CodeImageExists, "there is an image %s already, which is not this operation's", about).With("image", about)
}

// format1 looks for an image of the clone's name that is of Ceph's first format.
func (cl *cloning) format1(ctx context.Context) (string, error) {
	object := cl.want.GetImage().GetName() + ".rbd"
	if err := cl.request.step(ctx, "looking for %s", object); err != nil {
		return "", err
	}
	if _, err := cl.pool.Stat(object); errno(err) == notFound {
		return "", nil
	} else if err != nil {
		return "", translate(err, false, "looking for %s", object)
	}
	return object, nil
}

// together does all, at once as far as threads are left: each call holds one, for
// seconds while the cluster is dead. It gives the first error.
func (c *cluster) together(all ...func() error) error {
	var group errgroup.Group
	for _, f := range all {
		select {
		case c.threads <- struct{}{}:
			group.Go(func() error {
				defer func() { <-c.threads }()
				return f()
			})
		default:
			if err := f(); err != nil {
				return errors.Join(err, group.Wait())
			}
		}
	}
	return group.Wait()
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

// growTries is how often a clone is begun whose name a child that died had taken.
const growTries = 3

// grow makes the clone, under the name that it has until it is complete.
func (cl *cloning) grow(ctx context.Context) error {
	r := cl.request
	t, err := cl.template(ctx)
	if err != nil {
		return err
	}
	cl.depth = t.depth + 1
	options := rbd.NewRbdImageOptions()
	defer options.Destroy()
	for option, value := range map[rbd.ImageOption]uint64{
		rbd.ImageOptionCloneFormat: 2,
		// Only one may write: failovers rest on it.
		rbd.ImageOptionFeatures: t.features&carried | rbd.FeatureLayering | rbd.FeatureExclusiveLock,
	} {
		if err := options.SetUint64(option, value); err != nil {
			return translate(err, false, "preparing a clone")
		}
	}
	image := cl.want.GetTemplate().GetImage()
	parent, err := cl.cluster.pool(ctx, r, image.GetPool(), image.GetNamespace())
	if err != nil {
		return err
	}
	defer parent.Destroy()
	for tries := 1; ; tries++ {
		if err := r.step(ctx, "cloning %s", ShownSnapshot(cl.want.GetTemplate())); err != nil {
			return err
		}
		err := rbd.CloneImage(parent, image.GetName(), t.snapshot.GetName(), cl.pool, cl.growing.GetName(), options)
		if err == nil {
			break
		}
		if errno(err) == alreadyThere && tries < growTries {
			// Nobody else has that name: what a child that died had sent has come to Ceph
			// after we looked.
			if err := cl.uproot(ctx); err != nil {
				return err
			}
			continue
		}
		cl.cluster.templates.forget(image)
		return translate(err, true, "cloning %s to %s", ShownSnapshot(cl.want.GetTemplate()), Shown(cl.want.GetImage()))
	}
	r.pass(pointCloneGrown)
	return nil
}

// complete marks what has grown as the operation's, after what Ceph copied of the
// template's marks is gone. Nobody else has it open: nobody knows its name.
func (cl *cloning) complete(ctx context.Context) (string, error) {
	r := cl.request
	id, err := cl.cluster.idOf(ctx, r, cl.pool, cl.growing)
	if err != nil {
		return "", err
	}
	var parent parentSpec
	var m marks
	if err := cl.cluster.together(
		func() (err error) { parent, err = cl.cluster.parentOf(ctx, r, cl.pool, id); return err },
		func() (err error) { m, err = cl.cluster.rawMarks(ctx, r, cl.pool, id); return err },
	); err != nil {
		return "", err
	}
	if want := cl.want.GetTemplate(); parent.snapshot != want.GetId() || want.GetImage().GetId() != "" && parent.image != want.GetImage().GetId() {
		cl.cluster.templates.forget(want.GetImage())
		return "", errdefs.New(errdefs.Aborted, CodeSnapshotReplaced, "%s was replaced while it was cloned", ShownSnapshot(want)).With("snapshot", ShownSnapshot(want))
	}
	r.pass(pointCloneCleaned)
	if err := cl.cluster.remark(ctx, r, cl.pool, id, m.strange, cloneKey, cloneMark{Image: id, Operation: cl.want.GetOperation()}); err != nil {
		return "", err
	}
	r.pass(pointCloneMarked)
	return id, nil
}

// rename gives the clone its name, in Ceph's own three steps, each of which may have
// been done before: librbd's does not go on where it died between them.
func (cl *cloning) rename(ctx context.Context, id string) error {
	r, final := cl.request, cl.want.GetImage()
	created, err := cl.cluster.takeName(ctx, r, cl.pool, final, id)
	if err != nil {
		return err
	}
	if !created {
		held, err := cl.cluster.idOf(ctx, r, cl.pool, final)
		if err != nil {
			return err
		}
		if held != id {
			return cl.exists()
		}
	}
	r.pass(pointCloneNamed)
	if err := cl.cluster.moveName(ctx, r, cl.pool, cl.growing, final, id); err != nil {
		at, lookErr := cl.cluster.directory(ctx, r, cl.pool, final)
		switch {
		case silent(err) || lookErr != nil:
			return err
		case at.dir == id: // it was moved before
		case at.dir == "":
			return err
		default:
			_ = cl.cluster.forget(ctx, r, cl.pool, final) // it leads to ours, beside another's entry
			return cl.exists()
		}
	}
	r.pass(pointCloneRenamed)
	return cl.cluster.forget(ctx, r, cl.pool, cl.growing)
}

func (cl *cloning) outcome(ctx context.Context, id string) (proto.Message, error) {
	final := cl.want.GetImage()
	is := &agentv1.RbdImageID{Pool: final.GetPool(), Namespace: final.GetNamespace(), Name: final.GetName(), Id: id}
	if cl.depth > 0 {
		return &agentv1.RbdOutcome{Image: is, Depth: cl.depth}, nil
	}
	i, err := cl.cluster.open(ctx, cl.request, is, false)
	if err != nil {
		return nil, err
	}
	defer i.close()
	d := &describer{cluster: cl.cluster, request: cl.request, depths: map[string]uint32{}}
	depth, err := d.depth(ctx, i, 0)
	return &agentv1.RbdOutcome{Image: i.is, Depth: depth}, err
}
