package main

import (
	"context"
	"crypto/sha256"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The UUIDs of the made-up VMs.
const (
	uuidWeb   = "11111111-1111-4111-8111-111111111111"
	uuidStuck = "22222222-2222-4222-8222-222222222222"
	uuidBad   = "33333333-3333-4333-8333-333333333333"
	uuidBusy  = "44444444-4444-4444-8444-444444444444"
	uuidTwinA = "55555555-5555-4555-8555-555555555555"
	uuidTwinB = "66666666-6666-4666-8666-666666666666"
)

// cluster is made up: three nodes, six VMs, and migrations whose every state is
// known before.
type cluster struct {
	mu     sync.Mutex
	nodes  map[string]*debvisorv1.NodeDetail
	vms    []*debvisorv1.VM
	tokens []*debvisorv1.JoinToken
	// operations are the states that each goes through, in order.
	operations map[string][]*debvisorv1.Operation
	stopped    chan struct{}
}

// fakeControlPlane is two replicas, of which the other one leads.
type fakeControlPlane struct {
	debvisorv1.UnimplementedClusterServiceServer
}

func (*fakeControlPlane) GetCluster(context.Context, *debvisorv1.Empty) (*debvisorv1.Cluster, error) {
	return &debvisorv1.Cluster{
		Name: "made-up", Leader: "r2", Epoch: 1, Term: 42, AnsweredBy: "r1",
		Replicas: []*debvisorv1.Replica{
			{Name: "r1", CallersAddress: "192.0.2.1:7443", AgentsAddress: "192.0.2.1:7444", Version: "1.0"},
			{Name: "r2", CallersAddress: "192.0.2.2:7443", AgentsAddress: "192.0.2.2:7444", Version: "1.0"},
		},
	}, nil
}

// GetClusterStatus tells of a return from a backup that waits for n2.
func (f *fakeControlPlane) GetClusterStatus(ctx context.Context, _ *debvisorv1.Empty) (*debvisorv1.ClusterStatus, error) {
	known, err := f.GetCluster(ctx, nil)
	if err != nil {
		return nil, err
	}
	status := &debvisorv1.ClusterStatus{
		Cluster: known, Schema: 1, NodesOnline: 1, NodesUnreachable: 1, Restore: madeRestore(),
		Problems: []string{"replica r2 is not ready: no replica is known to lead", "no backup was ever taken: hvctl cluster backup"},
	}
	for _, r := range known.GetReplicas() {
		said := &debvisorv1.ReplicaStatus{Replica: r, Ready: r.GetName() == "r1", Leader: r.GetName() == known.GetLeader(), EtcdDbBytes: 2 << 20, CertificateExpiresAt: madeTime(0)}
		if !said.GetReady() {
			said.Reasons = []string{"no replica is known to lead"}
		}
		status.Replicas = append(status.Replicas, said)
	}
	return status, nil
}

func madeRestore() *debvisorv1.RestoreStatus {
	return &debvisorv1.RestoreStatus{
		Epoch: 9, RestoredAt: madeTime(0), BackupAt: madeTime(0), BackupRevision: 7, WaitingFor: []string{"n2"}, Differences: []string{"n1 runs VM web1"},
	}
}

// ConfirmRestore knows epoch 9 only.
func (*fakeControlPlane) ConfirmRestore(_ context.Context, req *debvisorv1.RestoreConfirmation) (*debvisorv1.RestoreStatus, error) {
	if req.GetEpoch() != 9 {
		return nil, errdefs.Field("epoch", "8", "9, the epoch that the last restore began")
	}
	status := madeRestore()
	status.ConfirmedAt, status.ConfirmedBy = madeTime(0), "operator"
	return status, nil
}

// RemoveReplica takes every replica for one that is heard.
func (*fakeControlPlane) RemoveReplica(_ context.Context, req *debvisorv1.RemoveReplicaRequest) (*debvisorv1.RemoveReplicaResult, error) {
	if !req.GetEvenIfRunning() {
		return nil, errdefs.New(errdefs.FailedPrecondition, "REPLICA_IS_HEARD", "replica %s is heard", req.GetName())
	}
	return &debvisorv1.RemoveReplicaResult{Status: debvisorv1.StatusCode_STATUS_OK, Message: "replica " + req.GetName() + " is removed"}, nil
}

// Backup sends a small one.
func (*fakeControlPlane) Backup(_ *debvisorv1.BackupRequest, stream grpc.ServerStreamingServer[debvisorv1.BackupPart]) error {
	content := []byte("a snapshot")
	sum := sha256.Sum256(content)
	manifest := &debvisorv1.BackupManifest{Version: 1, Cluster: "made-up", Replica: "r1", DebvisorVersion: "1.0", Schema: 1, Epoch: 1, Revision: 7, TakenAt: madeTime(0)}
	end := proto.CloneOf(manifest)
	end.SnapshotBytes, end.SnapshotSha256 = uint64(len(content)), sum[:]
	for _, part := range []*debvisorv1.BackupPart{
		{Kind: &debvisorv1.BackupPart_Manifest{Manifest: manifest}}, {Kind: &debvisorv1.BackupPart_Snapshot{Snapshot: content}}, {Kind: &debvisorv1.BackupPart_End{End: end}},
	} {
		if err := stream.Send(part); err != nil {
			return err
		}
	}
	return nil
}

func newCluster() *cluster {
	c := &cluster{
		nodes: map[string]*debvisorv1.NodeDetail{}, operations: map[string][]*debvisorv1.Operation{},
		stopped: make(chan struct{}),
	}
	c.nodes["n1"] = madeNode("n1", debvisorv1.NodeState_NODE_STATE_ONLINE, 900)
	c.nodes["n2"] = madeNode("n2", debvisorv1.NodeState_NODE_STATE_UNREACHABLE, 125000)
	c.nodes["n3"] = madeNode("n3", debvisorv1.NodeState_NODE_STATE_REGISTERED, 0)
	c.nodes["n3"].Summary.Health = nil
	c.nodes["n2"].Summary.Health.Overall = debvisorv1.StatusCode_STATUS_WARN
	c.nodes["n2"].Summary.Health.Problems = []string{"libvirtd does not answer", "the disk is nearly full"}
	c.vms = []*debvisorv1.VM{
		madeVM(uuidBusy, "busy", "n1"), madeVM(uuidBad, "bad", "n1"), madeVM(uuidStuck, "stuck", "n1"),
		madeVM(uuidTwinA, "twin", "n1"), madeVM(uuidTwinB, "twin", "n2"), madeVM(uuidWeb, "web1", "n1"),
	}
	c.vms[0].OperationId = "op-busy"
	c.vms[4].State = debvisorv1.VMState_VM_STATE_UNKNOWN
	c.nodes["n1"].Vms = []*debvisorv1.VM{c.vms[5]}
	c.operations["op-web"] = madeMigration("op-web", "web1", uuidWeb, succeeded)
	c.operations["op-bad"] = madeMigration("op-bad", "bad", uuidBad, failed)
	c.operations["op-evacuate-n1"] = madeEvacuation("op-evacuate-n1", "evacuate", "n1", emptied)
	c.operations["op-evacuate-n2"] = madeEvacuation("op-evacuate-n2", "evacuate", "n2", notEmptied)
	c.operations["op-evacuate-n3"] = madeEvacuation("op-evacuate-n3", "evacuate", "n3", givenUp)
	c.operations["op-restore-n1"] = madeEvacuation("op-restore-n1", "restore", "n1", broughtBack)
	c.operations["op-stuck"] = madeMigration("op-stuck", "stuck", uuidStuck, endless)
	return c
}

func (c *cluster) stop() { close(c.stopped) }

// find gives the VM that a name or UUID means.
func (c *cluster) find(ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
	var found []*debvisorv1.VM
	for _, vm := range c.vms {
		if vm.GetId() == ref.GetVmId() || vm.GetName() == ref.GetVmId() {
			found = append(found, vm)
		}
	}
	switch len(found) {
	case 0:
		return nil, errdefs.New(errdefs.NotFound, "VM_NOT_FOUND", "no VM %q", ref.GetVmId())
	case 1:
		return found[0], nil
	default:
		return nil, errdefs.New(errdefs.FailedPrecondition, "VM_NAME_AMBIGUOUS",
			"%d VMs are called %q: %s, %s", len(found), ref.GetVmId(), found[0].GetId(), found[1].GetId())
	}
}

func (c *cluster) node(ref *debvisorv1.NodeRef) (*debvisorv1.NodeDetail, error) {
	id := ref.GetNodeId().GetId()
	n, ok := c.nodes[id]
	if !ok {
		return nil, errdefs.New(errdefs.NotFound, "NODE_NOT_FOUND", "no node %q", id).With("node", id)
	}
	return n, nil
}

type fakeNodes struct {
	debvisorv1.UnimplementedNodeServiceServer
	made *cluster
}

func (f *fakeNodes) ListNodes(context.Context, *debvisorv1.Empty) (*debvisorv1.NodeList, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	list := &debvisorv1.NodeList{}
	for _, id := range []string{"n1", "n2", "n3"} {
		list.Nodes = append(list.Nodes, proto.CloneOf(f.made.nodes[id].GetSummary()))
	}
	return list, nil
}

func (f *fakeNodes) GetNode(_ context.Context, ref *debvisorv1.NodeRef) (*debvisorv1.NodeDetail, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	n, err := f.made.node(ref)
	return proto.CloneOf(n), err
}

func (f *fakeNodes) CordonNode(_ context.Context, req *debvisorv1.CordonRequest) (*debvisorv1.NodeAck, error) {
	return f.cordon(req.GetNode(), true, req.GetReason())
}

func (f *fakeNodes) UncordonNode(_ context.Context, ref *debvisorv1.NodeRef) (*debvisorv1.NodeAck, error) {
	return f.cordon(ref, false, "")
}

func (f *fakeNodes) cordon(ref *debvisorv1.NodeRef, cordoned bool, reason string) (*debvisorv1.NodeAck, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	n, err := f.made.node(ref)
	if err != nil {
		return nil, err
	}
	n.Summary.Cordoned, n.CordonReason = cordoned, reason
	return &debvisorv1.NodeAck{Status: debvisorv1.StatusCode_STATUS_OK, Message: "done", OperationId: "op-cordon"}, nil
}

func (f *fakeNodes) CreateJoinToken(_ context.Context, req *debvisorv1.JoinTokenRequest) (*debvisorv1.JoinToken, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	token := &debvisorv1.JoinToken{
		Id: "t1", Kind: req.GetKind(), NodeId: req.GetNodeId(), Replace: req.GetReplace(), CreatedBy: "operator",
		ExpiresAt: madeTime(int64(req.GetTtlSeconds())),
	}
	f.made.tokens = append(f.made.tokens, token)
	answer := proto.CloneOf(token)
	answer.Token = "debvisor-t1-secret"
	return answer, nil
}

func (f *fakeNodes) ListJoinTokens(context.Context, *debvisorv1.Empty) (*debvisorv1.JoinTokenList, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	return &debvisorv1.JoinTokenList{Tokens: slices.Clone(f.made.tokens)}, nil
}

func (f *fakeNodes) RevokeJoinToken(_ context.Context, ref *debvisorv1.JoinTokenRef) (*debvisorv1.Empty, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	at := slices.IndexFunc(f.made.tokens, func(t *debvisorv1.JoinToken) bool { return t.GetId() == ref.GetId() })
	if at < 0 {
		return nil, errdefs.New(errdefs.NotFound, "JOIN_TOKEN_NOT_FOUND", "there is no join token %q", ref.GetId())
	}
	f.made.tokens = slices.Delete(f.made.tokens, at, at+1)
	return &debvisorv1.Empty{}, nil
}

type fakeVMs struct {
	debvisorv1.UnimplementedVMServiceServer
	made *cluster
}

func (f *fakeVMs) ListVMs(_ context.Context, filter *debvisorv1.VMFilter) (*debvisorv1.VMList, error) {
	list := &debvisorv1.VMList{}
	for _, vm := range f.made.vms {
		if filter.GetName() != "" && vm.GetName() != filter.GetName() ||
			nodeName(filter.GetNode()) != "" && nodeName(vm.GetNode()) != nodeName(filter.GetNode()) {
			continue
		}
		list.Vms = append(list.Vms, vm)
	}
	return list, nil
}

func (f *fakeVMs) GetVM(_ context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
	return f.made.find(ref)
}

type fakeMigrations struct {
	debvisorv1.UnimplementedMigrationServiceServer
	made *cluster
}

func (f *fakeMigrations) PrepareMigration(_ context.Context, req *debvisorv1.VMMigratePlan) (*debvisorv1.MigrationPlanResult, error) {
	vm, err := f.made.find(req.GetVm())
	if err != nil {
		return nil, err
	}
	target := orWord(nodeName(req.GetTarget()), "n3")
	plan := madePlan(vm)
	plan.Target, plan.Allowed = nodeRef(target), target == "n3"
	if !plan.GetAllowed() {
		plan.Status, plan.Message = debvisorv1.StatusCode_STATUS_ERROR, "n2: not heard for 2 minutes; n2: 2 GiB are missing"
		plan.PlanId, plan.ExpiresAt, plan.Method, plan.Estimate, plan.Disks = "", nil, 0, nil, nil
	}
	return plan, f.told(req.GetAllowDowntime(), req.GetOptions())
}

func (f *fakeMigrations) MigrateVM(ctx context.Context, req *debvisorv1.VMMigrateSpec) (*debvisorv1.MigrationResult, error) {
	vm, err := f.made.find(req.GetVm())
	if err != nil {
		return nil, err
	}
	if from := nodeName(req.GetSource()); from != "" && from != nodeName(vm.GetNode()) {
		return nil, errdefs.New(errdefs.FailedPrecondition, "WRONG_SOURCE", "VM %s is on %s and not on %s", vm.GetName(), nodeName(vm.GetNode()), from)
	}
	id := map[string]string{"web1": "op-web", "bad": "op-bad", "stuck": "op-stuck"}[vm.GetName()]
	if id == "" {
		return nil, errdefs.New(errdefs.Aborted, "IN_USE", "vm/%s is in use by operation op-busy", vm.GetId()).With("operation", "op-busy")
	}
	if v := metadata.ValueFromIncomingContext(ctx, "debvisor-wait"); len(v) != 1 || v[0] != "none" {
		return nil, errdefs.New(errdefs.Internal, "TEST", "hvctl must not wait here")
	}
	if err := f.told(req.GetAllowDowntime(), req.GetOptions()); err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("debvisor-operation", id)); err != nil {
		return nil, err
	}
	return &debvisorv1.MigrationResult{Status: debvisorv1.StatusCode_STATUS_OK}, nil
}

