//go:build ceph_preview

package rbd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/ceph/go-ceph/rados"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// lookAgain is between two looks at who is still there.
const lookAgain = 200 * time.Millisecond

// fencing is what is known of who was at the images.
type fencing struct {
	cluster *cluster
	request *request
	expire  time.Duration
	// images as they were found, with all who were seen at any time.
	images []*agentv1.FencedImage
	// listed are on the blocklist because of us, in order.
	listed []string
	pools  []string
}

// fence blocklists whoever has the images open or locked, until nobody else does.
func (c *cluster) fence(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdFence{})
	if err != nil {
		return nil, err
	}
	if err := c.sameCluster(q.GetFsid()); err != nil {
		return nil, err
	}
	f := &fencing{cluster: c, request: r, expire: time.Duration(q.GetExpireSeconds()) * time.Second}
	for _, id := range q.GetImages() {
		f.images = append(f.images, &agentv1.FencedImage{Image: id})
	}
	for {
		others, err := f.round(ctx)
		if err != nil {
			return nil, err
		}
		if !others {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
	if err := f.prolong(ctx); err != nil {
		return nil, err
	}
	epoch, err := f.known(ctx)
	if err != nil {
		return nil, err
	}
	return &agentv1.RbdOutcome{Evidence: &agentv1.FenceEvidence{
		Fsid: c.fsid, Images: f.images, Blocklisted: f.listed, OsdEpoch: epoch, AtMs: time.Now().UnixMilli(),
	}}, nil
}

func (c *cluster) sameCluster(fsid string) error {
	if fsid == c.fsid {
		return nil
	}
	return errdefs.New(errdefs.FailedPrecondition, CodeOtherCluster, "this host's Ceph cluster is %s, not %s", c.fsid, fsid).With("fsid", c.fsid)
}

// round blocklists who is seen and not blocklisted yet, and tells whether anybody
// had to be, or still has an image open.
func (f *fencing) round(ctx context.Context) (others bool, err error) {
	for _, fenced := range f.images {
		said, err := f.look(ctx, fenced)
		if err != nil {
			return false, err
		}
		for _, w := range said.GetWatchers() {
			if f.ours(w) {
				continue
			}
			others = true // also one who is blocklisted: Ceph has not let go of it yet
			fenced.Watchers = noted(fenced.GetWatchers(), w)
		}
		for _, l := range said.GetLockers() {
			if f.ours(l) {
				continue
			}
			others = others || !slices.Contains(f.listed, l.GetAddress())
			fenced.Lockers = noted(fenced.GetLockers(), l)
		}
		for _, client := range slices.Concat(fenced.GetWatchers(), fenced.GetLockers()) {
			if err := f.block(ctx, client.GetAddress()); err != nil {
				return false, err
			}
		}
	}
	return others, nil
}

// look describes an image as it is now, and keeps its id: no later look is at
// another one of its name.
func (f *fencing) look(ctx context.Context, fenced *agentv1.FencedImage) (*agentv1.RbdImage, error) {
	i, err := f.cluster.open(ctx, f.request, fenced.GetImage(), false)
	if err != nil {
		return nil, err
	}
	defer i.close()
	fenced.Image = i.is
	d := &describer{cluster: f.cluster, request: f.request, wanted: wanted{watchers: true}, depths: map[string]uint32{}}
	said, _, err := d.describe(ctx, i)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(said.GetFeatures(), "exclusive-lock") {
		return nil, errdefs.New(errdefs.FailedPrecondition, CodeNoExclusiveLock, "%s has no exclusive-lock: several may write to it at once", Shown(i.is)).With("image", Shown(i.is))
	}
	f.addPool(i.is.GetPool())
	data, err := i.GetDataPoolID()
	if err != nil {
		return nil, translate(err, false, "asking %s for its data pool", Shown(i.is))
	}
	name, err := f.cluster.conn.GetPoolByID(data)
	if err != nil {
		return nil, translate(err, false, "asking for the name of pool %d", data)
	}
	f.addPool(name)
	return said, nil
}

func (f *fencing) addPool(name string) {
	if !slices.Contains(f.pools, name) {
		f.pools = append(f.pools, name)
	}
}

// ours is this process itself.
func (f *fencing) ours(client *agentv1.CephClient) bool {
	return client.GetNumber() == f.cluster.number
}

func noted(list []*agentv1.CephClient, client *agentv1.CephClient) []*agentv1.CephClient {
	if slices.ContainsFunc(list, func(c *agentv1.CephClient) bool { return proto.Equal(c, client) }) {
		return list
	}
	return append(list, client)
}

func (f *fencing) block(ctx context.Context, address string) error {
	if slices.Contains(f.listed, address) {
		return nil
	}
	if err := f.cluster.blocklist(ctx, f.request, address, f.expire); err != nil {
		return err
	}
	f.listed = append(f.listed, address)
	f.request.pass(pointFenced)
	return nil
}

// untilLayout is how the monitors write when an entry ends.
const untilLayout = "2006-01-02T15:04:05.000000-0700"

// prolong has entries anew that end long before they were asked to: one that was there
// before, such as librbd's for an hour when it breaks a lock, keeps its own end.
func (f *fencing) prolong(ctx context.Context) error {
	var dump struct{ Blocklist map[string]string }
	if len(f.listed) == 0 {
		return nil
	}
	if err := f.cluster.mon(ctx, f.request, map[string]any{"prefix": "osd dump"}, &dump); err != nil {
		return err
	}
	for _, address := range f.listed {
		text, on := dump.Blocklist[address]
		until, err := time.Parse(untilLayout, text)
		if !on || err == nil && time.Until(until) > f.expire/2 {
			continue
		}
		if err != nil {
			return errdefs.New(errdefs.FailedPrecondition, CodeCeph, "the end of entry %s of Ceph's blocklist cannot be read: %q", address, text).With("address", address)
		}
		if err := f.cluster.unlist(ctx, f.request, address); err != nil {
			return err
		}
		if err := f.cluster.blocklist(ctx, f.request, address, f.expire); err != nil {
			return err
		}
	}
	return nil
}

// known has every primary OSD of the pools answer to a client that has seen the
// entries on the map: an OSD then has them too, and has nothing of theirs left to do.
func (f *fencing) known(ctx context.Context) (epoch uint64, err error) {
	var dump struct {
		Epoch     uint64
		Blocklist map[string]string
	}
	if err := f.cluster.mon(ctx, f.request, map[string]any{"prefix": "osd dump"}, &dump); err != nil {
		return 0, err
	}
	for _, address := range f.listed {
		if _, on := dump.Blocklist[address]; !on {
			return 0, errdefs.New(errdefs.Aborted, CodeCeph, "%s is on Ceph's blocklist no more: somebody has taken it off", address).With("address", address)
		}
	}
	if err := f.request.step(ctx, "waiting for the OSD map"); err != nil {
		return 0, err
	}
	if err := f.cluster.conn.WaitForLatestOSDMap(); err != nil {
		return 0, translate(err, true, "waiting for the OSD map")
	}
	details, err := f.cluster.pools(ctx, f.request)
	if err != nil {
		return 0, err
	}
	for _, name := range f.pools {
		at := slices.IndexFunc(details, func(p poolDetail) bool { return p.Name == name })
		if at < 0 {
			return 0, errdefs.New(errdefs.NotFound, CodePoolNotFound, "Ceph has no pool %s", name).With("pool", name)
		}
		if err := f.everyPG(ctx, details[at]); err != nil {
			return 0, err
		}
	}
	return dump.Epoch, nil
}

// fewObjects a placement group is what is listed to the end rather than begun anew
// for each group: one listing goes on over groups until it has a thousand objects.
const fewObjects = 256

// everyPG has every placement group of a pool list objects: all of them where they
// are few, else some of each.
func (f *fencing) everyPG(ctx context.Context, p poolDetail) error {
	pool, err := f.cluster.pool(ctx, f.request, p.Name, rados.AllNamespaces)
	if err != nil {
		return err
	}
	defer pool.Destroy()
	if end, err := f.objects(ctx, pool, p, 0, fewObjects*max(p.PGs, fewObjects)); end || err != nil {
		return err
	}
	for pg := range p.PGs {
		if _, err := f.objects(ctx, pool, p, pg, 1); err != nil {
			return err
		}
	}
	return nil
}

// objects lists objects from a placement group on, and tells whether that was the
// last one of the pool.
func (f *fencing) objects(ctx context.Context, pool *rados.IOContext, p poolDetail, pg, most int) (end bool, err error) {
	const stride = 1024 // as many as an OSD gives at once
	objects, err := pool.Iter()
	if err != nil {
		return false, translate(err, true, "listing pool %s", p.Name)
	}
	defer objects.Close()
	objects.Seek(rados.IterToken(pg))
	for n := range most {
		if n%stride == 0 {
			if err := f.request.step(ctx, "asking every OSD of pool %s", p.Name); err != nil {
				return false, err
			}
		}
		if objects.Next() {
			continue
		}
		if err := objects.Err(); err != nil && errno(err) != notFound {
			return false, translate(err, true, "listing pool %s", p.Name)
		}
		return true, nil
	}
	return false, nil
}

// unfence takes addresses off the blocklist.
func (c *cluster) unfence(ctx context.Context, r *request) (proto.Message, error) {
	q, err := decoded(r.payload, &agentv1.RbdUnfence{})
	if err != nil {
		return nil, err
	}
	if err := c.sameCluster(q.GetFsid()); err != nil {
		return nil, err
	}
	for _, address := range q.GetEntries() {
		if err := c.unlist(ctx, r, address); err != nil {
			return nil, err
		}
	}
	return &agentv1.RbdOutcome{}, nil
}

// unlist takes an address off the blocklist; one that is not on it is none.
func (c *cluster) unlist(ctx context.Context, r *request, address string) error {
	err := c.mon(ctx, r, map[string]any{"prefix": "osd blocklist", "blocklistop": "rm", "addr": address}, nil)
	var refusal *errdefs.Error
	if has(err, CodeNoPermission) && errors.As(err, &refusal) {
		refusal.Message += `; the entity needs: ceph auth caps … mon 'profile rbd, allow command "osd blocklist"'`
	}
	return err
}

// blocklisted tells all entries.
func (c *cluster) blocklisted(ctx context.Context, r *request) (proto.Message, error) {
	var entries []struct{ Addr string }
	if err := c.mon(ctx, r, map[string]any{"prefix": "osd blocklist ls"}, &entries); err != nil {
		return nil, err
	}
	list := &agentv1.RbdUnfence{Fsid: c.fsid}
	for _, e := range entries {
		list.Entries = append(list.Entries, strings.TrimSpace(e.Addr))
	}
	return list, nil
}
