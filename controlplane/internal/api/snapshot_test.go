package api_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// storageRig is a cluster of three nodes with ZFS: tank/x with s1 and s2 and
// tank/y are on a; tank/twin is on a and b; on c lies a copy of tank/x.
type storageRig struct {
	*replica
	storage debvisorv1.StorageServiceClient
}

func startStorage(t *testing.T) *storageRig {
	t.Helper()
	r := &storageRig{replica: start(t, 0)}
	r.lead()
	for _, id := range []string{"a", "b", "c"} {
		r.node(id, nil)
		r.zfs.dataset(id, &agentv1.ZfsDataset{Name: "tank", Guid: 1, AvailableBytes: 1 << 40})
	}
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "tank/x", Guid: 11, UsedBytes: 5}, "s1", "s2")
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "tank/x/below", Guid: 12, Type: agentv1.ZfsType_ZFS_TYPE_VOLUME, VolumeBytes: 9}, "s1")
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "tank/y", Guid: 13})
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "fast/z", Guid: 14})
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "tank/twin", Guid: 15})
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/twin", Guid: 16})
	r.zfs.dataset("c", &agentv1.ZfsDataset{Name: "tank/x", Guid: 17, ReplicationJob: "j0", ReadOnly: true})
	r.reportZFS("a", "b", "c")
	r.storage = debvisorv1.NewStorageServiceClient(r.principal("operator"))
	return r
}

func ds(path string, node ...string) *debvisorv1.DatasetRef {
	pool, name, _ := strings.Cut(path, "/")
	ref := &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: pool, Name: name}
	if len(node) > 0 {
		ref.Node = nodeRef(node[0])
	}
	return ref
}

func snap(path, name string, node ...string) *debvisorv1.SnapshotRef {
	return &debvisorv1.SnapshotRef{Dataset: ds(path, node...), SnapshotName: name}
}

// notWaiting is a request's context, with a request id of its own.
func notWaiting(t *testing.T, id string) context.Context {
	return metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none", "debvisor-request-id", id)
}

// finish ends an operation as a controller does.
func (r *storageRig) finish(id string, change func(*storev1.Operation), more ...store.Put) {
	r.t.Helper()
	op := proto.CloneOf(r.view.Current().Operations[id].Value)
	op.State, op.EndedAt = task.OpSucceeded, timestamppb.Now()
	if change != nil {
		change(op)
	}
	ended := store.Change{Puts: append(more, store.PutProto(store.OperationKey(id), op))}
	for _, resource := range op.GetResources() {
		ended.Deletes = append(ended.Deletes, store.InUseKey(resource))
	}
	revision, err := r.store.Commit(context.WithoutCancel(r.t.Context()), ended)
	if err == nil {
		err = r.view.Await(r.t.Context(), revision)
	}
	if err != nil {
		r.t.Error(err)
	}
}

// begun gives the operation of a kind that is at work.
func (r *storageRig) begun(kind string) *storev1.Operation {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		for _, op := range r.view.Current().ActiveOperations() {
			if op.Value.GetKind() == kind {
				return op.Value
			}
		}
	}
	r.t.Fatalf("no operation %s was begun", kind)
	return nil
}

// refusedAs holds an error against a code and, where the field is wrong, its name.
func refusedAs(t *testing.T, what string, err error, want string) {
	t.Helper()
	wantCode, field, _ := strings.Cut(want, " ")
	e := errdefs.FromStatus(err)
	if e == nil || e.Code != wantCode || field != "" && !strings.HasPrefix(e.Context["field"], field) || e.Message == "" {
		t.Errorf("%s: %v (%v), want %s", what, err, e, want)
	}
}

