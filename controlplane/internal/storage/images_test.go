package storage

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// images are what the hosts' Ceph cluster has, by full name.
type images map[string]*cephImage

type cephImage struct {
	id        *agentv1.RbdImageID
	depth     uint32
	operation string
	snapshots []*agentv1.RbdSnapshot
}

// listImages answers as agents do; h is locked.
func (h *hosts) listImages(q *agentv1.ListRbd) *agentv1.RbdListing {
	out := &agentv1.RbdListing{}
	for _, id := range q.GetImages() {
		if one := h.images[cluster.RBDPath(id)]; one != nil {
			out.Snapshots = append(out.Snapshots, one.snapshots...)
		}
	}
	return out
}

// doImage does a task on images; nil: it is none. What is done twice finds what was
// done the first time.
func (h *hosts) doImage(spec *agentv1.TaskSpec) *agentv1.TaskOutcome {
	out := &agentv1.RbdOutcome{}
	switch k := spec.GetKind().(type) {
	case *agentv1.TaskSpec_RbdSnapshotCreate:
		c := k.RbdSnapshotCreate
		for _, id := range c.GetImages() {
			one := h.images[cluster.RBDPath(id)]
			at := slices.IndexFunc(one.snapshots, func(s *agentv1.RbdSnapshot) bool { return s.GetSnapshot().GetName() == c.GetName() })
			if at < 0 {
				h.made[c.GetOperation()+" "+cluster.RBDPath(id)]++
				at = len(one.snapshots)
				one.snapshots = append(one.snapshots, &agentv1.RbdSnapshot{
					Snapshot: &agentv1.RbdSnapshotID{Image: one.id, Name: c.GetName(), Id: h.next()}, Created: time.Now().Unix(), Operation: c.GetOperation(), Set: c.GetSet(), Template: c.GetTemplate(),
				})
			}
			out.Made = append(out.Made, one.snapshots[at].GetSnapshot())
		}
	case *agentv1.TaskSpec_RbdSnapshotRemove:
		for _, id := range k.RbdSnapshotRemove.GetSnapshots() {
			one := h.images[cluster.RBDPath(id.GetImage())]
			one.snapshots = slices.DeleteFunc(one.snapshots, func(s *agentv1.RbdSnapshot) bool { return s.GetSnapshot().GetId() == id.GetId() })
			out.Removed++
		}
	case *agentv1.TaskSpec_RbdClone:
		c := k.RbdClone
		path := cluster.RBDPath(c.GetImage())
		if h.images[path] == nil {
			h.made[c.GetOperation()+" "+path]++
			id := &agentv1.RbdImageID{Pool: c.GetImage().GetPool(), Namespace: c.GetImage().GetNamespace(), Name: c.GetImage().GetName(), Id: fmt.Sprint("id", h.next())}
			h.images[path] = &cephImage{id: id, depth: h.images[cluster.RBDPath(c.GetTemplate().GetImage())].depth + 1, operation: c.GetOperation()}
		}
		if h.images[path].operation != c.GetOperation() {
			return &agentv1.TaskOutcome{ErrorCode: "IMAGE_EXISTS"}
		}
		out.Image, out.Depth = h.images[path].id, h.images[path].depth
	case *agentv1.TaskSpec_RbdFlatten:
		one := h.images[cluster.RBDPath(k.RbdFlatten.GetImage())]
		if one == nil || one.operation != k.RbdFlatten.GetClonedBy() {
			return &agentv1.TaskOutcome{ErrorCode: "FOREIGN_IMAGE"}
		}
		one.depth = 0
	case *agentv1.TaskSpec_RbdImageRemove:
		delete(h.images, cluster.RBDPath(k.RbdImageRemove.GetImage()))
	default:
		return nil
	}
	return &agentv1.TaskOutcome{Rbd: out}
}

