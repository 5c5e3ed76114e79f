//go:build ceph_preview

package rbd

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/ceph/go-ceph/rbd"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// maxChildren is how many clones are named.
	maxChildren = 1000
	// maxDepth ends the way up a chain that has no end.
	maxDepth = 64
	// headerObject, followed by an image's id, has the image's lock of this name.
	headerObject = "rbd_header."
	lockName     = "rbd_lock"
)

// wanted is what a description is to have.
type wanted struct {
	snapshots, watchers, children bool
}

// image describes one image.
func (c *cluster) image(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.ListRbd{})
	if err != nil {
		return nil, err
	}
	i, err := c.open(ctx, r, q.GetImages()[0], false)
	if err != nil {
		return nil, err
	}
	defer i.close()
	d := &describer{cluster: c, request: r, wanted: wanted{q.GetSnapshots(), q.GetWatchers(), q.GetChildren()}, depths: map[string]uint32{}}
	said, snapshots, err := d.describe(ctx, i)
	if err != nil {
		return nil, err
	}
	return &agentv1.RbdListing{Images: []*agentv1.RbdImage{said}, Snapshots: snapshots}, nil
}

// describer describes images for one request.
type describer struct {
	cluster *cluster
	request *request
	wanted  wanted
	// depths of images, by pool, namespace and id: they share parents.
	depths map[string]uint32
}

