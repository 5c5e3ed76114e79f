package storage

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of snapshots with images, for cases.
const (
	kindTakeImages   = "take images"
	kindDeleteImages = "delete images"
	kindPruneImages  = "prune images"
	webID            = "11111111-1111-4111-8111-111111111111"
)

func web() *agentv1.RbdImageID {
	return &agentv1.RbdImageID{Pool: "vms", Namespace: "ns", Name: "web", Id: "i1"}
}

func webSnapshot(n uint64) *agentv1.RbdSnapshotID {
	return &agentv1.RbdSnapshotID{Image: web(), Name: fmt.Sprint("s", n), Id: n}
}

// ceph makes the operation of a case that is about images of cluster "f", which
// nodes a and b see.
func (w *world) ceph(kind string) {
	for _, node := range []string{"a", "b"} {
		w.seesCeph(node, "")
	}
	switch kind {
	case kindTakeImages:
		w.op.Kind = KindCreate
		w.op.Detail = &storev1.Operation_TakeSnapshots{TakeSnapshots: &storev1.TakeSnapshots{
			Fsid: "f", Images: [][]byte{encoded(web()), encoded(&agentv1.RbdImageID{Pool: "fast", Name: "data", Id: "i2"})}, Name: "dv-1", Label: "l", VmUuid: webID, VmName: "web",
		}}
	case kindDeleteImages:
		w.op.Kind = KindDelete
		w.op.Detail = &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{Fsid: "f", Snapshots: [][]byte{encoded(webSnapshot(2)), encoded(webSnapshot(3))}}}
	case kindPruneImages:
		w.op.Kind = KindPrune
		w.op.Detail = &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{
			Fsid: "f", Images: [][]byte{encoded(web())}, Retention: encoded(&debvisorv1.RetentionPolicy{KeepLast: 1}),
		}}
	case KindClone:
		w.op.Detail = &storev1.Operation_CloneImage{CloneImage: &storev1.CloneImage{
			Fsid: "f", Template: encoded(&agentv1.RbdSnapshotID{Image: &agentv1.RbdImageID{Pool: "vms", Name: "base", Id: "i0"}, Name: "t", Id: 9}),
			Image: encoded(&agentv1.RbdImageID{Pool: "vms", Namespace: "ns", Name: "web"}),
		}}
	default:
		w.op.Detail = &storev1.Operation_ChangeImage{ChangeImage: &storev1.ChangeImage{Fsid: "f", Image: encoded(web()), ClonedBy: "op-clone"}}
	}
}

func (w *world) seesCeph(node, down string) {
	w.d.Ceph.Put(node, &storev1.NodeCeph{Node: node, Inventory: encoded(&agentv1.CephInventory{Fsid: "f", Error: down})}, 3)
}