func TestCreateSnapshot(t *testing.T) {
	r := startStorage(t)
	done := make(chan *debvisorv1.SnapshotStatus, 1)
	go func() {
		status, err := r.storage.CreateSnapshot(withRequestID(t.Context(), "one"), &debvisorv1.SnapshotRequest{Dataset: ds("tank/x"), Label: "before"})
		if err != nil {
			t.Error(err)
		}
		done <- status
	}()
	op := r.begun("snapshot.create")
	take := op.GetTakeSnapshots()
	if take.GetNode() != "a" || !slices.Equal(take.GetDatasets(), []string{"tank/x"}) || take.GetLabel() != "before" || !cluster.OurSnapshotName(take.GetName()) ||
		!strings.HasSuffix(take.GetName(), op.GetId()[len(op.GetId())-8:]) || !slices.Equal(op.GetResources(), []string{"zfs/a/tank/x"}) {
		t.Errorf("written is %v", op)
	}
	_, err := r.storage.CreateSnapshot(notWaiting(t, "two"), &debvisorv1.SnapshotRequest{Dataset: ds("tank/x", "a")})
	refusedAs(t, "a second one", err, "IN_USE")
	r.finish(op.GetId(), nil)
	if status := <-done; status.GetSnapshot().GetSnapshotName() != take.GetName() || status.GetSnapshot().GetDataset().GetNode().GetNodeId().GetId() != "a" ||
		status.GetOperationId() != op.GetId() || !strings.Contains(status.GetMessage(), "tank/x") {
		t.Errorf("answered was %v", status)
	}
	again, err := r.storage.CreateSnapshot(withRequestID(t.Context(), "one"), &debvisorv1.SnapshotRequest{Dataset: ds("tank/x"), Label: "before"})
	if err != nil || again.GetSnapshot().GetSnapshotName() != take.GetName() || again.GetOperationId() != op.GetId() {
		t.Errorf("repeated: %v, %v", again, err)
	}
	_, err = r.storage.CreateSnapshot(withRequestID(t.Context(), "one"), &debvisorv1.SnapshotRequest{Dataset: ds("tank/y")})
	refusedAs(t, "its id for another", err, "REQUEST_ID_REUSED")
	seen, err := debvisorv1.NewOperationServiceClient(r.principal("operator")).GetOperation(t.Context(), &debvisorv1.OperationRef{Id: op.GetId()})
	if err != nil || seen.GetSnapshot().GetName() != take.GetName() || seen.GetSnapshot().GetLabel() != "before" {
		t.Errorf("%v, %v", seen, err)
	}
}

func TestAFailedSnapshotSaysWhy(t *testing.T) {
	r := startStorage(t)
	failed := make(chan error, 1)
	go func() {
		_, err := r.storage.CreateSnapshot(t.Context(), &debvisorv1.SnapshotRequest{Dataset: ds("tank/y")})
		failed <- err
	}()
	r.finish(r.begun("snapshot.create").GetId(), func(op *storev1.Operation) {
		op.State, op.ErrorCode, op.ErrorMessage = task.OpFailed, "NO_SPACE", "tank/y: out of space"
	})
	if e := errdefs.FromStatus(<-failed); e.Kind != errdefs.FailedPrecondition || e.Code != "NO_SPACE" || !strings.Contains(e.Message, "tank/y") {
		t.Errorf("got %v", e)
	}
}

