package api_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	onImage   = "21111111-1111-4111-8111-111111111111"
	onReplica = "31111111-1111-4111-8111-111111111111"
)

// startLost starts a front door to a cluster whose node a is lost: with it "web",
// whose disk is image vms/web, and "db", whose disk is tank/db, replicated to b.
func startLost(t *testing.T) *replica {
	t.Helper()
	r := start(t, 0)
	r.lead()
	lost := func(_ *storev1.Node, s *storev1.NodeStatus) {
		s.Liveness, s.BootId = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, "boot-a"
	}
	r.node("a", lost)
	r.node("b", nil)
	r.zfs.image("vms/web", nil)
	r.reportCeph(fsid, []string{"vms"}, "a", "b")
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "back/db", Guid: 77, ReplicationJob: "j"}, "s1")
	r.reportZFS("b")
	r.lostVM(onImage, "web", &debvisorv1.VMDisk{Target: "vda", Type: "network", Source: "vms/web", Shared: true, StorageId: "rbd:" + fsid + "/vms"})
	r.lostVM(onReplica, "db", &debvisorv1.VMDisk{Target: "vda", Type: "block", Source: "/dev/zvol/tank/db", ZfsDataset: "tank/db", Format: "raw"})
	r.put(store.PutProto(store.ReplicationKey("j"), &storev1.ReplicationJob{
		Id: "j", Source: "a", Dataset: "tank/db", Target: "b", TargetDataset: "back/db", DatasetGuid: 7, CursorName: "s1", CursorGuid: 1001,
		CursorCreated: timestamppb.Now(), CreatedAt: timestamppb.Now(),
	}))
	return r
}

func (r *replica) lostVM(uuid, name string, disk *debvisorv1.VMDisk) {
	r.t.Helper()
	domain := &agentv1.Domain{Uuid: uuid, Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: gib, Persistent: true, Disks: []*debvisorv1.VMDisk{disk}}
	r.put(store.PutProto(store.VMKey(uuid), &storev1.VM{Uuid: uuid, Name: name, Node: "a", Generation: 3, Domain: encode(r.t, domain)}),
		store.PutProto(store.DefinitionKey(uuid), &storev1.Definition{VmUuid: uuid, Node: "a", Generation: 3, Xml: "<domain/>"}))
}

// setNode changes how a node stands.
func (r *replica) setNode(id string, change func(*storev1.NodeStatus)) {
	r.t.Helper()
	status := proto.CloneOf(r.view.Current().Statuses[id].Value)
	change(status)
	r.put(store.PutProto(store.StatusKey(id), status))
}

// TestWhyAFailoverIsRefused: each with its own reason, and nothing is begun.
func TestWhyAFailoverIsRefused(t *testing.T) {
	r := startLost(t)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	refused := func(what string, req *debvisorv1.FailoverRequest, want string) {
		t.Helper()
		_, err := migrations.ExecuteFailover(t.Context(), req)
		e := errdefs.FromStatus(err)
		if e == nil || e.Kind != errdefs.FailedPrecondition || e.Code != "FAILOVER_NOT_ALLOWED" || e.Context["reasons"] != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
		plan, err := migrations.PlanFailover(t.Context(), req)
		if err != nil || plan.GetAllowed() || plan.GetMessage() == "" {
			t.Errorf("%s: the plan is %v, %v", what, plan, err)
		}
	}
	web, db := &debvisorv1.VMRef{VmId: "web"}, &debvisorv1.VMRef{VmId: "db"}
	refused("no proof", &debvisorv1.FailoverRequest{Vm: db, AcceptDataLossSeconds: 1 << 40}, "NO_PROOF")
	refused("nobody has said how much may be lost", &debvisorv1.FailoverRequest{Vm: db, NodeIsOff: true}, "DATA_LOSS_NOT_ACCEPTED")
	refused("stale", &debvisorv1.FailoverRequest{Vm: db, NodeIsOff: true, AcceptDataLossSeconds: 60}, "DATA_TOO_OLD")
	refused("all at once", &debvisorv1.FailoverRequest{Vm: db}, "NO_PROOF,DATA_LOSS_NOT_ACCEPTED")

	r.zfs.mu.Lock()
	r.zfs.ceph.Images[0].Features = nil
	r.zfs.mu.Unlock()
	refused("nobody can be fenced", &debvisorv1.FailoverRequest{Vm: web}, "NO_EXCLUSIVE_LOCK")
	r.zfs.cephDown["b"] = true
	refused("a dead cluster", &debvisorv1.FailoverRequest{Vm: web}, "CEPH_DOWN")
	r.zfs.mu.Lock()
	r.zfs.cephDown["b"], r.zfs.ceph.Images = false, nil
	r.zfs.mu.Unlock()
	refused("no such image", &debvisorv1.FailoverRequest{Vm: web}, "IMAGE_NOT_FOUND")

	r.zfs.change("b", "back/db@s1", func(s *agentv1.ZfsSnapshot) { s.Guid = 5 })
	refused("another replica", &debvisorv1.FailoverRequest{Vm: db, NodeIsOff: true, AcceptDataLossSeconds: 1 << 40}, "b:REPLICA_NOT_THERE")

	r.setNode("a", func(s *storev1.NodeStatus) { s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_SUSPECT })
	refused("its node is reachable", &debvisorv1.FailoverRequest{Vm: db, NodeIsOff: true, AcceptDataLossSeconds: 1 << 40, Target: nodeRef("b")}, "NODE_REACHABLE,b:REPLICA_NOT_THERE")
	_, err := migrations.FailoverVM(t.Context(), web)
	if e := errdefs.FromStatus(err); e == nil || !strings.HasPrefix(e.Context["reasons"], "NODE_REACHABLE") {
		t.Errorf("its node is reachable: %v", err)
	}
	if n := len(r.view.Current().Operations); n != 0 {
		t.Errorf("refusals left %d operations", n)
	}
}