// onCeph gives both nodes a Ceph cluster with vms/base, which has that depth.
func (b *bench) onCeph(depth uint32) {
	b.t.Helper()
	b.hosts.mu.Lock()
	b.hosts.images = images{"vms/base": {id: &agentv1.RbdImageID{Pool: "vms", Name: "base", Id: "id0"}, depth: depth}}
	b.hosts.mu.Unlock()
	for _, node := range []string{"a", "b"} {
		record := &storev1.NodeCeph{Node: node, Inventory: encoded(&agentv1.CephInventory{Fsid: "f", Pools: []*agentv1.CephPool{{Name: "vms"}}})}
		revision, err := b.store.Commit(b.t.Context(), store.Change{Puts: []store.Put{store.PutProto(store.NodeCephKey(node), record)}})
		if err == nil {
			err = b.view.Await(b.t.Context(), revision)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) takeOf(id, name string, image *agentv1.RbdImageID) {
	b.submit(&storev1.Operation{Id: id, Kind: KindCreate, Resources: []string{cluster.RBDResource("f", image)}, Detail: &storev1.Operation_TakeSnapshots{
		TakeSnapshots: &storev1.TakeSnapshots{Fsid: "f", Images: [][]byte{encoded(image)}, Name: name},
	}})
}

// TestImagesWhoeverDies: wherever the leader is cut off, and however often agents
// die, a snapshot is taken once, a clone made once, one that is deep flattened by an
// operation of its own, and a pruning leaves what it is to leave.
func TestImagesWhoeverDies(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.onCeph(cluster.SoftCloneDepth)
	base := b.hosts.images["vms/base"].id
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			tag := fmt.Sprintf("%d-%v", n, after)
			take, clone, prune := "take-"+tag, "clone-"+tag, "prune-"+tag
			died := b.life(n, after, func() { b.takeOf(take, "s-"+tag, base) }, take)
			made := b.succeeded(take).GetTakeSnapshots().GetMade()
			target := &agentv1.RbdImageID{Pool: "vms", Namespace: "ns", Name: tag}
			died = b.life(n, after, func() {
				b.submit(&storev1.Operation{Id: clone, Kind: KindClone, Resources: []string{cluster.RBDResource("f", target)}, Detail: &storev1.Operation_CloneImage{
					CloneImage: &storev1.CloneImage{Fsid: "f", Template: made[0], Image: encoded(target)},
				}})
			}, clone) || died
			b.succeeded(clone)
			flatten := cluster.FollowUp(clone, KindFlatten)
			if op := b.view.Current().Operations[flatten].Value; op.GetPrincipal() != systemStorage {
				t.Fatalf("%s: nothing flattens it: %v", tag, op)
			}
			died = b.life(n, after, func() {}, flatten) || died
			b.succeeded(flatten)
			died = b.life(n, after, func() {
				b.submit(&storev1.Operation{Id: prune, Kind: KindPrune, Resources: []string{cluster.RBDResource("f", base)}, Detail: &storev1.Operation_RemoveSnapshots{
					RemoveSnapshots: &storev1.RemoveSnapshots{Fsid: "f", Images: [][]byte{encoded(base)}, Retention: encoded(&debvisorv1.RetentionPolicy{KeepLast: 1})},
				}})
			}, prune) || died
			b.succeeded(prune)
			b.hosts.mu.Lock()
			one := b.hosts.images["vms/ns/"+tag]
			if b.hosts.made[take+" vms/base"] != 1 || b.hosts.made[clone+" vms/ns/"+tag] != 1 || one == nil || one.depth != 0 || len(b.hosts.images["vms/base"].snapshots) != 1 {
				t.Errorf("%s: made %v, %v, left %v", tag, b.hosts.made, one, b.hosts.images["vms/base"].snapshots)
			}
			b.hosts.mu.Unlock()
			for resource := range b.view.Current().InUse {
				if strings.HasPrefix(resource, "rbd") {
					t.Errorf("%s is still held", resource)
				}
			}
			if t.Failed() || !died {
				if n < 3 {
					t.Errorf("only %d steps were died at", n)
				}
				break
			}
		}
	}
}

// TestImagesWithAgentsThatDieAllTheTime: of clones of one template at once each is
// made once.
func TestImagesWithAgentsThatDieAllTheTime(t *testing.T) {
	b := newBench(t)
	b.during(b.hosts.work)
	b.onCeph(0)
	b.hosts.mu.Lock()
	b.hosts.worse = 20
	b.hosts.mu.Unlock()
	b.lead()
	template := encoded(&agentv1.RbdSnapshotID{Image: b.hosts.images["vms/base"].id, Name: "t", Id: 1})
	const clones = 8
	for i := range clones {
		target := &agentv1.RbdImageID{Pool: "vms", Name: fmt.Sprint("c", i)}
		b.submit(&storev1.Operation{Id: fmt.Sprint("clone-", i), Kind: KindClone, Resources: []string{cluster.RBDResource("f", target)}, Detail: &storev1.Operation_CloneImage{
			CloneImage: &storev1.CloneImage{Fsid: "f", Template: template, Image: encoded(target)},
		}})
	}
	for i := range clones {
		if c := b.succeeded(fmt.Sprint("clone-", i)).GetCloneImage(); c.GetDepth() != 1 || c.GetNode() == "" {
			t.Errorf("%v", c)
		}
		b.hosts.mu.Lock()
		if made := b.hosts.made[fmt.Sprintf("clone-%d vms/c%d", i, i)]; made != 1 {
			t.Errorf("clone %d was made %d times", i, made)
		}
		b.hosts.mu.Unlock()
	}
}

// TestAFlattenIsCancelled: its image stays as it is, and can be removed.
func TestAFlattenIsCancelled(t *testing.T) {
	b := newBench(t)
	b.onCeph(0)
	b.lead()
	image := &agentv1.RbdImageID{Pool: "vms", Name: "c", Id: "id9"}
	b.hosts.images["vms/c"] = &cephImage{id: image, depth: 3, operation: "op-c"}
	submit := func(id, kind string, resources ...string) {
		b.submit(&storev1.Operation{Id: id, Kind: kind, Resources: resources, Detail: &storev1.Operation_ChangeImage{ChangeImage: &storev1.ChangeImage{Fsid: "f", Image: encoded(image), ClonedBy: "op-c"}}})
	}
	submit("flat", KindFlatten, cluster.RBDFlattenResource("f", image))
	b.await("its task", func(s *cluster.Snapshot) bool { return len(s.TasksOf("flat")) == 1 })
	b.cancel("flat")
	b.await("its end to be asked for", func(s *cluster.Snapshot) bool { return s.TasksOf("flat")[0].Value.GetCancelRequested() })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go b.hosts.work(ctx)
	if op := b.ended("flat"); op.GetState() != task.OpCancelled {
		t.Errorf("%v", op)
	}
	submit("gone", KindRemove, cluster.RBDResource("f", image), cluster.RBDFlattenResource("f", image))
	b.succeeded("gone")
	b.hosts.mu.Lock()
	defer b.hosts.mu.Unlock()
	if b.hosts.images["vms/c"] != nil {
		t.Error("it is still there")
	}
}