type fakeOperations struct {
	debvisorv1.UnimplementedOperationServiceServer
	made *cluster
}

func (f *fakeOperations) states(id string) ([]*debvisorv1.Operation, error) {
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	list, ok := f.made.operations[id]
	if !ok {
		return nil, errdefs.New(errdefs.NotFound, "OPERATION_NOT_FOUND", "no operation %q", id)
	}
	return list, nil
}

func (f *fakeOperations) GetOperation(_ context.Context, ref *debvisorv1.OperationRef) (*debvisorv1.Operation, error) {
	list, err := f.states(ref.GetId())
	if err != nil {
		return nil, err
	}
	return list[len(list)-1], nil
}

func (f *fakeOperations) ListOperations(_ context.Context, filter *debvisorv1.OperationFilter) (*debvisorv1.OperationList, error) {
	list := &debvisorv1.OperationList{}
	for _, id := range []string{"op-stuck", "op-bad", "op-web"} {
		states, err := f.states(id)
		if err != nil {
			return nil, err
		}
		if last := states[len(states)-1]; !filter.GetActiveOnly() || !ended(last) {
			list.Operations = append(list.Operations, last)
		}
	}
	return list, nil
}

func (f *fakeOperations) WatchOperation(ref *debvisorv1.OperationRef, stream grpc.ServerStreamingServer[debvisorv1.Operation]) error {
	list, err := f.states(ref.GetId())
	if err != nil {
		return err
	}
	for _, op := range list {
		if err := stream.Send(op); err != nil {
			return err
		}
	}
	if ended(list[len(list)-1]) {
		return nil
	}
	select {
	case <-stream.Context().Done():
		return stream.Context().Err()
	case <-f.made.stopped:
		return nil
	}
}

func (f *fakeOperations) CancelOperation(_ context.Context, ref *debvisorv1.OperationRef) (*debvisorv1.Operation, error) {
	list, err := f.states(ref.GetId())
	if err != nil {
		return nil, err
	}
	op := proto.CloneOf(list[len(list)-1])
	if ended(op) {
		return nil, errdefs.New(errdefs.FailedPrecondition, "TOO_LATE_TO_CANCEL", "operation %s can no longer be cancelled: it has ended", op.GetId())
	}
	op.State = debvisorv1.OperationState_OPERATION_STATE_CANCELLED
	op.Error = &debvisorv1.ErrorDetails{Code: "CANCELLED", Message: "operator asked for it"}
	f.made.mu.Lock()
	defer f.made.mu.Unlock()
	f.made.operations[ref.GetId()] = append(slices.Clone(list), op)
	return op, nil
}
