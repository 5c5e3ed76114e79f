package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// asked is a request of a method, by its full name.
type asked struct {
	method  string
	request proto.Message
}

// entangle makes acme's things touch those of others in every way that a cluster
// allows, and gives the requests whose answers tell of it.
func (w *world) entangle() []asked {
	w.t.Helper()
	acme, globex, nobody := w.of["acme"], w.of["globex"], w.of["nobody"]
	local := func(node string) func(*agentv1.Domain, *storev1.VM) {
		return func(d *agentv1.Domain, vm *storev1.VM) {
			vm.Node = node
			d.Disks = []*debvisorv1.VMDisk{{Target: "vda", Type: "file", Source: "/local/disk", Format: "qcow2"}}
		}
	}
	// One name, one disk's path.
	twin, beside, there, named := uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()
	w.own(acme, twin, "twin", local("a"))
	w.own(globex, beside, "beside-"+globex.secret, local("a"))
	w.own(nobody, there, "there-"+nobody.secret, local("b"))
	w.own(globex, named, "twin", local("b"))
	globex.more = append(globex.more, beside, named)
	nobody.more = append(nobody.more, there)
	// One that was another's, at work on by what that one began, and in conflict.
	given := uuid.NewString()
	w.own(acme, given, "given", func(_ *agentv1.Domain, vm *storev1.VM) { vm.ConflictNodes = []string{"a", "b"} })
	// A move as part of what an operator asked for, with libvirt's own words.
	words := "domain 'vm-" + globex.secret + "' already exists with uuid " + globex.idle +
		"; PCI device 0000:01:00.0 is in use by driver QEMU, domain vm-" + nobody.secret + ", see " + nobody.operation + " and " + globex.plan
	evacuation := w.view.Current().InUse["evacuation/a"].Value
	failed := w.move(acme)
	failed.Id, failed.State, failed.EndedAt = operationID(w.t), task.OpFailed, timestamppb.Now()
	failed.Parent, failed.Step, failed.ErrorCode, failed.ErrorMessage = evacuation, words, "MIGRATION_FAILED", words
	failed.ErrorContext = map[string]string{"vm": acme.vm, "why": words}
	failed.GetMigrate().PlanId = globex.plan
	part := w.move(acme)
	part.Id, part.Parent, part.GetMigrate().SwitchedOver = operationID(w.t), evacuation, false
	w.put(
		store.PutString(store.InUseKey("vm/"+given), globex.operation),
		store.PutProto(store.OperationKey(failed.GetId()), failed), store.PutProto(store.OperationKey(part.GetId()), part),
	)
	w.node("a", func(n *storev1.Node, _ *storev1.NodeStatus) {
		n.Cordoned, n.CordonReason = true, "evacuated by operator"
	})
	w.tangle = tangle{twin: twin, given: given, failed: failed.GetId(), part: part.GetId()}
	return append(w.tangle.requests(globex), w.entangleStorage()...)
}

