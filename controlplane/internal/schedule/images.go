package schedule

import (
	"bytes"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// locateImage finds the image that a policy names: which Ceph cluster it is in is
// decided each time.
func (i *inventories) locateImage(ref *debvisorv1.DatasetRef) subject {
	s := subject{dataset: "rbd:" + ref.GetPool() + "/" + ref.GetName()}
	node := ref.GetNode().GetNodeId().GetId()
	id, err := cluster.RBDImage("dataset", ref.GetPool(), ref.GetName())
	if err == nil {
		s.fsid, err = i.snapshot.CephWith("dataset", node, ref.GetPool())
	}
	if err != nil {
		s.why = err.Error()
		return s
	}
	s.image = id
	return s
}

// imageGroups are the images of one operation each; group.pool is their Ceph cluster.
type imageGroups struct {
	of    map[group][]*subject
	order []group
}

func newImageGroups() *imageGroups { return &imageGroups{of: map[group][]*subject{}} }

// claims takes a group's guest for it; false: the subject is left out. A guest is
// frozen once in a run: what else is its disk, on another storage, is taken as it is,
// or not at all where a freeze is demanded.
func (d *decision) claims(s *subject, g *group) bool {
	vm := "vm/" + g.vm
	switch {
	case g.vm == "":
		return true
	case d.taken[vm] == "" && d.free(s, vm):
		d.taken[vm] = "of this policy"
		return true
	case d.taken[vm] == "":
		return false
	case d.retention.GetConsistency() == debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION:
		g.vm = ""
		return true
	}
	d.skip("%v: its guest is frozen for other storage of its", s)
	return false
}

// retainImage puts an image where its operation is made: images of one guest that is
// frozen go together, others each alone.
func (d *decision) retainImage(s *subject, takes bool, groups *imageGroups) {
	resource := cluster.RBDResource(s.fsid, s.image)
	if !d.free(s, resource) {
		return
	}
	g := group{kind: PruneKind, pool: s.fsid, owner: d.owner("rbd", s.image.GetPool(), cluster.RBDName(s.image))}
	if takes {
		g.kind = TakeKind
		g.vm = d.guest(cluster.RBDPath(s.image), func(disk *debvisorv1.VMDisk) string { return cluster.RBDOfDiskIn(s.fsid, disk) }, d.cephNodes(s.fsid)).GetUuid()
	}
	if groups.of[g] == nil && !d.claims(s, &g) {
		return
	}
	d.taken[resource] = "of this policy"
	if g.vm == "" {
		d.beginImages(g, []*subject{s})
		return
	}
	if groups.of[g] == nil {
		groups.order = append(groups.order, g)
	}
	groups.of[g] = append(groups.of[g], s)
}

// beginImages begins the operation of a retention policy on images.
func (d *decision) beginImages(g group, all []*subject) {
	var resources []string
	var images [][]byte
	for _, s := range all {
		resources, images = append(resources, cluster.RBDResource(s.fsid, s.image)), append(images, imageRecord(s.image))
	}
	if g.vm != "" {
		resources = append(resources, "vm/"+g.vm)
	}
	op := d.imageOperation(id(d.title, d.due.UTC().Format(time.RFC3339Nano), g.kind, g.pool, all[0].dataset), g.kind, g.owner, resources)
	if g.kind == PruneKind {
		op.Detail = d.imageRemoval(g.pool, images...)
		d.begin(op)
		return
	}
	take := &storev1.TakeSnapshots{
		Fsid: g.pool, Images: images, Name: cluster.SnapshotName(op.GetId(), d.now), Label: d.retention.GetSnapshotLabel(),
	}
	d.quiet(take, d.snapshot.VMs[g.vm].Value)
	op.Detail = &storev1.Operation_TakeSnapshots{TakeSnapshots: take}
	d.next.Awaited = append(d.next.Awaited, op.GetId())
	d.begin(op)
}

func (d *decision) imageOperation(id, kind, owner string, resources []string) *storev1.Operation {
	return &storev1.Operation{
		Id: id, Kind: kind, Tenant: owner, Method: debvisorv1.StorageService_SetRetentionPolicy_FullMethodName, Resources: resources,
	}
}

func (d *decision) imageRemoval(fsid string, images ...[]byte) *storev1.Operation_RemoveSnapshots {
	rules, err := proto.Marshal(d.retention.GetRules())
	if err != nil {
		rules = nil // rules that keep nothing are refused by whoever carries them out
	}
	return &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{Fsid: fsid, Images: images, Retention: rules, Policy: d.name}}
}

// pruneImagesAfter prunes the images that snapshots were taken of.
func (d *decision) pruneImagesAfter(taken *storev1.Operation) {
	take := taken.GetTakeSnapshots()
	var images [][]byte
	var resources []string
	for _, b := range take.GetImages() {
		image := &agentv1.RbdImageID{}
		if proto.Unmarshal(b, image) != nil {
			continue
		}
		resource := cluster.RBDResource(take.GetFsid(), image)
		if d.free(&subject{dataset: "rbd:" + cluster.RBDPath(image)}, resource) {
			images, resources = append(images, b), append(resources, resource)
		}
	}
	if len(images) == 0 {
		return
	}
	op := d.imageOperation(id(taken.GetId(), PruneKind), PruneKind, taken.GetTenant(), resources)
	op.Detail = d.imageRemoval(take.GetFsid(), images...)
	d.begin(op)
}

// imageRecord is an image as records have it.
func imageRecord(id *agentv1.RbdImageID) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(id)
	if err != nil {
		return nil // invalid UTF-8 only, which its grammar does not have
	}
	return b
}

// cephNodes are the nodes that see a Ceph cluster.
func (d *decision) cephNodes(fsid string) []string {
	var nodes []string
	for node := range d.snapshot.Ceph {
		if inventory, ok := d.snapshot.CephOf(node); ok && inventory.GetFsid() == fsid {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// guest is the running VM on one of some nodes that is to be frozen: the only one
// whose disk, by of, has that name. nil: the policy wants none frozen, or there is none; disks of
// VMs that do not run are quiet as they are.
func (d *decision) guest(name string, of func(*debvisorv1.VMDisk) string, nodes []string) *storev1.VM {
	switch d.retention.GetConsistency() {
	case debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION, debvisorv1.Consistency_CONSISTENCY_APPLICATION:
	default:
		return nil
	}
	var found *storev1.VM
	for _, node := range nodes {
		for _, entry := range d.snapshot.VMsOn(node) {
			domain := &agentv1.Domain{}
			if !bytes.Contains(entry.Value.GetDomain(), []byte(name)) || proto.Unmarshal(entry.Value.GetDomain(), domain) != nil || domain.GetState() != debvisorv1.VMState_VM_STATE_RUNNING {
				continue
			}
			for _, disk := range domain.GetDisks() {
				if of(disk) != name || found.GetUuid() == entry.Value.GetUuid() {
					continue
				}
				if found != nil {
					return nil
				}
				found = entry.Value
			}
		}
	}
	return found
}

// quiet notes which VM is to be frozen for snapshots; nil: none.
func (d *decision) quiet(take *storev1.TakeSnapshots, vm *storev1.VM) {
	if vm != nil {
		take.VmUuid, take.VmName, take.Consistency = vm.GetUuid(), vm.GetName(), int32(d.retention.GetConsistency())
	}
}