// TestAFailoverIsBegunOnce: twice at once the second is told of the first, and what
// it was asked with is in its record, as how its node stood.
func TestAFailoverIsBegunOnce(t *testing.T) {
	r := startLost(t)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	plan, err := migrations.PlanFailover(t.Context(), &debvisorv1.FailoverRequest{Vm: &debvisorv1.VMRef{VmId: "db"}, NodeIsOff: true, AcceptDataLossSeconds: 1 << 40})
	if err != nil || !plan.GetAllowed() || plan.GetTarget().GetNodeId().GetId() != "b" || len(plan.GetDisks()) != 1 || len(plan.GetProof()) != 1 ||
		!strings.Contains(plan.GetProof()[0], "by the word of operator") || plan.GetDisks()[0].GetReplica().GetPool() != "back" || plan.GetDataAgeSeconds() == 0 {
		t.Fatalf("%v: %v", plan, err)
	}
	noWait := metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none")
	var wg sync.WaitGroup
	answers := make([]*debvisorv1.FailoverResult, 2)
	errs := make([]error, 2)
	for i := range answers {
		wg.Go(func() {
			answers[i], errs[i] = migrations.ExecuteFailover(noWait, &debvisorv1.FailoverRequest{Vm: &debvisorv1.VMRef{VmId: "db"}, NodeIsOff: true, AcceptDataLossSeconds: 1 << 40})
		})
	}
	wg.Wait()
	at := slices.IndexFunc(errs, func(err error) bool { return err == nil })
	if at < 0 || errs[1-at] == nil {
		t.Fatalf("%v", errs)
	}
	if e := errdefs.FromStatus(errs[1-at]); e.Kind != errdefs.Aborted || e.Context["operation"] != answers[at].GetOperationId() {
		t.Errorf("the second is refused with %v", errs[1-at])
	}
	op := r.view.Current().Operations[answers[at].GetOperationId()].Value
	f, disk := op.GetFailover(), &agentv1.FailoverDisk{}
	if len(f.GetDisks()) != 1 || proto.Unmarshal(f.GetDisks()[0], disk) != nil {
		t.Fatalf("%v", f)
	}
	if op.GetKind() != "failover" || op.GetState() != task.OpPending || !slices.Equal(op.GetResources(), []string{"vm/" + onReplica}) || !f.GetNodeIsOff() ||
		f.GetSource() != "a" || f.GetTarget() != "b" || f.GetGeneration() != 3 || f.GetSourceBootId() != "boot-a" || f.GetSourceLastSeen() == nil || !f.GetStart() ||
		disk.GetSnapshot().GetGuid() != 1001 || disk.GetReverseJobId() != "j-back" {
		t.Errorf("%v: %v", op, disk)
	}

	// The image's id goes with it: no other of the same name is fenced, or started from.
	done, err := migrations.FailoverVM(noWait, &debvisorv1.VMRef{VmId: "web"})
	if err != nil {
		t.Fatal(err)
	}
	f = r.view.Current().Operations[done.GetOperationId()].Value.GetFailover()
	if proto.Unmarshal(f.GetDisks()[0], disk) != nil || disk.GetImage().GetId() != "id-vms/web" || f.GetFsid() != fsid || f.GetNodeIsOff() {
		t.Errorf("%v: %v", f, disk)
	}
	// The operator's word is in the audit log, with who gave it.
	said := slices.ContainsFunc(r.events("rpc_call", 4), func(e map[string]any) bool {
		args, _ := e["args"].(string)
		return e["principal"] == "operator" && strings.Contains(args, "node_is_off=true")
	})
	if !said {
		t.Errorf("the audit log has no word of it: %v", r.events("rpc_call", 4))
	}
}