// Names that ZFS has not are refused before anything is asked or written.
func TestNamesOfStorage(t *testing.T) {
	r := startStorage(t)
	long := strings.Repeat("x", 256)
	bad := map[string]*debvisorv1.DatasetRef{}
	for _, name := range []string{"..", "x/../y", "x@s1", "x#b", "x%recv", "x//y", "x/", "/x", "-r", "x\x00", "x\n", "x y\t", "ü", long} {
		bad["name "+name] = &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: "tank", Name: name}
	}
	for _, pool := range []string{"..", "tank/x", "tank@s", "-tank", "9", "tank%"} {
		bad["pool "+pool] = &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: pool, Name: "x"}
	}
	rules := &debvisorv1.RetentionPolicy{KeepLast: 1}
	for what, ref := range bad {
		part, _, _ := strings.Cut(what, " ")
		for method, call := range map[string]func() error{
			"dataset.": func() error {
				_, err := r.storage.CreateSnapshot(t.Context(), &debvisorv1.SnapshotRequest{Dataset: ref})
				return err
			},
			"datasets[1].": func() error {
				_, err := r.storage.CreateSnapshotSet(t.Context(), &debvisorv1.SnapshotSetRequest{Datasets: []*debvisorv1.DatasetRef{ds("tank/x"), ref}})
				return err
			},
			"dataset. ": func() error {
				_, err := r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: ref})
				return err
			},
			"dataset.  ": func() error {
				_, err := r.storage.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: ref, Policy: rules})
				return err
			},
			"snapshots[0].dataset.": func() error {
				_, err := r.storage.DeleteSnapshots(t.Context(), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{{Dataset: ref, SnapshotName: "s"}}})
				return err
			},
			"target_dataset.": func() error {
				_, err := r.storage.PlanZfsReplication(t.Context(), &debvisorv1.ZfsReplicationPlan{Dataset: ds("tank/x"), Target: nodeRef("b"), TargetDataset: ref})
				return err
			},
			"datasets[0].": func() error {
				_, err := r.storage.SetReplicationPolicy(t.Context(), &debvisorv1.ReplicationPolicySpec{
					Name: "p", Datasets: []*debvisorv1.DatasetRef{ref}, Targets: []*debvisorv1.ReplicationTarget{{Node: nodeRef("b")}},
				})
				return err
			},
			"datasets[0]. ": func() error {
				_, err := r.storage.SetRetentionPolicy(t.Context(), &debvisorv1.RetentionPolicySpec{Name: "p", Datasets: []*debvisorv1.DatasetRef{ref}, Rules: rules})
				return err
			},
		} {
			refusedAs(t, fmt.Sprintf("%s %q", method, what), call(), "INVALID_FIELD "+strings.TrimSpace(method)+part)
		}
	}
	for _, name := range []string{"..", "a@b", "a/b", "a%b", "-r", "a,b", "a\x00", strings.Repeat("s", 251)} {
		_, err := r.storage.GetSnapshot(t.Context(), snap("tank/x", name))
		refusedAs(t, fmt.Sprintf("snapshot %q", name), err, "INVALID_FIELD snapshot_name")
	}
	if len(r.zfs.asked) > 0 || len(r.view.Current().Operations) > 0 {
		t.Errorf("asked was %v", r.zfs.asked)
	}
}