func (d *describer) describe(ctx context.Context, i *image) (*agentv1.RbdImage, []*agentv1.RbdSnapshot, error) {
	r := d.request
	said := &agentv1.RbdImage{Image: i.is}
	if err := d.basics(ctx, i, said); err != nil {
		return nil, nil, err
	}
	m, err := i.marks(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	said.Operation = m.clone.Operation
	if d.wanted.watchers {
		if err := d.clients(ctx, i, said); err != nil {
			return nil, nil, err
		}
	}
	if d.wanted.children {
		if said.Children, err = children(ctx, r, i); err != nil {
			return nil, nil, err
		}
	}
	if !d.wanted.snapshots {
		return said, nil, nil
	}
	snapshots, err := d.snapshots(ctx, i, m)
	return said, snapshots, err
}

// basics are what opening the image has told, but for its parents.
func (d *describer) basics(ctx context.Context, i *image, said *agentv1.RbdImage) error {
	about := Shown(i.is)
	if err := d.request.step(ctx, "asking %s what it is", about); err != nil {
		return err
	}
	var err error
	if said.SizeBytes, err = i.GetSize(); err != nil {
		return translate(err, false, "asking %s for its size", about)
	}
	features, err := i.GetFeatures()
	if err != nil {
		return translate(err, false, "asking %s for its features", about)
	}
	set := rbd.FeatureSet(features)
	said.Features = set.Names()
	slices.Sort(said.Features)
	created, err := i.GetCreateTimestamp()
	if err != nil {
		return translate(err, false, "asking %s when it was made", about)
	}
	said.Created = created.Sec
	parent, err := i.GetParent()
	if errno(err) == notFound {
		return nil
	}
	if err != nil {
		return translate(err, false, "asking %s for its parent", about)
	}
	said.Parent = &agentv1.RbdSnapshotID{
		Image: &agentv1.RbdImageID{Pool: parent.Image.PoolName, Namespace: parent.Image.PoolNamespace, Name: parent.Image.ImageName, Id: parent.Image.ImageID},
		Name:  parent.Snap.SnapName, Id: parent.Snap.ID,
	}
	said.ParentInTrash, said.Depth, err = d.above(ctx, i, said.Parent)
	return err
}

// above looks at the image that parent is a snapshot of: whether the snapshot has
// been removed, and how many parents there are, with itself.
func (d *describer) above(ctx context.Context, i *image, parent *agentv1.RbdSnapshotID) (removed bool, depth uint32, err error) {
	above, err := d.cluster.open(ctx, d.request, &agentv1.RbdImageID{Pool: parent.GetImage().GetPool(), Namespace: parent.GetImage().GetNamespace(), Id: parent.GetImage().GetId()}, false)
	if has(err, CodeImageNotFound) {
		return true, 1, nil // it was flattened, and its parent removed, just now
	}
	if err != nil {
		return false, 0, err
	}
	defer above.close()
	if err := d.request.step(ctx, "asking the parent of %s for its snapshot", Shown(i.is)); err != nil {
		return false, 0, err
	}
	kind, err := above.GetSnapNamespaceType(parent.GetId())
	if err != nil && errno(err) != notFound {
		return false, 0, translate(err, false, "asking the parent of %s for its snapshot", Shown(i.is))
	}
	removed = err != nil || kind != rbd.SnapNamespaceTypeUser
	if removed && err == nil {
		if name, err := above.GetSnapTrashNamespace(parent.GetId()); err == nil {
			parent.Name = name
		}
	}
	depth, err = d.depth(ctx, above, 0)
	return removed, depth + 1, err
}

// depth is how many parents stand above an image.
func (d *describer) depth(ctx context.Context, i *image, up int) (uint32, error) {
	key := i.is.GetPool() + "/" + i.is.GetNamespace() + "/" + i.is.GetId()
	if known, ok := d.depths[key]; ok {
		return known, nil
	}
	if err := d.request.step(ctx, "asking %s for its parent", Shown(i.is)); err != nil {
		return 0, err
	}
	parent, err := i.GetParent()
	if errno(err) == notFound || up == maxDepth {
		d.depths[key] = 0
		return 0, nil
	}
	if err != nil {
		return 0, translate(err, false, "asking %s for its parent", Shown(i.is))
	}
	above, err := d.cluster.open(ctx, d.request, &agentv1.RbdImageID{Pool: parent.Image.PoolName, Namespace: parent.Image.PoolNamespace, Id: parent.Image.ImageID}, false)
	if err != nil {
		return 0, err
	}
	defer above.close()
	more, err := d.depth(ctx, above, up+1)
	if err != nil {
		return 0, err
	}
	d.depths[key] = more + 1
	return more + 1, nil
}

// clients are who has the image open and who holds its lock.
func (d *describer) clients(ctx context.Context, i *image, said *agentv1.RbdImage) error {
	if err := d.request.step(ctx, "asking who has %s open", Shown(i.is)); err != nil {
		return err
	}
	watchers, err := i.ListWatchers()
	if err != nil {
		return translate(err, false, "asking who has %s open", Shown(i.is))
	}
	for _, w := range watchers {
		said.Watchers = append(said.Watchers, &agentv1.CephClient{Address: plainAddress(w.Addr), Number: w.Id, Cookie: strconv.FormatUint(w.Cookie, 10)})
	}
	if err := d.request.step(ctx, "asking who holds the lock of %s", Shown(i.is)); err != nil {
		return err
	}
	// librbd's own list is empty where it could not be read.
	locks, err := i.pool.ListLockers(headerObject+i.is.GetId(), lockName)
	if errno(err) == notFound {
		return nil
	}
	if err != nil {
		return translate(err, false, "asking who holds the lock of %s", Shown(i.is))
	}
	for n := range locks.NumLockers {
		number, _ := strconv.ParseInt(strings.TrimPrefix(locks.Clients[n], "client."), 10, 64)
		said.Lockers = append(said.Lockers, &agentv1.CephClient{Address: plainAddress(locks.Addrs[n]), Number: number, Cookie: locks.Cookies[n]})
	}
	return nil
}

// children are the clones of the snapshot that the image is set to, of all of them
// where it is set to none.
func children(ctx context.Context, r *request, i *image) ([]*agentv1.RbdImageID, error) {
	if err := r.step(ctx, "asking for the clones of %s", Shown(i.is)); err != nil {
		return nil, err
	}
	list, err := i.ListChildrenAttributes()
	if err != nil {
		return nil, translate(err, false, "asking for the clones of %s", Shown(i.is))
	}
	var ids []*agentv1.RbdImageID
	for _, child := range list[:min(len(list), maxChildren)] {
		ids = append(ids, &agentv1.RbdImageID{Pool: child.PoolName, Namespace: child.PoolNamespace, Name: child.ImageName, Id: child.ImageID})
	}
	return ids, nil
}