// entangleStorage makes acme's datasets touch those of others.
func (w *world) entangleStorage() []asked {
	w.t.Helper()
	acme, globex, nobody := w.of["acme"], w.of["globex"], w.of["nobody"]
	path, ref := acme.pool+"/d/t", ds(acme.pool+"/d/t", "a")
	w.zfs.dataset("a", &agentv1.ZfsDataset{Name: path, Guid: 50, Origin: globex.pool + "/d/x@s1", ReplicationJob: globex.job, Partial: true}, "t1", "t2", "t3")
	w.zfs.change("a", path+"@t1", func(s *agentv1.ZfsSnapshot) {
		s.Holds, s.Clones = []string{"debvisor:" + globex.job, "theirs"}, []string{nobody.pool + "/d/x", acme.pool + "/d/y"}
	})
	w.zfs.change("a", path+"@t2", func(s *agentv1.ZfsSnapshot) { s.Guid = 51 })
	w.zfs.dataset("b", &agentv1.ZfsDataset{Name: acme.pool + "/d/z", Guid: 52, ReplicationJob: nobody.job}, "z1")
	w.reportZFS("a", "b")
	words := path + " is busy: cloned by " + globex.pool + "/d/x, held by debvisor:" + nobody.operation
	op := &storev1.Operation{
		Id: operationID(w.t), Kind: "snapshot.prune", State: task.OpFailed, Tenant: acme.tenant, CreatedAt: timestamppb.Now(), EndedAt: timestamppb.Now(),
		ErrorCode: "DATASET_BUSY", ErrorMessage: words, Step: words, ErrorContext: map[string]string{"clones": globex.pool + "/d/x@s1"},
		Detail: &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{Node: "a", Datasets: []string{path}, KeptBecause: [][]byte{
			encode(w.t, &agentv1.ZfsKept{Snapshot: &agentv1.ZfsSnapshotID{Dataset: path, Name: "t1"}, Reason: words}),
		}}},
	}
	own := &storev1.ReplicationJob{
		Id: "own-of-" + acme.tenant, Source: "a", Target: "b", Dataset: path, TargetDataset: acme.pool + "/d/z", Tenant: acme.tenant, CreatedAt: timestamppb.Now(),
		LastErrorCode: "TARGET_UNRELATED", LastError: "it is the copy of job " + nobody.job + ", see " + globex.pool + "/d/x",
	}
	w.put(
		store.PutProto(store.OperationKey(op.GetId()), op), store.PutProto(store.ReplicationKey(own.GetId()), own),
		store.PutProto(store.ReplicationKey("hidden-"+globex.secret), &storev1.ReplicationJob{
			Id: "hidden-" + globex.secret, Source: "a", Target: "b", Dataset: path, TargetDataset: globex.pool + "/t", CursorGuid: 51,
		}),
		store.PutProto(store.ReplicationKey("taken-"+nobody.secret), &storev1.ReplicationJob{
			Id: "taken-" + nobody.secret, Source: "b", Target: "a", Dataset: nobody.pool + "/d/x", TargetDataset: acme.pool + "/d/taken",
		}),
	)
	rules := &debvisorv1.RetentionPolicy{KeepLast: 1}
	plan := func(copied string) *debvisorv1.ZfsReplicationPlan {
		return &debvisorv1.ZfsReplicationPlan{Dataset: ref, Target: nodeRef("b"), TargetDataset: ds(acme.pool + copied), Options: &debvisorv1.ReplicationOptions{NoSnapshot: true}}
	}
	taken := plan("/d/taken")
	taken.Dataset, taken.Target = ds(acme.pool+"/d/z", "b"), nodeRef("a")
	return []asked{
		{debvisorv1.OperationService_GetOperation_FullMethodName, &debvisorv1.OperationRef{Id: op.GetId()}},
		{debvisorv1.StorageService_GetReplicationStatus_FullMethodName, &debvisorv1.JobRef{JobId: own.GetId()}},
		{debvisorv1.StorageService_ListSnapshots_FullMethodName, &debvisorv1.SnapshotFilter{Dataset: ref, All: true}},
		{debvisorv1.StorageService_GetSnapshot_FullMethodName, snap(path, "t1", "a")},
		{debvisorv1.StorageService_PlanPrune_FullMethodName, &debvisorv1.PruneRequest{Dataset: ref, Policy: rules}},
		{debvisorv1.StorageService_DeleteSnapshots_FullMethodName, &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{
			snap(path, "t1", "a"), snap(path, "t2", "a"), snap(path, "t3", "a"),
		}}},
		{debvisorv1.StorageService_CreateSnapshot_FullMethodName, &debvisorv1.SnapshotRequest{Dataset: ref}},
		{debvisorv1.StorageService_PlanZfsReplication_FullMethodName, plan("/d/z")},
		{debvisorv1.StorageService_PlanZfsReplication_FullMethodName, taken},
	}
}

// tangle are acme's things that touch others'.
type tangle struct{ twin, given, failed, part string }

func (e tangle) requests(other *objects) []asked {
	ref := func(vm string) *debvisorv1.VMRef { return &debvisorv1.VMRef{VmId: vm} }
	all := []asked{
		{debvisorv1.MigrationService_PrepareMigration_FullMethodName, &debvisorv1.VMMigratePlan{Vm: ref(e.twin)}},
		{debvisorv1.MigrationService_MigrateVM_FullMethodName, &debvisorv1.VMMigrateSpec{Vm: ref(e.twin), Target: nodeRef("b")}},
		{debvisorv1.MigrationService_MigrateVM_FullMethodName, &debvisorv1.VMMigrateSpec{Vm: ref(e.given)}},
		{debvisorv1.MigrationService_PrepareMigration_FullMethodName, &debvisorv1.VMMigratePlan{Vm: ref(e.given)}},
		{debvisorv1.VMService_StartVM_FullMethodName, ref(e.given)},
		{debvisorv1.VMService_GetVM_FullMethodName, ref(e.given)},
		{debvisorv1.VMService_SetVMAutostart_FullMethodName, &debvisorv1.VMAutostartRequest{Vm: ref(e.given)}},
		{debvisorv1.OperationService_ListOperations_FullMethodName, &debvisorv1.OperationFilter{Kind: "evacuate"}},
		{debvisorv1.OperationService_ListOperations_FullMethodName, &debvisorv1.OperationFilter{Resource: "vm/" + other.vm}},
		{debvisorv1.VMService_ListVMs_FullMethodName, &debvisorv1.VMFilter{Name: "vm-" + other.secret}},
		{debvisorv1.VMService_ListVMs_FullMethodName, &debvisorv1.VMFilter{Name: "db"}},
		{debvisorv1.VMService_GetVM_FullMethodName, ref("db")},
	}
	for _, id := range []string{e.failed, e.part} {
		for _, name := range []string{
			debvisorv1.OperationService_GetOperation_FullMethodName, debvisorv1.OperationService_WatchOperation_FullMethodName,
			debvisorv1.OperationService_CancelOperation_FullMethodName,
		} {
			all = append(all, asked{name, &debvisorv1.OperationRef{Id: id}})
		}
	}
	return all
}