func TestWhichDatasetIsMeant(t *testing.T) {
	r := startStorage(t)
	r.node("deaf", func(_ *storev1.Node, s *storev1.NodeStatus) {
		s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
	})
	r.zfs.dataset("deaf", &agentv1.ZfsDataset{Name: "tank/lost"})
	r.reportZFS("deaf")
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/new"}) // which no inventory has yet
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/" + strings.Repeat("l", 225)})
	r.zfs.dataset("c", &agentv1.ZfsDataset{Name: "tank/only-a-copy", ReplicationJob: "j1"}, "s1")
	r.reportZFS("c")
	create := func(ref *debvisorv1.DatasetRef) error {
		_, err := r.storage.CreateSnapshot(metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none"), &debvisorv1.SnapshotRequest{Dataset: ref})
		return err
	}
	for what, c := range map[string]struct {
		ref  *debvisorv1.DatasetRef
		want string
	}{
		"nobody has it":                  {ds("tank/none"), "DATASET_NOT_FOUND"},
		"that node has it not":           {ds("tank/y", "b"), "DATASET_NOT_FOUND"},
		"no such node":                   {ds("tank/y", "z"), "NODE_NOT_FOUND"},
		"two have it":                    {ds("tank/twin"), "AMBIGUOUS_DATASET"},
		"one of them":                    {ds("tank/twin", "b"), ""},
		"there, and not reported yet":    {ds("tank/new", "b"), ""},
		"not reported, no node said":     {ds("tank/new"), "DATASET_NOT_FOUND"},
		"a copy elsewhere is no owner":   {ds("tank/x"), ""},
		"a snapshot makes a copy differ": {ds("tank/x", "c"), "DATASET_IS_COPY"},
		"the only one is a copy":         {ds("tank/only-a-copy"), "DATASET_IS_COPY"},
		"its node is not heard":          {ds("tank/lost"), "NODE_NOT_REACHABLE"},
		"no room for snapshots' names":   {ds("tank/"+strings.Repeat("l", 225), "b"), "INVALID_FIELD dataset.name"},
	} {
		if err := create(c.ref); c.want == "" && err != nil {
			t.Errorf("%s: %v", what, err)
		} else if c.want != "" {
			refusedAs(t, what, err, c.want)
		}
	}
	if e := errdefs.FromStatus(create(ds("tank/twin"))); e.Context["nodes"] != "a,b" || e.Kind != errdefs.FailedPrecondition {
		t.Errorf("the candidates are %v", e)
	}
	if list, err := r.storage.ListSnapshots(t.Context(), &debvisorv1.SnapshotFilter{Dataset: ds("tank/only-a-copy"), All: true}); err != nil || len(list.GetSnapshots()) != 1 {
		t.Errorf("the only copy is meant: %v, %v", list, err)
	}
	r.zfs.silent["b"] = true
	refusedAs(t, "a node that cannot be asked", create(ds("tank/newer", "b")), "NO_SESSION")
}

func TestCreateSnapshotSet(t *testing.T) {
	r := startStorage(t)
	const web = "11111111-1111-4111-8111-111111111111"
	disks := func(all ...*debvisorv1.VMDisk) {
		r.put(store.PutProto(store.VMKey(web), &storev1.VM{Uuid: web, Name: "web", Node: "a", Generation: 1, Domain: encode(t, &agentv1.Domain{Uuid: web, Name: "web", Disks: all})}))
	}
	disk := func(target, path string) *debvisorv1.VMDisk {
		return &debvisorv1.VMDisk{Target: target, ZfsDataset: path}
	}
	set := func(id string, req *debvisorv1.SnapshotSetRequest) (*debvisorv1.SnapshotSetStatus, error) {
		return r.storage.CreateSnapshotSet(notWaiting(t, id), req)
	}
	vm := &debvisorv1.SnapshotSetRequest{Vm: &debvisorv1.VMRef{VmId: "web"}, Label: "l"}
	disks(disk("vda", "tank/x/below"), disk("vdb", "tank/y"), disk("vdc", "tank/y"), &debvisorv1.VMDisk{Target: "sda", Device: "cdrom", Source: "/iso"})
	status, err := set("vm", vm)
	if err != nil || len(status.GetSnapshots()) != 2 || status.GetSnapshots()[0].GetSnapshotName() != status.GetSnapshots()[1].GetSnapshotName() {
		t.Fatalf("%v, %v", status, err)
	}
	op := r.begun("snapshot.create")
	if take := op.GetTakeSnapshots(); take.GetVmUuid() != web || take.GetVmName() != "web" || !slices.Equal(take.GetDatasets(), []string{"tank/x/below", "tank/y"}) || len(op.GetResources()) != 2 {
		t.Errorf("written is %v", op)
	}
	r.finish(op.GetId(), nil)
	for what, all := range map[string][]*debvisorv1.VMDisk{
		"DISK_NOT_ON_ZFS none":     {},
		"DISK_NOT_ON_ZFS file":     {disk("vda", "tank/x"), {Target: "vdb", Source: "/local"}},
		"DISK_NOT_ON_ZFS gone":     {disk("vda", "tank/gone")},
		"SEVERAL_POOLS":            {disk("vda", "tank/x"), disk("vdb", "fast/z")},
		"DISK_NOT_ON_ZFS the pool": {disk("vda", "tank")},
	} {
		disks(all...)
		_, err := set(what, vm)
		wantCode, _, _ := strings.Cut(what, " ")
		refusedAs(t, what, err, wantCode)
		for _, d := range all {
			if (wantCode == "SEVERAL_POOLS" || d.GetTarget() == "vdb") && !strings.Contains(fmt.Sprint(err), d.GetTarget()) {
				t.Errorf("%s: %v does not name %s", what, err, d.GetTarget())
			}
		}
	}
	for what, c := range map[string]struct {
		req  *debvisorv1.SnapshotSetRequest
		want string
	}{
		"nothing":          {&debvisorv1.SnapshotSetRequest{}, "INVALID_FIELD datasets"},
		"both":             {&debvisorv1.SnapshotSetRequest{Vm: vm.GetVm(), Datasets: []*debvisorv1.DatasetRef{ds("tank/x")}}, "INVALID_FIELD datasets"},
		"two nodes":        {&debvisorv1.SnapshotSetRequest{Datasets: []*debvisorv1.DatasetRef{ds("tank/x"), ds("tank/twin", "b")}}, "SEVERAL_NODES"},
		"two pools":        {&debvisorv1.SnapshotSetRequest{Datasets: []*debvisorv1.DatasetRef{ds("tank/x"), ds("fast/z")}}, "SEVERAL_POOLS"},
		"no VM":            {&debvisorv1.SnapshotSetRequest{Vm: &debvisorv1.VMRef{VmId: "none"}}, "VM_NOT_FOUND"},
		"a label of lines": {&debvisorv1.SnapshotSetRequest{Datasets: []*debvisorv1.DatasetRef{ds("tank/x")}, Label: "a\nb"}, "INVALID_FIELD label"},
		"a label of none":  {&debvisorv1.SnapshotSetRequest{Datasets: []*debvisorv1.DatasetRef{ds("tank/x")}, Label: "-"}, "INVALID_FIELD label"},
	} {
		_, err := set(what, c.req)
		refusedAs(t, what, err, c.want)
	}
	named, err := set("named", &debvisorv1.SnapshotSetRequest{Datasets: []*debvisorv1.DatasetRef{ds("tank/y"), ds("tank/x"), ds("tank/y", "a")}})
	if err != nil || len(named.GetSnapshots()) != 2 {
		t.Errorf("%v, %v", named, err)
	}
}

func TestListSnapshots(t *testing.T) {
	r := startStorage(t)
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "tank/many"}, "p1", "p2", "p3", "p4", "q5")
	r.zfs.change("a", "tank/many@p3", func(s *agentv1.ZfsSnapshot) { s.Operation, s.Label = "", "" })
	r.zfs.change("a", "tank/many@p1", func(s *agentv1.ZfsSnapshot) { s.Created += 1 << 20 })
	names := func(f *debvisorv1.SnapshotFilter) (text, next string) {
		t.Helper()
		list, err := r.storage.ListSnapshots(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.GetSnapshots() {
			text += " " + s.GetRef().GetSnapshotName()
		}
		return strings.TrimSpace(text), list.GetNextPage()
	}
	many := ds("tank/many", "a")
	for want, f := range map[string]*debvisorv1.SnapshotFilter{
		"p2 p4 q5 p1":    {Dataset: many},
		"p2 p3 p4 q5 p1": {Dataset: many, All: true},
		"p4":             {Dataset: many, Pattern: "label-p4"},
		"p2 p4 p1":       {Dataset: many, Pattern: "p*"},
		"s1 s2 s1":       {Dataset: ds("tank/x"), Recursive: true},
		"s1 s2":          {Dataset: ds("tank/x")},
		"":               {Dataset: ds("tank/y")},
	} {
		if got, next := names(f); got != want || next != "" {
			t.Errorf("%v gives %q and %q, want %q", f, got, next, want)
		}
	}
	first, page := names(&debvisorv1.SnapshotFilter{Dataset: many, Limit: 3})
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "tank/many"}, "r6")
	if second, end := names(&debvisorv1.SnapshotFilter{Dataset: many, Limit: 3, Page: page}); first != "p2 p4 q5" || second != "r6 p1" || end != "" {
		t.Errorf("pages are %q, %q, %q", first, second, end)
	}
	for what, f := range map[string]*debvisorv1.SnapshotFilter{
		"page": {Dataset: many, Page: "x"}, "pattern": {Dataset: many, Pattern: "["}, "limit": {Dataset: many, Limit: 10001},
		"dataset.backend": {Dataset: &debvisorv1.DatasetRef{Pool: "tank", Name: "x"}},
	} {
		_, err := r.storage.ListSnapshots(t.Context(), f)
		refusedAs(t, what, err, "INVALID_FIELD "+what)
	}
	one, err := r.storage.GetSnapshot(t.Context(), snap("tank/x", "s2"))
	if err != nil || one.GetLabel() != "label-s2" || one.GetOperationId() != "op-of-s2" || one.GetGuid() != "1002" || one.GetUsedBytes() != 10 {
		t.Errorf("%v, %v", one, err)
	}
	_, err = r.storage.GetSnapshot(t.Context(), snap("tank/x", "none"))
	refusedAs(t, "none", err, "SNAPSHOT_NOT_FOUND")
}

