package api_test

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// fsid is of the Ceph cluster that tests' nodes see.
const fsid = "c0ffee00-0000-4000-8000-000000000001"

func rbdID(path string) *agentv1.RbdImageID {
	pool, rest, _ := strings.Cut(path, "/")
	namespace, name, in := strings.Cut(rest, "/")
	if !in {
		namespace, name = "", rest
	}
	return &agentv1.RbdImageID{Pool: pool, Namespace: namespace, Name: name}
}

func img(path string, node ...string) *debvisorv1.DatasetRef {
	ref := ds(path, node...)
	ref.Backend = debvisorv1.StorageBackend_BACKEND_RBD
	return ref
}

func imgSnap(path, name string) *debvisorv1.SnapshotRef {
	return &debvisorv1.SnapshotRef{Dataset: img(path), SnapshotName: name}
}

// image adds an image to the Ceph cluster, with snapshots of ours, each an hour
// younger than the one before.
func (z *zfsNodes) image(path string, change func(*agentv1.RbdImage), snapshots ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	id := rbdID(path)
	id.Id = "id-" + path
	one := &agentv1.RbdImage{Image: id, SizeBytes: 1 << 30, Created: 1767225600, Features: []string{"exclusive-lock"}}
	if change != nil {
		change(one)
	}
	z.ceph.Images = append(z.ceph.Images, one)
	for _, name := range snapshots {
		z.txg++
		z.ceph.Snapshots = append(z.ceph.Snapshots, &agentv1.RbdSnapshot{
			Snapshot: &agentv1.RbdSnapshotID{Image: id, Name: name, Id: z.txg}, Created: 1767225600 + int64(z.txg)*3600, SizeBytes: 1 << 30,
			Operation: "op-of-" + name, Label: "label-" + name,
		})
	}
}

// changeImage changes a snapshot of an image.
func (z *zfsNodes) changeImage(full string, by func(*agentv1.RbdSnapshot)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, s := range z.ceph.GetSnapshots() {
		if cluster.RBDSnapshotPath(s.GetSnapshot()) == full {
			by(s)
		}
	}
}

// listImages answers in parts of one thing each, as agents do; z is locked.
func (z *zfsNodes) listImages(node string, q *agentv1.ListRbd, part func(*agentv1.Answer) error) error {
	if z.cephDown[node] {
		return errdefs.New(errdefs.Unavailable, "CEPH_DOWN", "Ceph does not answer")
	}
	meant := func(id *agentv1.RbdImageID) bool {
		for _, want := range q.GetImages() {
			switch {
			case want.GetPool() == "", want.GetName() == "" && want.GetPool() == id.GetPool() && want.GetNamespace() == id.GetNamespace():
				return true
			case cluster.RBDPath(want) == cluster.RBDPath(id) && (want.GetId() == "" || want.GetId() == id.GetId()):
				return true
			}
		}
		return false
	}
	send := func(l *agentv1.RbdListing) error {
		return part(&agentv1.Answer{Answer: &agentv1.Answer_RbdListing{RbdListing: l}, More: true})
	}
	for _, one := range z.ceph.GetImages() {
		if meant(one.GetImage()) {
			if err := send(&agentv1.RbdListing{Images: []*agentv1.RbdImage{proto.CloneOf(one)}}); err != nil {
				return err
			}
		}
	}
	for _, one := range z.ceph.GetSnapshots() {
		if q.GetSnapshots() && meant(one.GetSnapshot().GetImage()) {
			if err := send(&agentv1.RbdListing{Snapshots: []*agentv1.RbdSnapshot{proto.CloneOf(one)}}); err != nil {
				return err
			}
		}
	}
	return part(&agentv1.Answer{Answer: &agentv1.Answer_RbdListing{RbdListing: &agentv1.RbdListing{}}})
}

// reportCeph records that nodes see the Ceph cluster, with the pools of all images
// and those that are named.
func (r *replica) reportCeph(of string, pools []string, nodes ...string) {
	r.t.Helper()
	inventory := &agentv1.CephInventory{Fsid: of, Health: "HEALTH_OK", Version: "16.2.15", Entity: "client.debvisor"}
	for _, pool := range pools {
		inventory.Pools = append(inventory.Pools, &agentv1.CephPool{Name: pool, UsedBytes: 40 << 30, FreeBytes: 60 << 30, Rbd: true})
	}
	for _, node := range nodes {
		r.put(store.PutProto(store.NodeCephKey(node), &storev1.NodeCeph{Node: node, Inventory: encode(r.t, inventory), ReportedAt: timestamppb.Now()}))
	}
}
