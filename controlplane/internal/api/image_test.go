package api_test

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

// startCeph is storageRig with a Ceph cluster that a and b see: vms/base with a
// template t1 and an ordinary s1, vms/ns/web with s1 and s2, and pool fast.
func startCeph(t *testing.T) *storageRig {
	t.Helper()
	r := startStorage(t)
	r.zfs.image("vms/base", nil, "t1", "s1")
	r.zfs.changeImage("vms/base@t1", func(s *agentv1.RbdSnapshot) { s.Template = true })
	r.zfs.image("vms/ns/web", func(i *agentv1.RbdImage) {
		i.Operation, i.Depth, i.Parent = "op-clone", 1, &agentv1.RbdSnapshotID{Image: rbdID("vms/base"), Name: "t1", Id: 1}
	}, "s1", "s2")
	r.reportCeph(fsid, []string{"vms", "fast"}, "a", "b")
	return r
}

// ceph records a running VM with those images as its disks.
func (r *storageRig) vmOnCeph(uuid, name, node string, state debvisorv1.VMState, images ...string) {
	r.t.Helper()
	domain := &agentv1.Domain{Uuid: uuid, Name: name, State: state}
	for i, path := range images {
		domain.Disks = append(domain.Disks, &debvisorv1.VMDisk{Target: fmt.Sprintf("vd%c", 'a'+i), Type: "network", Source: path, StorageId: "rbd:vms", Shared: true})
	}
	r.put(store.PutProto(store.VMKey(uuid), &storev1.VM{Uuid: uuid, Name: name, Node: node, Domain: encode(r.t, domain)}))
}

const webID = "11111111-1111-4111-8111-111111111111"

func TestSnapshotsOfImages(t *testing.T) {
	r := startCeph(t)
	done := make(chan *debvisorv1.SnapshotStatus, 1)
	go func() {
		status, err := r.storage.CreateSnapshot(withRequestID(t.Context(), "one"), &debvisorv1.SnapshotRequest{Dataset: img("vms/ns/web"), Label: "before"})
		if err != nil {
			t.Error(err)
		}
		done <- status
	}()
	op := r.begun("snapshot.create")
	take := op.GetTakeSnapshots()
	id := &agentv1.RbdImageID{}
	if err := proto.Unmarshal(take.GetImages()[0], id); err != nil || id.GetId() != "id-vms/ns/web" || id.GetNamespace() != "ns" {
		t.Errorf("%v, %v", id, err)
	}
	if take.GetFsid() != fsid || take.GetNode() != "" || !cluster.OurSnapshotName(take.GetName()) || !slices.Equal(op.GetResources(), []string{"rbd/" + fsid + "/vms/ns/web"}) {
		t.Errorf("written is %v", op)
	}
	_, err := r.storage.CreateSnapshot(notWaiting(t, "two"), &debvisorv1.SnapshotRequest{Dataset: img("vms/ns/web")})
	refusedAs(t, "a second one", err, "IN_USE")
	r.finish(op.GetId(), nil)
	status := <-done
	if status.GetSnapshot().GetSnapshotName() != take.GetName() || status.GetSnapshot().GetDataset().GetName() != "ns/web" || !strings.Contains(status.GetMessage(), "vms/ns/web") {
		t.Errorf("answered was %v", status)
	}
	seen, err := debvisorv1.NewOperationServiceClient(r.principal("operator")).GetOperation(t.Context(), &debvisorv1.OperationRef{Id: op.GetId()})
	if err != nil || seen.GetSnapshot().GetBackend() != debvisorv1.StorageBackend_BACKEND_RBD || !slices.Equal(seen.GetSnapshot().GetDatasets(), []string{"vms/ns/web"}) {
		t.Errorf("%v, %v", seen, err)
	}
	list, err := r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img("vms/ns/web"), Limit: 1})
	if err != nil || len(list.GetSnapshots()) != 1 || list.GetSnapshots()[0].GetRef().GetSnapshotName() != "s1" || list.GetNextPage() == "" {
		t.Fatalf("%v, %v", list, err)
	}
	next, err := r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img("vms/ns/web"), Limit: 1, Page: list.GetNextPage()})
	if err != nil || len(next.GetSnapshots()) != 1 || next.GetSnapshots()[0].GetRef().GetSnapshotName() != "s2" || next.GetNextPage() != "" {
		t.Errorf("%v, %v", next, err)
	}
	one, err := r.storage.GetSnapshot(t.Context(), imgSnap("vms/base", "t1"))
	if err != nil || !one.GetTemplate() || one.GetLabel() != "label-t1" {
		t.Errorf("%v, %v", one, err)
	}
	_, err = r.storage.GetSnapshot(t.Context(), imgSnap("vms/base", "none"))
	refusedAs(t, "a snapshot that is not there", err, "SNAPSHOT_NOT_FOUND")
}