func TestListStorage(t *testing.T) {
	r := startStorage(t)
	const web = "11111111-1111-4111-8111-111111111111"
	r.put(store.PutProto(store.VMKey(web), &storev1.VM{Uuid: web, Name: "web", Node: "a", Domain: encode(t, &agentv1.Domain{
		Uuid: web, Disks: []*debvisorv1.VMDisk{{Target: "vda", ZfsDataset: "tank/x/below"}, {Target: "vdb", ZfsDataset: "tank/x/below"}},
	})}))
	r.node("deaf", func(_ *storev1.Node, s *storev1.NodeStatus) {
		s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
	})
	r.zfs.dataset("deaf", &agentv1.ZfsDataset{Name: "old/d", Encrypted: true, Origin: "old/e@s", Guid: 9})
	r.reportZFS("deaf")
	all, err := r.storage.ListStorage(t.Context(), &debvisorv1.StorageFilter{})
	if err != nil || len(all.GetPools()) != 5 || len(all.GetDatasets()) != 11 {
		t.Fatalf("%v, %v", all, err)
	}
	last := all.GetPools()[4]
	if last.GetName() != "old" || last.GetStaleBecause() == "" || last.GetVersion() != "2.4.4" || all.GetPools()[0].GetStaleBecause() != "" {
		t.Errorf("the last pool is %v", last)
	}
	one, err := r.storage.ListStorage(t.Context(), &debvisorv1.StorageFilter{Node: nodeRef("a"), Pool: "tank"})
	if err != nil || len(one.GetPools()) != 1 || len(one.GetDatasets()) != 5 {
		t.Fatalf("%v, %v", one, err)
	}
	for _, d := range one.GetDatasets() {
		if is := d.GetRef().GetName() == "x/below"; is != (len(d.GetVms()) == 1 && d.GetVms()[0] == web) || is != d.GetVolume() || is != (d.GetVolumeBytes() == 9) {
			t.Errorf("%v", d)
		}
	}
	none, err := r.storage.ListStorage(t.Context(), &debvisorv1.StorageFilter{Backend: debvisorv1.StorageBackend_BACKEND_RBD})
	if err != nil || len(none.GetPools())+len(none.GetDatasets()) != 0 {
		t.Errorf("%v, %v", none, err)
	}
	_, err = r.storage.ListStorage(t.Context(), &debvisorv1.StorageFilter{Pool: "a@b"})
	refusedAs(t, "a pool's name", err, "INVALID_FIELD pool")
	_, err = r.storage.ListStorage(t.Context(), &debvisorv1.StorageFilter{Node: nodeRef("none")})
	refusedAs(t, "a node", err, "NODE_NOT_FOUND")
}

// TestTooManyToGoTogether: what one task of an agent cannot destroy together is refused whole, not done in parts.
func TestTooManyToGoTogether(t *testing.T) {
	const most = 500
	r := startStorage(t)
	req := &debvisorv1.DeleteSnapshotsRequest{}
	for i := range most + 1 {
		req.Snapshots = append(req.Snapshots, snap("tank/x", fmt.Sprint("s", i)))
	}
	if _, err := r.storage.DeleteSnapshots(t.Context(), req); err == nil || !strings.Contains(err.Error(), "at most 500 of ZFS at once") {
		t.Errorf("%d snapshots: %v", len(req.GetSnapshots()), err)
	}
	req.Snapshots = req.Snapshots[:most]
	_, err := r.storage.DeleteSnapshots(t.Context(), req)
	refusedAs(t, "they are not there", err, "SNAPSHOT_NOT_FOUND")
}