// TestATenantReadsNothingOfOthers collects every byte that a caller who is
// confined to a tenant gets by any method, and looks for others' words in them.
func TestATenantReadsNothingOfOthers(t *testing.T) {
	w := startWorld(t)
	entangled := w.entangle()
	acme, globex, nobody := w.of["acme"], w.of["globex"], w.of["nobody"]
	confined, free := w.caller("operator", acme.tenant), w.caller("operator", "")
	everything := map[string]bool{}
	for _, m := range registered(t, w.server) {
		if m.name == agentv1.EnrollService_Enroll_FullMethodName {
			continue
		}
		var requests []proto.Message
		for _, kind := range []string{"acme", "none"} {
			requests = append(requests, fixtures()[m.name].request(w.of[kind]))
		}
		for _, a := range entangled {
			if a.method == m.name {
				requests = append(requests, a.request)
			}
		}
		for _, request := range requests {
			got := bytesOf(m.call(t.Context(), confined.conn, request))
			for _, other := range []*objects{globex, nobody} {
				for _, secret := range other.secrets() {
					if strings.Contains(got, secret) {
						t.Errorf("%s of %v tells of another's %s:\n%q", m.name, request, secret, got)
					}
				}
			}
		}
		// Whoever is not confined sees it all, or the test would prove nothing.
		for _, kind := range []string{"acme", "globex", "nobody"} {
			requests = append(requests, fixtures()[m.name].request(w.of[kind]))
		}
		for _, request := range requests {
			got := bytesOf(m.call(t.Context(), free.conn, request))
			for _, o := range []*objects{acme, globex, nobody} {
				for _, secret := range o.secrets() {
					everything[secret] = everything[secret] || strings.Contains(got, secret)
				}
			}
		}
	}
	for _, o := range []*objects{acme, globex, nobody} {
		for _, secret := range o.secrets() {
			if !everything[secret] {
				t.Errorf("nobody can read %s of %s, so that it proves nothing", secret, o.tenant)
			}
		}
	}
}

// bytesOf is all that came of a call: the message, its metadata, the error with
// its details.
func bytesOf(back *reply, err error) string {
	message, bad := proto.Marshal(back.message)
	failure, worse := proto.Marshal(status.Convert(err).Proto())
	if bad != nil || worse != nil {
		panic("an answer that was decoded can be encoded")
	}
	var all strings.Builder
	all.Write(message)
	all.Write(failure)
	for _, md := range []map[string][]string{back.header, back.trailer} {
		for key, values := range md {
			all.WriteString(key + " " + strings.Join(values, " ") + "\n")
		}
	}
	return all.String()
}