// Names that lead elsewhere are refused before anything is asked or written.
func TestNamesOfImages(t *testing.T) {
	r := startCeph(t)
	for _, path := range []string{"vms/../x", "vms/x@s1", "vms/x%", "vms/a/b/c", "vms/ns//x", "vms//x", "vms/-x", "vms/x\x00", "vms/x\n", "vms/x#b", "vms/.dv-op-1"} {
		_, err := r.storage.CreateSnapshot(t.Context(), &debvisorv1.SnapshotRequest{Dataset: img(path)})
		refusedAs(t, fmt.Sprintf("%q", path), err, "INVALID_FIELD dataset.name")
		_, err = r.storage.CloneRbdFromTemplate(t.Context(), &debvisorv1.RbdCloneRequest{TemplateSnapshot: imgSnap("vms/base", "t1"), NewImage: img(path)})
		refusedAs(t, fmt.Sprintf("%q", path), err, "INVALID_FIELD new_image.name")
	}
	for _, name := range []string{"..", "a@b", "a/b", "-r", "a%"} {
		_, err := r.storage.GetSnapshot(t.Context(), imgSnap("vms/base", name))
		refusedAs(t, name, err, "INVALID_FIELD snapshot_name")
	}
	_, err := r.storage.CreateRbdTemplateSnapshot(t.Context(), &debvisorv1.RbdTemplateRequest{Image: ds("tank/x")})
	refusedAs(t, "a dataset", err, "INVALID_FIELD image.backend")
	_, err = r.storage.PlanZfsReplication(t.Context(), &debvisorv1.ZfsReplicationPlan{Dataset: img("vms/base"), Target: nodeRef("b")})
	refusedAs(t, "replication of an image", err, "INVALID_FIELD dataset.backend")
	_, err = r.storage.PruneSnapshots(t.Context(), &debvisorv1.PruneRequest{Dataset: img("vms/base"), Recursive: true, Policy: &debvisorv1.RetentionPolicy{KeepLast: 1}})
	refusedAs(t, "what is below an image", err, "INVALID_FIELD recursive")
	if len(r.zfs.asked) > 0 || len(r.view.Current().Operations) > 0 {
		t.Errorf("asked was %v", r.zfs.asked)
	}
}

func TestWhichCephIsMeant(t *testing.T) {
	r := startCeph(t)
	_, err := r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img("other/x")})
	refusedAs(t, "a pool that nobody has", err, "DATASET_NOT_FOUND")
	_, err = r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img("vms/none")})
	refusedAs(t, "an image that is not there", err, "DATASET_NOT_FOUND")
	_, err = r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img("vms/base", "c")})
	refusedAs(t, "a node without Ceph", err, "NO_CEPH")
	r.reportCeph("another", []string{"vms"}, "c")
	_, err = r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img("vms/base")})
	refusedAs(t, "two clusters with such a pool", err, "AMBIGUOUS_DATASET")
	if list, err := r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img("vms/base", "a")}); err != nil || len(list.GetSnapshots()) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	// Where one node's Ceph does not answer another is asked; where none does, that is said.
	r.zfs.cephDown["a"] = true
	if list, err := r.storage.ListImages(t.Context(), &debvisorv1.ImageFilter{Pool: "fast", Node: nodeRef("b")}); err != nil || len(list.GetImages()) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	_, err = r.storage.ListImages(t.Context(), &debvisorv1.ImageFilter{Node: nodeRef("a")})
	refusedAs(t, "a node whose Ceph does not answer", err, "CEPH_DOWN")
}

