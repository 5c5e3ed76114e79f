//go:build ceph_preview

package rbd

import (
	"context"
	"encoding/json"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// image is an open one.
type image struct {
	*rbd.Image
	pool *rados.IOContext
	// is has its id.
	is *agentv1.RbdImageID
}

// close gives all back. Closing may wait for Ceph, which the step before it bounds.
func (i *image) close() {
	_ = i.Close() // what it had to write has been asked for before
	i.pool.Destroy()
}

// open opens an image to look at (which nobody else sees), or to change it.
func (c *cluster) open(ctx context.Context, r *request, id *agentv1.RbdImageID, change bool) (*image, error) {
	pool, err := c.pool(ctx, r, id.GetPool(), id.GetNamespace())
	if err != nil {
		return nil, err
	}
	i, err := c.openIn(ctx, r, pool, id, change)
	if err != nil {
		pool.Destroy()
		return nil, err
	}
	return i, nil
}

func (c *cluster) openIn(ctx context.Context, r *request, pool *rados.IOContext, id *agentv1.RbdImageID, change bool) (*image, error) {
	if err := r.step(ctx, "opening %s", Shown(id)); err != nil {
		return nil, err
	}
	opening := rbd.OpenImageReadOnly
	if change {
		opening = rbd.OpenImage
	}
	var opened *rbd.Image
	var err error
	switch {
	case id.GetName() != "":
		opened, err = opening(pool, id.GetName(), rbd.NoSnapshot)
	case change:
		opened, err = rbd.OpenImageById(pool, id.GetId(), rbd.NoSnapshot)
	default:
		opened, err = rbd.OpenImageByIdReadOnly(pool, id.GetId(), rbd.NoSnapshot)
	}
	if errno(err) == notFound {
		return nil, errdefs.New(errdefs.NotFound, CodeImageNotFound, "there is no image %s", Shown(id)).With("image", Shown(id))
	}
	if err != nil {
		return nil, translate(err, false, "opening %s", Shown(id))
	}
	i := &image{opened, pool, &agentv1.RbdImageID{Pool: id.GetPool(), Namespace: id.GetNamespace(), Name: id.GetName()}}
	if i.is.Id, err = opened.GetId(); err != nil {
		_ = opened.Close()
		return nil, translate(err, false, "asking %s for its id", Shown(id))
	}
	if id.GetId() != "" && id.GetId() != i.is.GetId() {
		_ = opened.Close()
		return nil, errdefs.New(errdefs.Aborted, CodeImageReplaced, "%s is another image by now: its id is %s, not %s", Shown(id), i.is.GetId(), id.GetId()).
			With("image", Shown(id))
	}
	return i, nil
}

// marks reads what we have written of the image.
func (i *image) marks(ctx context.Context, r *request) (marks, error) {
	if err := r.step(ctx, "reading the metadata of %s", Shown(i.is)); err != nil {
		return marks{}, err
	}
	metadata, err := i.ListMetadata()
	if err != nil && errno(err) != notFound {
		return marks{}, translate(err, false, "reading the metadata of %s", Shown(i.is))
	}
	return readMarks(i.is.GetId(), metadata), nil
}

// mark writes metadata; a nil value removes it.
func (i *image) mark(ctx context.Context, r *request, key string, value any) error {
	if err := r.step(ctx, "writing the metadata of %s", Shown(i.is)); err != nil {
		return err
	}
	if value == nil {
		if err := i.RemoveMetadata(key); err != nil && errno(err) != notFound {
			return translate(err, true, "removing %s from the metadata of %s", key, Shown(i.is))
		}
		return nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := i.SetMetadata(key, string(text)); err != nil {
		return translate(err, true, "writing %s into the metadata of %s", key, Shown(i.is))
	}
	return nil
}