// What a confined caller does read of its own entangled things.
func TestATenantReadsItsOwn(t *testing.T) {
	w := startWorld(t)
	w.entangle()
	acme, globex := w.of["acme"], w.of["globex"]
	of := func(o *objects) (debvisorv1.VMServiceClient, debvisorv1.OperationServiceClient) {
		conn := w.caller("operator", o.tenant).conn
		return debvisorv1.NewVMServiceClient(conn), debvisorv1.NewOperationServiceClient(conn)
	}
	vms, operations := of(acme)
	failed, err := operations.GetOperation(t.Context(), &debvisorv1.OperationRef{Id: w.tangle.failed})
	const want = "domain '(another's)' already exists with uuid (another's); PCI device 0000:01:00.0 is in use by driver QEMU, domain (another's), see (another's) and (another's)"
	if err != nil || failed.GetError().GetMessage() != want || failed.GetError().GetContext()["vm"] != acme.vm || failed.GetParentId() != "" ||
		failed.GetMigration().GetPlanId() != "" || failed.GetStep() != want {
		t.Errorf("%v, %v", failed, err)
	}
	own, err := operations.GetOperation(t.Context(), &debvisorv1.OperationRef{Id: acme.operation})
	if err != nil || own.GetMigration().GetPlanId() != acme.plan || own.GetStep() != "copying "+acme.secret {
		t.Errorf("%v, %v", own, err)
	}
	for _, o := range []*objects{acme, globex} {
		vms, _ := of(o)
		if vm, err := vms.GetVM(t.Context(), &debvisorv1.VMRef{VmId: "db"}); err != nil || vm.GetId() != o.vm || vm.GetOperationId() != o.operation {
			t.Errorf("db of %s: %v, %v", o.tenant, vm, err)
		}
	}
	free := debvisorv1.NewVMServiceClient(w.caller("operator", "").conn)
	if _, err := free.GetVM(t.Context(), &debvisorv1.VMRef{VmId: "db"}); code(err) != "VM_NAME_AMBIGUOUS" {
		t.Errorf("three are called db: %v", err)
	}
	if vm, err := vms.GetVM(t.Context(), &debvisorv1.VMRef{VmId: w.tangle.given}); err != nil || vm.GetOperationId() != "" {
		t.Errorf("one that another's operation holds: %v, %v", vm, err)
	}
	if _, err := vms.SetVMAutostart(t.Context(), &debvisorv1.VMAutostartRequest{Vm: &debvisorv1.VMRef{VmId: w.tangle.given}}); code(err) != "IN_USE" {
		t.Errorf("one that another's operation holds: %v", err)
	}
	if _, err := operations.CancelOperation(t.Context(), &debvisorv1.OperationRef{Id: w.tangle.part}); code(err) != "PART_OF_MORE" {
		t.Errorf("a part of an operator's evacuation: %v", err)
	}
	if w.view.Current().Operations[w.tangle.part].Value.GetCancelRequested() {
		t.Error("it is being cancelled")
	}
	lists(t, w, acme)
}

// lists compares what lists have for a tenant with the records.
func lists(t *testing.T, w *world, o *objects) {
	t.Helper()
	conn := w.caller("operator", o.tenant).conn
	vms, err := debvisorv1.NewVMServiceClient(conn).ListVMs(t.Context(), &debvisorv1.VMFilter{})
	if want := len(slices.Collect(w.view.Current().Within(o.tenant).VMs())); err != nil || len(vms.GetVms()) != want || want != 4 {
		t.Errorf("%d VMs, want %d: %v", len(vms.GetVms()), want, err)
	}
	node, err := debvisorv1.NewNodeServiceClient(conn).GetNode(t.Context(), nodeRef("a"))
	if err != nil || len(node.GetVms()) != 4 || node.GetSummary().GetRunningVms() != 9 {
		t.Errorf("%v, %v", node, err)
	}
	operations, err := debvisorv1.NewOperationServiceClient(conn).ListOperations(t.Context(), &debvisorv1.OperationFilter{Limit: 3})
	if err != nil || len(operations.GetOperations()) != 3 {
		t.Errorf("a limit counts what can be seen: %v, %v", operations, err)
	}
	migrations := debvisorv1.NewMigrationServiceClient(conn)
	list, err := migrations.ListPlans(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetPlans()) != 1 || list.GetPlans()[0].GetId() != o.plan {
		t.Errorf("%v, %v", list, err)
	}
	plan, err := migrations.PrepareMigration(t.Context(), &debvisorv1.VMMigratePlan{Vm: &debvisorv1.VMRef{VmId: "twin"}})
	for _, text := range []string{"another VM uses it too", "another VM there is called twin too", "another VM uses that path on the node"} {
		if err != nil || !strings.Contains(plan.String(), text) {
			t.Errorf("the plan does not say %q: %v, %v", text, plan, err)
		}
	}
	evacuation, err := migrations.PlanEvacuation(t.Context(), &debvisorv1.EvacuationPlanRequest{Node: nodeRef("a")})
	if err != nil || len(evacuation.GetMoves().GetMoves())+len(evacuation.GetMoves().GetBlocked()) != 4 {
		t.Fatalf("%v, %v", evacuation, err)
	}
	if _, err := migrations.ExecutePlan(t.Context(), &debvisorv1.PlanRef{PlanId: evacuation.GetId()}); code(err) != "CONFINED" {
		t.Errorf("to carry out the evacuation of a node: %v", err)
	}
}