func TestSetsOfAVMOnCeph(t *testing.T) {
	r := startCeph(t)
	r.zfs.image("fast/data", nil)
	r.vmOnCeph(webID, "web", "a", debvisorv1.VMState_VM_STATE_RUNNING, "vms/ns/web", "fast/data")
	status, err := r.storage.CreateSnapshotSet(notWaiting(t, "set"), &debvisorv1.SnapshotSetRequest{
		Vm: &debvisorv1.VMRef{VmId: "web"}, Consistency: debvisorv1.Consistency_CONSISTENCY_APPLICATION, FreezeBudgetMs: 700,
	})
	if err != nil || len(status.GetSnapshots()) != 2 || status.GetSnapshots()[0].GetDataset().GetPool() != "fast" {
		t.Fatalf("%v, %v", status, err)
	}
	op := r.view.Current().Operations[status.GetOperationId()].Value
	take := op.GetTakeSnapshots()
	if take.GetVmUuid() != webID || take.GetNode() != "a" || take.GetFreezeBudgetMs() != 700 || len(take.GetImages()) != 2 || !slices.Contains(op.GetResources(), "vm/"+webID) {
		t.Errorf("%v", op)
	}
	r.finish(op.GetId(), func(op *storev1.Operation) {
		op.GetTakeSnapshots().Freeze = encode(t, &agentv1.FreezeOutcome{Frozen: true, Filesystems: 2, FrozenMs: 40})
	})
	again, err := r.storage.CreateSnapshotSet(withRequestID(t.Context(), "set"), &debvisorv1.SnapshotSetRequest{
		Vm: &debvisorv1.VMRef{VmId: "web"}, Consistency: debvisorv1.Consistency_CONSISTENCY_APPLICATION, FreezeBudgetMs: 700,
	})
	if err != nil || !again.GetFreeze().GetFrozen() || again.GetFreeze().GetFilesystems() != 2 {
		t.Errorf("%v, %v", again, err)
	}
	// One image of it alone: the guest is found by its disk.
	single, err := r.storage.CreateSnapshot(notWaiting(t, "single"), &debvisorv1.SnapshotRequest{
		Dataset: img("fast/data"), Consistency: debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION,
	})
	if err != nil || r.view.Current().Operations[single.GetOperationId()].Value.GetTakeSnapshots().GetVmName() != "web" {
		t.Errorf("%v, %v", single, err)
	}
	for what, req := range map[string]*debvisorv1.SnapshotRequest{
		"an image of no VM":  {Dataset: img("vms/base"), Consistency: debvisorv1.Consistency_CONSISTENCY_APPLICATION},
		"a dataset of no VM": {Dataset: ds("tank/x"), Consistency: debvisorv1.Consistency_CONSISTENCY_APPLICATION},
	} {
		_, err := r.storage.CreateSnapshot(t.Context(), req)
		refusedAs(t, what, err, "NO_GUEST_AGENT")
	}
}