// cephFact adds a fact about Ceph; false: it is none.
func (w *world) cephFact(f []string, n func(int) uint64) bool {
	rbd := func(change func(*agentv1.RbdOutcome)) bool {
		o := &agentv1.TaskOutcome{}
		if err := proto.Unmarshal(w.last.GetOutcome(), o); err != nil {
			w.t.Fatal(err)
		}
		if o.GetRbd() == nil {
			o.Rbd = &agentv1.RbdOutcome{}
		}
		change(o.GetRbd())
		w.last.Outcome = encoded(o)
		return true
	}
	switch f[0] {
	case "ceph":
		w.seesCeph(f[1], "")
	case "cephdown":
		w.seesCeph(f[1], "timed out")
	case "prefer":
		w.op.GetTakeSnapshots().Consistency = int32(debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION)
	case "demand":
		w.op.GetTakeSnapshots().Consistency = int32(debvisorv1.Consistency_CONSISTENCY_APPLICATION)
	case "vm":
		domain := &agentv1.Domain{State: debvisorv1.VMState(debvisorv1.VMState_value["VM_STATE_"+strings.ToUpper(f[2])]), Disks: []*debvisorv1.VMDisk{
			{Target: "vda", Type: "network", StorageId: "rbd:vms", Source: "vms/ns/web"},
		}}
		w.d.VMs.Put(webID, &storev1.VM{Uuid: webID, Name: "web", Node: f[1], Domain: encoded(domain)}, 3)
	case "held":
		w.d.InUse.Put(f[1], "op-other", 3)
	case "at":
		w.last.Node = f[1]
	case "thawed":
		o := &agentv1.TaskOutcome{}
		if err := proto.Unmarshal(w.last.GetOutcome(), o); err != nil {
			w.t.Fatal(err)
		}
		o.Freeze = &agentv1.FreezeOutcome{Reason: "too slow"}
		w.last.Outcome = encoded(o)
	case "removed":
		return rbd(func(o *agentv1.RbdOutcome) { o.Removed = uint32(n(1)) })
	case "stayed":
		return rbd(func(o *agentv1.RbdOutcome) {
			o.Kept = append(o.Kept, &agentv1.RbdKept{Snapshot: webSnapshot(n(1)), Code: "SNAPSHOT_CLONED"})
		})
	case "depth":
		return rbd(func(o *agentv1.RbdOutcome) { o.Image, o.Depth = web(), uint32(n(1)) })
	case "percent":
		w.last.Progress = encoded(&agentv1.TaskProgress{Kind: &agentv1.TaskProgress_Rbd{Rbd: &agentv1.RbdProgress{Done: n(1), Total: 100}}})
	case "rbd":
		w.at.answer = &answer{key: opID + "/1/a", at: noon}
		if len(f) > 1 && f[1] == "of" {
			w.at.answer.key = opID + "/1/" + f[2]
		}
		for g := uint64(1); g <= 4; g++ {
			s := &agentv1.RbdSnapshot{Snapshot: webSnapshot(g), Created: noon.Unix() - 100 + int64(g), Operation: "op-0"}
			s.Protected = len(f) > 2 && f[1] == "protected" && f[2] == s.GetSnapshot().GetName()
			s.Template = len(f) > 2 && f[1] == "template" && f[2] == s.GetSnapshot().GetName()
			w.at.answer.images = append(w.at.answer.images, s)
		}
	default:
		return false
	}
	return true
}