// TestAFailoverThatEndedHalfWayIsAskedForAgain: the VM belongs to its new node, which
// is heard, and is brought up there.
func TestAFailoverThatEndedHalfWayIsAskedForAgain(t *testing.T) {
	r := startLost(t)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	vm := proto.CloneOf(r.view.Current().VMs[onReplica].Value)
	domain := &agentv1.Domain{}
	if err := proto.Unmarshal(vm.GetDomain(), domain); err != nil {
		t.Fatal(err)
	}
	domain.State = debvisorv1.VMState_VM_STATE_UNSPECIFIED
	vm.Node, vm.Generation, vm.Domain = "b", 4, encode(t, domain)
	r.put(store.PutProto(store.VMKey(onReplica), vm), store.PutProto(store.OperationKey("op-0"), &storev1.Operation{
		Id: "op-0", Kind: "failover", State: task.OpCancelled, Detail: &storev1.Operation_Failover{Failover: &storev1.Failover{
			VmUuid: onReplica, Source: "a", Generation: 3, Target: "b", Start: true, Disks: [][]byte{encode(t, &agentv1.FailoverDisk{Target: "vda", Dataset: "back/db"})},
		}},
	}), store.PutProto(store.LostCopyKey(onReplica, "a"), &storev1.LostCopy{
		VmUuid: onReplica, VmName: "db", Node: "a", Generation: 3, BroughtBackOn: "b", Operation: "op-0", At: timestamppb.Now(), State: storev1.LostCopyState_LOST_COPY_STATE_AWAITED,
	}))
	plan, err := migrations.PlanFailover(t.Context(), &debvisorv1.FailoverRequest{Vm: &debvisorv1.VMRef{VmId: "db"}})
	if err != nil || !plan.GetAllowed() || plan.GetTarget().GetNodeId().GetId() != "b" {
		t.Fatalf("%v: %v", plan, err)
	}
	noWait := metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none")
	done, err := migrations.FailoverVM(noWait, &debvisorv1.VMRef{VmId: "db"})
	if err != nil {
		t.Fatal(err)
	}
	if op := r.view.Current().Operations[done.GetOperationId()].Value; op.GetFailover().GetSource() != "a" || op.GetFailover().GetTarget() != "b" {
		t.Errorf("%v", op)
	}
}

// TestReverseReplication: offered once the copy is gone, for replicas, once.
func TestReverseReplication(t *testing.T) {
	r := startLost(t)
	migrations := debvisorv1.NewMigrationServiceClient(r.principal("operator"))
	c := &storev1.LostCopy{
		VmUuid: onReplica, VmName: "db", Node: "a", BroughtBackOn: "b", Operation: "op-1", At: timestamppb.Now(), State: storev1.LostCopyState_LOST_COPY_STATE_DISCARDING,
		ReverseJobs: [][]byte{encode(t, &storev1.ReplicationJob{Id: "j-back", Source: "b", Dataset: "back/db", Target: "a", TargetDataset: "tank/db"})},
	}
	images := &storev1.LostCopy{VmUuid: onImage, VmName: "web", Node: "a", BroughtBackOn: "b", At: timestamppb.Now(), State: storev1.LostCopyState_LOST_COPY_STATE_GONE}
	r.put(store.PutProto(store.LostCopyKey(onReplica, "a"), c), store.PutProto(store.LostCopyKey(onImage, "a"), images))
	ref := &debvisorv1.LostCopyRef{Vm: &debvisorv1.VMRef{VmId: "db"}, Node: nodeRef("a")}
	refused := func(ref *debvisorv1.LostCopyRef, code string) {
		t.Helper()
		if _, err := migrations.ReverseReplication(t.Context(), ref); err == nil || errdefs.FromStatus(err).Code != code {
			t.Errorf("%v, want %s", err, code)
		}
	}
	refused(ref, "COPY_NOT_GONE")
	refused(&debvisorv1.LostCopyRef{Vm: &debvisorv1.VMRef{VmId: "web"}, Node: nodeRef("a")}, "NO_REPLICAS")
	refused(&debvisorv1.LostCopyRef{Vm: &debvisorv1.VMRef{VmId: "web"}, Node: nodeRef("b")}, "LOST_COPY_NOT_FOUND")
	refused(&debvisorv1.LostCopyRef{Vm: &debvisorv1.VMRef{VmId: "nothing"}, Node: nodeRef("b")}, "VM_NOT_FOUND")

	c.State = storev1.LostCopyState_LOST_COPY_STATE_GONE
	r.put(store.PutProto(store.LostCopyKey(onReplica, "a"), c))
	refused(ref, "REPLICATION_LOOP") // the job that it was brought back from is still there
	r.remove(store.ReplicationKey("j"))
	list, err := migrations.ListLostCopies(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetCopies()) != 2 || list.GetCopies()[0].GetVmName() != "db" || !list.GetCopies()[0].GetReverseOffered() || list.GetCopies()[1].GetReverseOffered() {
		t.Fatalf("%v: %v", list, err)
	}
	once := metadata.AppendToOutgoingContext(t.Context(), "debvisor-request-id", "reverse-1")
	for range 2 { // the second is told of the first
		result, err := migrations.ReverseReplication(once, ref)
		if err != nil || len(result.GetJobs()) != 1 || result.GetJobs()[0].GetJobId() != "j-back" {
			t.Fatalf("%v: %v", result, err)
		}
	}
	job := r.view.Current().Replications["j-back"].Value
	if job.GetDatasetGuid() != 77 || job.GetSource() != "b" || job.GetTargetDataset() != "tank/db" || job.GetCreatedBy() != "operator" {
		t.Errorf("%v", job)
	}
	refused(ref, "LOST_COPY_NOT_FOUND")
}