func TestDeletingSnapshotsOfImages(t *testing.T) {
	r := startCeph(t)
	r.zfs.changeImage("vms/base@t1", func(s *agentv1.RbdSnapshot) { s.Children = []*agentv1.RbdImageID{rbdID("vms/ns/web")} })
	of := func(refs ...*debvisorv1.SnapshotRef) *debvisorv1.DeleteSnapshotsRequest {
		return &debvisorv1.DeleteSnapshotsRequest{Snapshots: refs}
	}
	_, err := r.storage.DeleteSnapshots(t.Context(), of(imgSnap("vms/base", "t1"), imgSnap("vms/base", "s1")))
	refusedAs(t, "one with a clone", err, "SNAPSHOTS_NEEDED")
	if err == nil || !strings.Contains(err.Error(), "vms/ns/web") {
		t.Errorf("the clone is not named: %v", err)
	}
	r.zfs.changeImage("vms/base@t1", func(s *agentv1.RbdSnapshot) { s.Children = nil })
	r.zfs.changeImage("vms/base@s1", func(s *agentv1.RbdSnapshot) { s.Operation = "" })
	_, err = r.storage.DeleteSnapshots(t.Context(), of(imgSnap("vms/base", "s1")))
	refusedAs(t, "another's", err, "SNAPSHOTS_NEEDED")
	_, err = r.storage.DeleteSnapshots(t.Context(), of(imgSnap("vms/base", "none")))
	refusedAs(t, "one that is not there", err, "SNAPSHOT_NOT_FOUND")
	_, err = r.storage.DeleteSnapshots(t.Context(), of(imgSnap("vms/base", "t1"), snap("tank/x", "s1")))
	refusedAs(t, "of both kinds", err, "INVALID_FIELD snapshots[1].dataset")
	result, err := r.storage.DeleteSnapshots(notWaiting(t, "del"), of(imgSnap("vms/base", "t1"), imgSnap("vms/ns/web", "s1")))
	if err != nil {
		t.Fatal(err)
	}
	op := r.view.Current().Operations[result.GetOperationId()].Value
	if r := op.GetRemoveSnapshots(); r.GetFsid() != fsid || len(r.GetSnapshots()) != 2 || len(op.GetResources()) != 2 {
		t.Errorf("%v", op)
	}
}

func TestPruningImages(t *testing.T) {
	r := startCeph(t)
	rules := &debvisorv1.RetentionPolicy{KeepLast: 1}
	plan, err := r.storage.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: img("vms/base"), Policy: rules})
	// t1 is a template, s1 the last.
	if err != nil || plan.GetKeep() != 2 || plan.GetRemove() != 0 || !slices.Contains(plan.GetVerdicts()[0].GetRules(), "a template") {
		t.Errorf("%v, %v", plan, err)
	}
	plan, err = r.storage.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: img("vms/ns/web"), Policy: rules})
	if err != nil || plan.GetRemove() != 1 || plan.GetVerdicts()[0].GetKeep() || plan.GetVerdicts()[0].GetSnapshot().GetDataset().GetBackend() != debvisorv1.StorageBackend_BACKEND_RBD {
		t.Errorf("%v, %v", plan, err)
	}
	result, err := r.storage.PruneSnapshots(notWaiting(t, "prune"), &debvisorv1.PruneRequest{Dataset: img("vms/ns/web"), Policy: rules})
	if err != nil {
		t.Fatal(err)
	}
	if r := r.view.Current().Operations[result.GetOperationId()].Value.GetRemoveSnapshots(); r.GetFsid() != fsid || len(r.GetImages()) != 1 || len(r.GetRetention()) == 0 {
		t.Errorf("%v", r)
	}
}