func specOf(t *testing.T, s *step) *agentv1.TaskSpec {
	t.Helper()
	spec := &agentv1.TaskSpec{}
	if s == nil || s.task == nil {
		t.Fatal("no task was written")
	}
	if err := proto.Unmarshal(s.task.GetSpec(), spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestTakingSnapshotsOfImages(t *testing.T) {
	for facts, want := range map[string]string{
		"vm a running":                        "task 1/rbd-snapshot",
		"down a,down b":                       "note waiting for a node with Ceph: the agent of a is not heard",
		"cephdown a,cephdown b":               "note waiting for a node with Ceph: Ceph does not answer b: timed out",
		"cancel":                              "cancelled CANCELLED",
		"vm b running,down b,demand":          "note waiting for b and its Ceph: it does not see the Ceph cluster f, or is not heard",
		"vm b shutoff,demand":                 "fail NO_GUEST_AGENT",
		"demand":                              "fail NO_GUEST_AGENT",
		"vm b shutoff,prefer":                 "task 1/rbd-snapshot",
		"running,task 1 rbd-snapshot running": "note taking snapshots on a",
		"running,task 1 rbd-snapshot running,down a":                            "note taking snapshots on a: waiting for the agent of a, which is not heard",
		"running,cancel,task 1 rbd-snapshot running":                            "cancel-task 1/rbd-snapshot",
		"running,task 1 rbd-snapshot succeeded":                                 "succeed",
		"running,cancel,task 1 rbd-snapshot succeeded":                          "succeed",
		"running,task 1 rbd-snapshot failed IMAGE_IN_GROUP":                     "fail IMAGE_IN_GROUP",
		"running,task 1 rbd-snapshot failed FREEZE_FAILED":                      "fail FREEZE_FAILED",
		"running,task 1 rbd-snapshot failed CEPH_UNKNOWN":                       "task 2/rbd-snapshot",
		"running,task 1 rbd-snapshot failed CEPH_DOWN,cancel":                   "cancelled CANCELLED",
		"running,task 1 rbd-snapshot failed INTERRUPTED,interrupted,cephdown a": "task 2/rbd-snapshot",
		"running,task 1 rbd-snapshot running,off a":                             "node-gone 1/rbd-snapshot",
		"running,off a,task 1 rbd-snapshot failed NODE_OFF":                     "task 2/rbd-snapshot",
		"running,task 1 rbd-snapshot failed NODE_GONE":                          "fail NODE_GONE",
	} {
		check(t, kindTakeImages, facts, want)
	}
	s := check(t, kindTakeImages, "vm b running,demand", "task 1/rbd-snapshot")
	spec := specOf(t, s).GetRbdSnapshotCreate()
	if s.task.GetNode() != "b" || s.task.GetResource() != "rbd/f/vms/ns/web" || spec.GetGroup() == "" || spec.GetSet() != opID || spec.GetOperation() != opID ||
		len(spec.GetImages()) != 2 || !spec.GetFreeze().GetRequired() || spec.GetFreeze().GetBudgetMs() != defaultFreeze || spec.GetFreeze().GetVmUuid() != webID {
		t.Errorf("%s is told %v", s.task.GetNode(), spec)
	}
	// The node on which the guest runs has its lock; without a freeze another does it
	// where that one is away.
	if s := check(t, kindTakeImages, "vm b running", "task 1/rbd-snapshot"); s.task.GetNode() != "b" || specOf(t, s).GetRbdSnapshotCreate().GetFreeze() != nil {
		t.Errorf("%v", s.task)
	}
	if s := check(t, kindTakeImages, "vm b running,down b", "task 1/rbd-snapshot"); s.task.GetNode() != "a" {
		t.Errorf("%v", s.task)
	}
	s = check(t, kindTakeImages, "vm b shutoff,prefer", "task 1/rbd-snapshot")
	out := &agentv1.FreezeOutcome{}
	if err := proto.Unmarshal(s.op.GetTakeSnapshots().GetFreeze(), out); err != nil || !strings.Contains(out.GetReason(), "does not run") {
		t.Errorf("%v, %v", out, err)
	}
}

func TestAFreezeThatFailedIsTold(t *testing.T) {
	for kind, facts := range map[string]string{
		kindTakeImages: "vm a running,demand,running,task 1 rbd-snapshot failed FREEZE_EXPIRED,thawed",
		KindCreate:     "vm a running,demand,running,task 1 zfs-snapshot failed FREEZE_EXPIRED,thawed",
	} {
		out := &agentv1.FreezeOutcome{}
		s := check(t, kind, facts, "fail FREEZE_EXPIRED")
		if err := proto.Unmarshal(s.op.GetTakeSnapshots().GetFreeze(), out); err != nil || out.GetReason() != "too slow" {
			t.Errorf("%s: %v, %v", kind, out, err)
		}
	}
}

func TestFreezingWithZFS(t *testing.T) {
	for facts, want := range map[string]string{"demand": "fail NO_GUEST_AGENT", "prefer": "task 1/zfs-snapshot"} {
		check(t, KindCreate, facts, want)
	}
	snapshot, entry, at := records(t, KindCreate, "demand,vm a running")
	entry.Value.GetTakeSnapshots().VmUuid, entry.Value.GetTakeSnapshots().FreezeBudgetMs = webID, 900
	s, _ := decide(snapshot, entry, at)
	if f := specOf(t, s).GetZfsSnapshotCreate().GetFreeze(); !f.GetRequired() || f.GetBudgetMs() != 900 || f.GetVmUuid() != webID {
		t.Errorf("%v", f)
	}
	// It has moved away since.
	snapshot, entry, at = records(t, KindCreate, "demand,vm b running")
	entry.Value.GetTakeSnapshots().VmUuid = webID
	if s, _ := decide(snapshot, entry, at); s.op.GetErrorCode() != codeNoGuestAgent {
		t.Errorf("%v", s.op)
	}
}

func TestRemovingSnapshotsOfImages(t *testing.T) {
	for facts, want := range map[string]string{
		"down b":                 "note asking a for the snapshots of vms/ns/web ask",
		"down b,rbd":             "task 1/rbd-snapshot-remove",
		"down b,rbd of b":        "note asking a for the snapshots of vms/ns/web ask",
		"down b,error CEPH_DOWN": "note asking a for the snapshots of vms/ns/web ask",
		"down a,down b":          "note waiting for a node with Ceph: the agent of a is not heard",
		"cancel":                 "cancelled CANCELLED",
		"running,batch 1,task 1 rbd-snapshot-remove running":             "note removing snapshots on , 0 so far: waiting for the agent of , which is not heard",
		"running,batch 1,cancel,task 1 rbd-snapshot-remove running":      "cancel-task 1/rbd-snapshot-remove",
		"running,batch 1,task 1 rbd-snapshot-remove succeeded,removed 2": "batch-done",
		"running,batch 1,task 1 rbd-snapshot-remove succeeded":           "fail INTERNAL",
		"running,batch 1": "fail BROKEN_RECORD",
		"running,task 1 rbd-snapshot-remove failed NO_PERMISSION":                 "fail NO_PERMISSION",
		"running,down b,task 1 rbd-snapshot-remove failed CEPH_DOWN":              "note asking a for the snapshots of vms/ns/web ask",
		"running,cancel,task 1 rbd-snapshot-remove cancelled CANCELLED,removed 1": "cancelled CANCELLED",
	} {
		check(t, kindPruneImages, facts, want)
	}
	for facts, want := range map[string]string{
		"down b,rbd":              "task 1/rbd-snapshot-remove",
		"down b,rbd protected s1": "task 1/rbd-snapshot-remove", // others' are nobody's business
		"down b,rbd protected s3": "fail SNAPSHOT_NEEDED",
		"down b,rbd template s3":  "task 1/rbd-snapshot-remove", // it was named
	} {
		check(t, kindDeleteImages, facts, want)
	}
	ids := func(s *step) string {
		var all []uint64
		for _, id := range specOf(t, s).GetRbdSnapshotRemove().GetSnapshots() {
			all = append(all, id.GetId())
		}
		return fmt.Sprint(all)
	}
	for facts, want := range map[string]string{"down b,rbd": "[1 2 3]", "down b,rbd template s2": "[1 3]", "down b,rbd protected s1": "[2 3]"} {
		if got := ids(check(t, kindPruneImages, facts, "task 1/rbd-snapshot-remove")); got != want {
			t.Errorf("%s removes %s, want %s", facts, got, want)
		}
	}
	if got := ids(check(t, kindDeleteImages, "down b,rbd", "task 1/rbd-snapshot-remove")); got != "[2 3]" {
		t.Errorf("a deletion removes %s", got)
	}
	// What an agent kept is not asked for again.
	snapshot, entry, at := records(t, kindPruneImages, "running,down b,task 1 rbd-snapshot-remove succeeded,stayed 1,stayed 2,stayed 3,rbd")
	at.answer.key = opID + "/2/a"
	if s, q := decide(snapshot, entry, at); told(s, q) != "succeed" || s.op.GetRemoveSnapshots().GetKept() != 4 {
		t.Errorf("%s: %v", told(s, q), s.op)
	}
}

func TestCloning(t *testing.T) {
	for facts, want := range map[string]string{
		"":                                   "task 1/rbd-clone",
		"down a,down b":                      "note waiting for a node with Ceph: the agent of a is not heard",
		"running,task 1 rbd-clone running":   "note cloning vms/base@t to vms/ns/web on a",
		"running,task 1 rbd-clone succeeded": "fail INTERNAL",
		"running,task 1 rbd-clone succeeded,depth 1":               "succeed",
		"running,task 1 rbd-clone failed IMAGE_EXISTS":             "fail IMAGE_EXISTS",
		"running,task 1 rbd-clone failed CLONE_TOO_DEEP":           "fail CLONE_TOO_DEEP",
		"running,task 1 rbd-clone failed INTERRUPTED,interrupted":  "task 2/rbd-clone",
		"running,task 1 rbd-clone failed CEPH_UNKNOWN,interrupted": "task 2/rbd-clone",
	} {
		check(t, KindClone, facts, want)
	}
	spec := specOf(t, check(t, KindClone, "", "task 1/rbd-clone")).GetRbdClone()
	if spec.GetOperation() != opID || spec.GetMaxDepth() != cluster.HardCloneDepth || spec.GetImage().GetName() != "web" || spec.GetTemplate().GetId() != 9 {
		t.Errorf("%v", spec)
	}
	for facts, flattened := range map[string]bool{
		"running,task 1 rbd-clone succeeded,depth 4":                               false,
		"running,task 1 rbd-clone succeeded,depth 5":                               true,
		"running,task 1 rbd-clone succeeded,depth 5,held rbd-flatten/f/vms/ns/web": false,
	} {
		s := check(t, KindClone, facts, "succeed")
		if (s.began != nil) != flattened || s.op.GetCloneImage().GetDepth() < 4 {
			t.Errorf("%s: it has begun %v", facts, s.began)
		}
		if !flattened {
			continue
		}
		if s.began.GetKind() != KindFlatten || s.began.GetId() != cluster.FollowUp(opID, KindFlatten) || s.began.GetState() != task.OpPending ||
			s.began.GetPrincipal() != systemStorage || s.began.GetChangeImage().GetClonedBy() != opID {
			t.Errorf("it has begun %v", s.began)
		}
		if held := store.InUseKey("rbd-flatten/f/vms/ns/web"); slices.Contains(s.change.Deletes, held) || !strings.Contains(fmt.Sprint(s.change.Puts), held) {
			t.Errorf("it writes %v and deletes %v", s.change.Puts, s.change.Deletes)
		}
	}
}

func TestChangingImages(t *testing.T) {
	for facts, want := range map[string]string{
		"":                                   "task 1/rbd-flatten",
		"running,task 1 rbd-flatten running": "note flattening vms/ns/web on a",
		"running,task 1 rbd-flatten running,percent 40":             "progress",
		"running,cancel,task 1 rbd-flatten running,percent 40":      "cancel-task 1/rbd-flatten",
		"running,cancel,task 1 rbd-flatten cancelled CANCELLED":     "cancelled CANCELLED",
		"running,task 1 rbd-flatten succeeded":                      "succeed",
		"running,task 1 rbd-flatten failed IMAGE_REPLACED":          "fail IMAGE_REPLACED",
		"running,task 1 rbd-flatten failed CEPH_UNKNOWN":            "task 2/rbd-flatten",
		"running,task 1 rbd-flatten failed INTERRUPTED,interrupted": "task 2/rbd-flatten",
	} {
		check(t, KindFlatten, facts, want)
	}
	for facts, want := range map[string]string{
		"": "task 1/rbd-image-remove",
		"running,task 1 rbd-image-remove succeeded":           "succeed",
		"running,task 1 rbd-image-remove failed IMAGE_IN_USE": "fail IMAGE_IN_USE",
	} {
		check(t, KindRemove, facts, want)
	}
	if s := check(t, KindFlatten, "", "task 1/rbd-flatten"); s.task.GetResource() != "rbd-flatten/f/vms/ns/web" || specOf(t, s).GetRbdFlatten().GetClonedBy() != "op-clone" {
		t.Errorf("%v", s.task)
	}
	if s := check(t, KindRemove, "", "task 1/rbd-image-remove"); s.task.GetResource() != "rbd/f/vms/ns/web" || specOf(t, s).GetRbdImageRemove().GetImage().GetId() != "i1" {
		t.Errorf("%v", s.task)
	}
	s := check(t, KindFlatten, "running,task 1 rbd-flatten running,percent 40", "progress")
	p := &debvisorv1.OperationProgress{}
	if err := proto.Unmarshal(s.op.GetProgress(), p); err != nil || p.GetPercent() != 40 {
		t.Errorf("%v, %v", p, err)
	}
}
