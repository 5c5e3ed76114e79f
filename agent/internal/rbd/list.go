//go:build ceph_preview

package rbd

import (
	"context"
	"slices"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// listPart is how many images and snapshots are told at once, at least.
const listPart = 64

// lister tells of images in parts.
type lister struct {
	describer
	part agentv1.RbdListing
}

// list tells what there is of what was asked for.
func (c *cluster) list(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.ListRbd{})
	if err != nil {
		return nil, err
	}
	l := &lister{describer: describer{cluster: c, request: r, wanted: wanted{q.GetSnapshots(), q.GetWatchers(), q.GetChildren()}, depths: map[string]uint32{}}}
	for _, id := range q.GetImages() {
		switch {
		case id.GetPool() == "":
			err = l.all(ctx)
		case id.GetName() == "":
			err = l.space(ctx, id.GetPool(), id.GetNamespace())
		default:
			err = l.one(ctx, id)
		}
		if err != nil && !has(err, CodePoolNotFound) {
			return nil, err
		}
	}
	return &agentv1.RbdOutcome{}, l.flush(0)
}

// all lists every pool for RBD, with its namespaces.
func (l *lister) all(ctx context.Context) error {
	pools, err := l.cluster.pools(ctx, l.request)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if _, ours := p.Applications["rbd"]; !ours {
			continue
		}
		spaces, err := l.spaces(ctx, p.Name)
		if err != nil {
			return err
		}
		for _, space := range append([]string{""}, spaces...) {
			if err := l.space(ctx, p.Name, space); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) spaces(ctx context.Context, name string) ([]string, error) {
	pool, err := l.cluster.pool(ctx, l.request, name, "")
	if err != nil {
		return nil, err
	}
	defer pool.Destroy()
	if err := l.request.step(ctx, "listing the namespaces of pool %s", name); err != nil {
		return nil, err
	}
	spaces, err := rbd.NamespaceList(pool)
	if err != nil && errno(err) != notFound {
		return nil, translate(err, false, "listing the namespaces of pool %s", name)
	}
	return spaces, nil
}

// space lists the images of a pool's namespace.
func (l *lister) space(ctx context.Context, name, namespace string) error {
	pool, err := l.cluster.pool(ctx, l.request, name, namespace)
	if err != nil {
		return err
	}
	defer pool.Destroy()
	names, err := l.names(ctx, pool, name)
	if err != nil {
		return err
	}
	for _, image := range names {
		if err := l.one(ctx, &agentv1.RbdImageID{Pool: name, Namespace: namespace, Name: image}); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) names(ctx context.Context, pool *rados.IOContext, about string) ([]string, error) {
	if err := l.request.step(ctx, "listing the images of pool %s", about); err != nil {
		return nil, err
	}
	names, err := rbd.GetImageNames(pool)
	if err != nil && errno(err) != notFound {
		return nil, translate(err, false, "listing the images of pool %s", about)
	}
	slices.Sort(names)
	return names, nil
}

// one tells of one image, unless it is gone or another by now.
func (l *lister) one(ctx context.Context, id *agentv1.RbdImageID) error {
	i, err := l.cluster.open(ctx, l.request, id, false)
	if has(err, CodeImageNotFound, CodeImageReplaced) {
		return nil
	}
	if err != nil {
		return err
	}
	defer i.close()
	image, snapshots, err := l.describe(ctx, i)
	if err != nil {
		return err
	}
	l.part.Images = append(l.part.Images, image)
	l.part.Snapshots = append(l.part.Snapshots, snapshots...)
	return l.flush(listPart)
}

// flush tells what has come together, if it is so much.
func (l *lister) flush(least int) error {
	if n := len(l.part.GetImages()) + len(l.part.GetSnapshots()); n == 0 || n < least {
		return nil
	}
	err := l.request.part(&l.part)
	l.part.Reset()
	return err
}