func TestTemplatesAndClones(t *testing.T) {
	r := startCeph(t)
	made, err := r.storage.CreateRbdTemplateSnapshot(notWaiting(t, "template"), &debvisorv1.RbdTemplateRequest{Image: img("vms/base"), Label: "v2"})
	if err != nil || !r.view.Current().Operations[made.GetOperationId()].Value.GetTakeSnapshots().GetTemplate() {
		t.Fatalf("%v, %v", made, err)
	}
	of := func(snapshot, target string) *debvisorv1.RbdCloneRequest {
		return &debvisorv1.RbdCloneRequest{TemplateSnapshot: imgSnap("vms/base", snapshot), NewImage: img(target)}
	}
	for what, c := range map[string]struct {
		req  *debvisorv1.RbdCloneRequest
		want string
	}{
		"no template":    {of("s1", "fast/new"), "NOT_A_TEMPLATE"},
		"a name in use":  {of("t1", "vms/ns/web"), "IMAGE_EXISTS"},
		"no such one":    {of("t9", "fast/new"), "SNAPSHOT_NOT_FOUND"},
		"no such pool":   {of("t1", "slow/new"), "DATASET_NOT_FOUND"},
		"another's node": {&debvisorv1.RbdCloneRequest{TemplateSnapshot: imgSnap("vms/base", "t1"), NewImage: img("fast/new", "c")}, "NO_CEPH"},
	} {
		_, err := r.storage.CloneRbdFromTemplate(t.Context(), c.req)
		refusedAs(t, what, err, c.want)
	}
	plan, err := r.storage.PlanClone(t.Context(), of("s1", "vms/ns/web"))
	if err != nil || plan.GetAllowed() || len(plan.GetReasons()) != 2 {
		t.Errorf("%v, %v", plan, err)
	}
	plan, err = r.storage.PlanClone(t.Context(), of("t1", "fast/ns2/new"))
	if err != nil || !plan.GetAllowed() || plan.GetDepth() != 1 || plan.GetFlattened() || plan.GetSizeBytes() != 1<<30 {
		t.Errorf("%v, %v", plan, err)
	}
	// Several of one template at once.
	result, err := r.storage.CloneRbdFromTemplate(notWaiting(t, "clone"), of("t1", "fast/ns2/new"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.storage.CloneRbdFromTemplate(notWaiting(t, "clone2"), of("t1", "fast/ns2/new2")); err != nil {
		t.Error(err)
	}
	_, err = r.storage.CloneRbdFromTemplate(notWaiting(t, "clone3"), of("t1", "fast/ns2/new"))
	refusedAs(t, "another of that name", err, "IN_USE")
	if plan, err := r.storage.PlanClone(t.Context(), of("t1", "fast/ns2/new")); err != nil || plan.GetAllowed() {
		t.Errorf("%v, %v", plan, err)
	}
	op := r.view.Current().Operations[result.GetOperationId()].Value
	flatten := cluster.FollowUp(op.GetId(), "image.flatten")
	r.finish(op.GetId(), func(op *storev1.Operation) {
		op.GetCloneImage().Depth, op.GetCloneImage().Node = 5, "a"
	}, store.PutProto(store.OperationKey(flatten), &storev1.Operation{Id: flatten, Kind: "image.flatten", State: task.OpPending, Principal: "system:storage"}))
	again, err := r.storage.CloneRbdFromTemplate(withRequestID(t.Context(), "clone"), of("t1", "fast/ns2/new"))
	if err != nil || again.GetDepth() != 5 || again.GetFlattenOperationId() != flatten || again.GetClone().GetName() != "ns2/new" {
		t.Errorf("%v, %v", again, err)
	}
	seen, err := debvisorv1.NewOperationServiceClient(r.principal("operator")).GetOperation(t.Context(), &debvisorv1.OperationRef{Id: op.GetId()})
	if err != nil || seen.GetImage().GetTemplate() != "vms/base@t1" || seen.GetImage().GetImage() != "fast/ns2/new" || seen.GetImage().GetFlattenOperationId() != flatten {
		t.Errorf("%v, %v", seen, err)
	}
}

func TestCloneDepthIsBounded(t *testing.T) {
	r := startCeph(t)
	for depth, want := range map[uint32]string{3: "", 4: "flattened", 7: "flattened", 8: "CLONE_TOO_DEEP"} {
		path := fmt.Sprintf("vms/deep%d", depth)
		r.zfs.image(path, func(i *agentv1.RbdImage) { i.Depth = depth }, "t")
		r.zfs.changeImage(path+"@t", func(s *agentv1.RbdSnapshot) { s.Template = true })
		req := &debvisorv1.RbdCloneRequest{TemplateSnapshot: imgSnap(path, "t"), NewImage: img("vms/new")}
		plan, err := r.storage.PlanClone(t.Context(), req)
		if err != nil || plan.GetAllowed() != (want != "CLONE_TOO_DEEP") || plan.GetFlattened() != (want == "flattened") {
			t.Errorf("%d: %v, %v", depth, plan, err)
		}
		if !plan.GetAllowed() {
			_, err := r.storage.CloneRbdFromTemplate(t.Context(), req)
			refusedAs(t, path, err, want)
		}
	}
}

func TestChangingImages(t *testing.T) {
	r := startCeph(t)
	_, err := r.storage.FlattenImage(t.Context(), &debvisorv1.ImageRef{Image: img("vms/base")})
	refusedAs(t, "no clone of ours", err, "NOT_OURS")
	_, err = r.storage.DeleteImage(t.Context(), &debvisorv1.ImageRef{Image: img("vms/ns/web")})
	refusedAs(t, "one with snapshots", err, "IMAGE_HAS_SNAPSHOTS")
	ours := func(i *agentv1.RbdImage) {
		i.Operation, i.Parent = "op-c", &agentv1.RbdSnapshotID{Image: rbdID("vms/base"), Name: "t1", Id: 1}
	}
	r.zfs.image("vms/used", ours)
	r.vmOnCeph(webID, "web", "a", debvisorv1.VMState_VM_STATE_SHUTOFF, "vms/used")
	_, err = r.storage.DeleteImage(t.Context(), &debvisorv1.ImageRef{Image: img("vms/used")})
	refusedAs(t, "a VM's disk", err, "IMAGE_IN_USE")
	r.zfs.image("vms/mother", func(i *agentv1.RbdImage) { ours(i); i.Children = []*agentv1.RbdImageID{rbdID("vms/child")} })
	_, err = r.storage.DeleteImage(t.Context(), &debvisorv1.ImageRef{Image: img("vms/mother")})
	refusedAs(t, "one with clones", err, "IMAGE_HAS_CLONES")
	r.zfs.image("vms/free", ours)
	flat, err := r.storage.FlattenImage(notWaiting(t, "flat"), &debvisorv1.ImageRef{Image: img("vms/free")})
	if err != nil || r.view.Current().Operations[flat.GetOperationId()].Value.GetChangeImage().GetClonedBy() != "op-c" {
		t.Fatalf("%v, %v", flat, err)
	}
	_, err = r.storage.DeleteImage(t.Context(), &debvisorv1.ImageRef{Image: img("vms/free")})
	refusedAs(t, "one that is flattened just now", err, "IN_USE")
	if _, err := r.storage.CreateSnapshot(notWaiting(t, "meanwhile"), &debvisorv1.SnapshotRequest{Dataset: img("vms/free")}); err != nil {
		t.Errorf("a snapshot while it is flattened: %v", err)
	}
	list, err := r.storage.ListImages(t.Context(), &debvisorv1.ImageFilter{Pool: "vms", Limit: 3})
	if err != nil || len(list.GetImages()) != 3 || list.GetNextPage() == "" || list.GetImages()[0].GetRef().GetName() != "base" || list.GetImages()[1].GetBusyOperationId() == "" {
		t.Fatalf("%v, %v", list, err)
	}
	rest, err := r.storage.ListImages(t.Context(), &debvisorv1.ImageFilter{Pool: "vms", Page: list.GetNextPage()})
	if err != nil || len(rest.GetImages()) != 2 || rest.GetImages()[0].GetVms()[0] != webID {
		t.Errorf("%v, %v", rest, err)
	}
	clones, err := r.storage.ListImages(t.Context(), &debvisorv1.ImageFilter{Parent: img("vms/base")})
	if err != nil || len(clones.GetImages()) != 4 {
		t.Errorf("%v, %v", clones, err)
	}
	pools, err := r.storage.ListStorage(t.Context(), &debvisorv1.StorageFilter{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Node: nodeRef("a")})
	if err != nil || len(pools.GetPools()) != 2 || pools.GetPools()[0].GetSizeBytes() != 100<<30 {
		t.Errorf("%v, %v", pools, err)
	}
}

// What is another tenant's is neither named nor touched, not even as a clone's
// parent, its users or its clones.
func TestImagesOfTenants(t *testing.T) {
	w := startWorld(t)
	acme, globex := w.of["acme"], w.of["globex"]
	w.zfs.image(acme.pool+"/d/c", func(i *agentv1.RbdImage) {
		i.Operation, i.Parent = "op-c", &agentv1.RbdSnapshotID{Image: rbdID(globex.pool + "/d/x"), Name: "s1", Id: 1}
		i.Children = []*agentv1.RbdImageID{rbdID(globex.pool + "/d/y")}
	}, "t")
	w.zfs.changeImage(acme.pool+"/d/c@t", func(s *agentv1.RbdSnapshot) {
		s.Template, s.Children = true, []*agentv1.RbdImageID{rbdID(globex.pool + "/d/y")}
	})
	confined := debvisorv1.NewStorageServiceClient(w.caller("operator", acme.tenant).conn)
	list, err := confined.ListImages(t.Context(), &debvisorv1.ImageFilter{})
	if err != nil || len(list.GetImages()) != 3 || strings.Contains(fmt.Sprint(list), globex.pool) {
		t.Errorf("%v, %v", list, err)
	}
	for what, call := range map[string]func() (proto.Message, error){
		"snapshots": func() (proto.Message, error) {
			return confined.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: img(acme.pool + "/d/c")})
		},
		"delete": func() (proto.Message, error) {
			return confined.DeleteSnapshots(t.Context(), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{imgSnap(acme.pool+"/d/c", "t")}})
		},
		"prune": func() (proto.Message, error) {
			return confined.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: img(acme.pool + "/d/c"), Policy: &debvisorv1.RetentionPolicy{KeepLast: 1}})
		},
		"image": func() (proto.Message, error) {
			return confined.DeleteImage(t.Context(), &debvisorv1.ImageRef{Image: img(acme.pool + "/d/c")})
		},
		"pools": func() (proto.Message, error) { return confined.ListStorage(t.Context(), &debvisorv1.StorageFilter{}) },
	} {
		answer, err := call()
		if text := fmt.Sprint(answer, err); strings.Contains(text, globex.pool) || strings.Contains(text, "1073741824") && what == "pools" {
			t.Errorf("%s tells %s", what, text)
		}
	}
	_, err = confined.CloneRbdFromTemplate(t.Context(), &debvisorv1.RbdCloneRequest{TemplateSnapshot: imgSnap(acme.pool+"/d/c", "t"), NewImage: img(globex.pool + "/d/new")})
	refusedAs(t, "a clone into another's", err, "DATASET_NOT_FOUND")
	_, err = confined.CloneRbdFromTemplate(t.Context(), &debvisorv1.RbdCloneRequest{TemplateSnapshot: imgSnap(globex.pool+"/d/x", "s1"), NewImage: img(acme.pool + "/d/new")})
	refusedAs(t, "a clone of another's", err, "DATASET_NOT_FOUND")
	begun, err := confined.CreateSnapshot(notWaiting(t, "own"), &debvisorv1.SnapshotRequest{Dataset: img(acme.pool + "/d/y")})
	if err != nil || w.view.Current().Operations[begun.GetOperationId()].Value.GetTenant() != acme.tenant {
		t.Errorf("%v, %v", begun, err)
	}
}
