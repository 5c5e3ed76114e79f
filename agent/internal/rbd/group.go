//go:build ceph_preview

package rbd

import (
	"context"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
	"golang.org/x/sys/unix"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// grouped is a snapshot of several images at one moment.
type grouped struct {
	cluster *cluster
	request *request
	want    *agentv1.RbdSnapshotCreate
	pool    *rados.IOContext // of the group
	images  []*image
}

// createGroup takes a snapshot of a group, which has exactly the images then.
func (c *cluster) createGroup(ctx context.Context, r *request, q *agentv1.RbdSnapshotCreate) ([]*agentv1.RbdSnapshotID, error) {
	g := &grouped{cluster: c, request: r, want: q}
	defer g.close()
	for _, id := range q.GetImages() {
		if id.GetNamespace() != q.GetImages()[0].GetNamespace() {
			return nil, errdefs.New(errdefs.FailedPrecondition, CodeInGroup, "%s and %s are in different namespaces, which no group has", Shown(q.GetImages()[0]), Shown(id))
		}
		i, err := c.open(ctx, r, id, true)
		if err != nil {
			return nil, err
		}
		g.images = append(g.images, i)
	}
	var err error
	if g.pool, err = c.pool(ctx, r, q.GetImages()[0].GetPool(), q.GetImages()[0].GetNamespace()); err != nil {
		return nil, err
	}
	state, err := g.state(ctx)
	if err != nil {
		return nil, err
	}
	if state == rbd.GroupSnapStateIncomplete {
		// It was cut off: it is of no one moment.
		if err := g.discard(ctx); err != nil {
			return nil, err
		}
		state = none
	}
	if state == none {
		if err := g.take(ctx); err != nil {
			return nil, err
		}
	}
	return g.made(ctx)
}

// none is the state of a group's snapshot that is not there.
const none = rbd.GroupSnapState(-1)

func (g *grouped) close() {
	for _, i := range g.images {
		i.close()
	}
	if g.pool != nil {
		g.pool.Destroy()
	}
}

// state tells how far the group's snapshot of that name is.
func (g *grouped) state(ctx context.Context) (rbd.GroupSnapState, error) {
	return g.cluster.groupSnapshot(ctx, g.request, g.pool, g.want.GetGroup(), g.want.GetName())
}

func (c *cluster) groupSnapshot(ctx context.Context, r *request, pool *rados.IOContext, group, name string) (rbd.GroupSnapState, error) {
	if err := r.step(ctx, "asking for the snapshots of group %s", group); err != nil {
		return none, err
	}
	list, err := rbd.GroupSnapList(pool, group)
	if err != nil && errno(err) != notFound {
		return none, translate(err, false, "asking for the snapshots of group %s", group)
	}
	for _, s := range list {
		if s.Name == name {
			return s.State, nil
		}
	}
	return none, nil
}

func (g *grouped) discard(ctx context.Context) error {
	if err := g.request.step(ctx, "removing the incomplete snapshot %s of group %s", g.want.GetName(), g.want.GetGroup()); err != nil {
		return err
	}
	if err := rbd.GroupSnapRemove(g.pool, g.want.GetGroup(), g.want.GetName()); err != nil && errno(err) != notFound {
		return translate(err, true, "removing the incomplete snapshot %s of group %s", g.want.GetName(), g.want.GetGroup())
	}
	return nil
}

// take fills the group and takes the snapshot, after every image has the mark.
func (g *grouped) take(ctx context.Context) error {
	r, q := g.request, g.want
	var parts []part
	for _, i := range g.images {
		if _, err := i.made(ctx, r, q, q.GetGroup()); err != nil {
			return err
		}
		parts = append(parts, part{i.is.GetPool(), i.is.GetNamespace(), i.is.GetId()})
	}
	if err := g.fill(ctx); err != nil {
		return err
	}
	r.pass(pointGroupFilled)
	for _, i := range g.images {
		mark := markOf(i, q, q.GetGroup())
		mark.Parts = parts
		if err := i.mark(ctx, r, snapshotKey+q.GetName(), mark); err != nil {
			return err
		}
	}
	// Each image's lock is had, one after the other, before the first is taken.
	if err := r.slowStep(ctx, changeWithin, "taking the snapshot %s of group %s", q.GetName(), q.GetGroup()); err != nil {
		return err
	}
	if err := rbd.GroupSnapCreate(g.pool, q.GetGroup(), q.GetName()); err != nil && errno(err) != -int(unix.EEXIST) {
		return translate(err, true, "taking the snapshot %s of group %s", q.GetName(), q.GetGroup())
	}
	r.pass(pointGroupTaken)
	return nil
}

// fill makes the group and gives it the images, and no others.
func (g *grouped) fill(ctx context.Context) error {
	r, group := g.request, g.want.GetGroup()
	if err := r.step(ctx, "making group %s", group); err != nil {
		return err
	}
	if err := rbd.GroupCreate(g.pool, group); err != nil && errno(err) != -int(unix.EEXIST) {
		return translate(err, true, "making group %s", group)
	}
	missing := map[*image]bool{}
	for _, i := range g.images {
		in, err := g.groupOf(ctx, i)
		if err != nil {
			return err
		}
		if strings.HasPrefix(in, ourGroups) && in != group {
			if err := g.release(ctx, i); err != nil {
				return err
			}
			in = ""
		}
		if in != "" && in != group {
			return errdefs.New(errdefs.FailedPrecondition, CodeInGroup, "%s is in group %s", Shown(i.is), in).With("image", Shown(i.is)).With("group", in)
		}
		missing[i] = in == ""
	}
	if err := g.expel(ctx); err != nil {
		return err
	}
	for _, i := range g.images {
		if !missing[i] {
			continue
		}
		if err := r.step(ctx, "adding %s to group %s", Shown(i.is), group); err != nil {
			return err
		}
		if err := rbd.GroupImageAdd(g.pool, group, i.pool, i.is.GetName()); err != nil && errno(err) != -int(unix.EEXIST) {
			return translate(err, true, "adding %s to group %s", Shown(i.is), group)
		}
	}
	return nil
}

// ourGroups begins the names of the groups that sets of ours are taken of.
const ourGroups = "debvisor-"

// release takes an image out of the group of ours that another set was taken of: it
// can be in one only. The snapshots of that set stay, and who takes them holds the
// images in use, so that nobody is in the midst of it.
func (g *grouped) release(ctx context.Context, i *image) error {
	in, err := i.GetGroup()
	if err != nil {
		return translate(err, false, "asking %s for its group", Shown(i.is))
	}
	name, err := g.cluster.conn.GetPoolByID(in.PoolID)
	if err != nil {
		return translate(err, false, "asking for the pool of group %s", in.Name)
	}
	pool, err := g.cluster.pool(ctx, g.request, name, i.is.GetNamespace())
	if err != nil {
		return err
	}
	defer pool.Destroy()
	if err := g.request.step(ctx, "taking %s out of group %s", Shown(i.is), in.Name); err != nil {
		return err
	}
	if err := rbd.GroupImageRemove(pool, in.Name, i.pool, i.is.GetName()); err != nil && errno(err) != notFound {
		return translate(err, true, "taking %s out of group %s", Shown(i.is), in.Name)
	}
	return nil
}

// groupOf is the group that an image is in; empty: in none.
func (g *grouped) groupOf(ctx context.Context, i *image) (string, error) {
	if err := g.request.step(ctx, "asking %s for its group", Shown(i.is)); err != nil {
		return "", err
	}
	in, err := i.GetGroup()
	if errno(err) == notFound {
		return "", nil
	}
	if err != nil {
		return "", translate(err, false, "asking %s for its group", Shown(i.is))
	}
	if in.Name != "" && in.PoolID != g.pool.GetPoolID() {
		return in.Name + " of another pool", nil
	}
	return in.Name, nil
}

// expel takes images out of the group that are not to be in it: a disk that the VM
// has no more. Snapshots of theirs stay.
func (g *grouped) expel(ctx context.Context) error {
	r, group := g.request, g.want.GetGroup()
	if err := r.step(ctx, "asking for the images of group %s", group); err != nil {
		return err
	}
	members, err := rbd.GroupImageList(g.pool, group)
	if err != nil {
		return translate(err, false, "asking for the images of group %s", group)
	}
	for _, m := range members {
		if g.wants(m) {
			continue
		}
		pool, err := g.cluster.conn.GetPoolByID(m.PoolID)
		if err != nil {
			return translate(err, false, "asking for the images of group %s", group)
		}
		other, err := g.cluster.pool(ctx, r, pool, g.want.GetImages()[0].GetNamespace())
		if err != nil {
			return err
		}
		if err = r.step(ctx, "taking %s/%s out of group %s", pool, m.Name, group); err == nil {
			if err = rbd.GroupImageRemove(g.pool, group, other, m.Name); err != nil && errno(err) != notFound {
				err = translate(err, true, "taking %s/%s out of group %s", pool, m.Name, group)
			} else {
				err = nil
			}
		}
		other.Destroy()
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *grouped) wants(m rbd.GroupImageInfo) bool {
	for _, i := range g.images {
		if i.is.GetName() == m.Name && i.pool.GetPoolID() == m.PoolID {
			return true
		}
	}
	return false
}

// made tells of each image's part.
func (g *grouped) made(ctx context.Context) ([]*agentv1.RbdSnapshotID, error) {
	var ids []*agentv1.RbdSnapshotID
	for _, i := range g.images {
		id, err := i.made(ctx, g.request, g.want, g.want.GetGroup())
		if err != nil {
			return nil, err
		}
		if id == nil {
			return nil, errdefs.New(errdefs.AlreadyExists, CodeSnapshotExists, "group %s has a snapshot %s of other images", g.want.GetGroup(), g.want.GetName()).
				With("image", Shown(i.is)).With("snapshot", g.want.GetName())
		}
		ids = append(ids, id)
	}
	return ids, nil
}
