package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// PlanFailover allows it where somebody says that the node is off.
func (f *fakeMigrations) PlanFailover(_ context.Context, req *debvisorv1.FailoverRequest) (*debvisorv1.FailoverPlan, error) {
	vm, err := f.made.find(req.GetVm())
	if err != nil {
		return nil, err
	}
	plan := &debvisorv1.FailoverPlan{
		Allowed: req.GetNodeIsOff(), Source: vm.GetNode(), Target: nodeRef(orWord(nodeName(req.GetTarget()), "n3")), DataAgeSeconds: 90,
		Message: "VM web1 can be brought back on n3", VmName: vm.GetName(),
		Disks: []*debvisorv1.FailoverDisk{
			{Target: "vda", Source: &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: "vms", Name: "web1"}},
			{
				Target: "vdb", Source: &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: "tank", Name: "web1"},
				Replica: &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: "back", Name: "web1"}, JobId: "j", Snapshot: "s1", AgeSeconds: 90,
			},
		},
		Nodes: []*debvisorv1.NodeVerdict{{Node: nodeRef("n3"), Allowed: true, Score: 0.5}},
	}
	if !plan.GetAllowed() {
		plan.Message = "nothing proves it"
		plan.Reasons = []*debvisorv1.PlanReason{{Code: "NO_PROOF", Message: "nothing proves it"}}
	} else {
		plan.Proof = []string{"n1 is powered off, by the word of ada"}
	}
	return plan, nil
}

func (f *fakeMigrations) ExecuteFailover(ctx context.Context, req *debvisorv1.FailoverRequest) (*debvisorv1.FailoverResult, error) {
	vm, err := f.made.find(req.GetVm())
	if err != nil {
		return nil, err
	}
	if !req.GetNodeIsOff() || req.GetAcceptDataLossSeconds() != 900 {
		return nil, errdefs.New(errdefs.FailedPrecondition, "FAILOVER_NOT_ALLOWED", "nothing proves it").With("reasons", "NO_PROOF")
	}
	running := &debvisorv1.Operation{
		Id: "op-back", Kind: "failover", State: debvisorv1.OperationState_OPERATION_STATE_RUNNING, Resources: []string{"vm/" + vm.GetId()},
		Principal: "operator", CreatedAt: madeTime(0), StartedAt: madeTime(0), Step: "bringing it up on n3",
	}
	last := proto.CloneOf(running)
	last.Step, last.EndedAt, last.State = "", madeTime(4), debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED
	f.made.mu.Lock()
	f.made.operations["op-back"] = []*debvisorv1.Operation{running, last}
	f.made.mu.Unlock()
	return &debvisorv1.FailoverResult{Status: debvisorv1.StatusCode_STATUS_OK}, grpc.SetHeader(ctx, metadata.Pairs("debvisor-operation", "op-back"))
}

func (f *fakeMigrations) ListLostCopies(context.Context, *debvisorv1.Empty) (*debvisorv1.LostCopyList, error) {
	return &debvisorv1.LostCopyList{Copies: []*debvisorv1.LostCopy{
		{
			Vm: &debvisorv1.VMRef{VmId: uuidWeb}, VmName: "web1", Node: nodeRef("n1"), BroughtBackOn: nodeRef("n3"), OperationId: "op-back", At: madeTime(0),
			State: "awaited", Blocklisted: []string{"192.0.2.1:0/4711"}, Proof: []string{"it is fenced"},
		},
		{
			Vm: &debvisorv1.VMRef{VmId: uuidBad}, VmName: "bad", Node: nodeRef("n2"), BroughtBackOn: nodeRef("n3"), OperationId: "op-2", At: madeTime(0),
			State: "gone", ReverseOffered: true,
		},
	}}, nil
}

func (f *fakeMigrations) ReverseReplication(_ context.Context, ref *debvisorv1.LostCopyRef) (*debvisorv1.ReverseReplicationResult, error) {
	if nodeName(ref.GetNode()) != "n2" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "COPY_NOT_GONE", "the copy has not been destroyed yet (awaited)")
	}
	d := &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: "tank", Name: "bad"}
	return &debvisorv1.ReverseReplicationResult{Jobs: []*debvisorv1.ReplicationJob{{
		JobId: "j-back", Plan: &debvisorv1.ZfsReplicationPlan{JobId: "j-back", Source: nodeRef("n3"), Target: nodeRef("n2"), Dataset: d, TargetDataset: d},
	}}}, nil
}
