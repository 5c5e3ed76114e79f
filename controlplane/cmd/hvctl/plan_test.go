package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// told refuses options that say so: a deadline of 7 s repeats all of them.
func (*fakeMigrations) told(downtime bool, o *debvisorv1.MigrateOptions) error {
	switch {
	case o.GetDeadlineSeconds() == 7:
		return errdefs.New(errdefs.FailedPrecondition, "TOLD", "downtime=%v bandwidth=%d deadline=%d %v parallel=%d fast=%v pause=%d stall=%d shutdown=%d",
			downtime, o.GetBandwidthMib(), o.GetDeadlineSeconds(), o.GetOnDeadline(), o.GetParallelConnections(), o.GetNoAutoConverge(),
			o.GetMaxDowntimeMs(), o.GetStallSeconds(), o.GetShutdownSeconds())
	case o != nil && proto.Equal(o, &debvisorv1.MigrateOptions{}):
		return errdefs.New(errdefs.Internal, "TEST", "options without any option")
	}
	return nil
}

func madePlan(vm *debvisorv1.VM) *debvisorv1.MigrationPlanResult {
	return &debvisorv1.MigrationPlanResult{
		Status: debvisorv1.StatusCode_STATUS_OK, Allowed: true, Source: vm.GetNode(), Target: nodeRef("n3"),
		Vm: &debvisorv1.VMRef{VmId: vm.GetId()}, VmName: vm.GetName(), Message: "VM " + vm.GetName() + " can move", Nodes: madeVerdicts(),
		PlanId: "plan-web", ExpiresAt: madeTime(600), Method: debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY,
		Estimate: &debvisorv1.MoveEstimate{DurationMs: 14200, DowntimeMs: 300, Bytes: 3 << 29, LinkBytesPerSecond: 110 << 20, DirtyBytesPerSecond: 1 << 20},
		Disks:    []*debvisorv1.DiskAction{{Target: "vda", Action: "shared"}, {Target: "vdb", Action: "copy-live", Bytes: 20 << 30}},
	}
}

// plans are one of each kind; plan-web was carried out, plan-n1 is stale.
func (f *fakeMigrations) plans() map[string]*debvisorv1.Plan {
	made := func(id, kind string) *debvisorv1.Plan {
		return &debvisorv1.Plan{Id: id, Kind: kind, Principal: "operator", CreatedAt: madeTime(0), ExpiresAt: madeTime(600)}
	}
	web, n1, even := made("plan-web", "migrate"), made("plan-n1", "evacuate"), made("plan-even", "rebalance")
	web.Migration = madePlan(f.made.vms[5])
	estimate := &debvisorv1.MoveEstimate{DurationMs: 28400, DowntimeMs: 300, Bytes: 3 << 30}
	move := func(wave uint32, vm *debvisorv1.VM, method debvisorv1.MoveMethod) *debvisorv1.PlannedMove {
		return &debvisorv1.PlannedMove{
			Vm: &debvisorv1.VMRef{VmId: vm.GetId()}, VmName: vm.GetName(), Source: nodeRef("n1"), Target: nodeRef("n3"), Wave: wave, Method: method,
			Estimate: &debvisorv1.MoveEstimate{DurationMs: 14200, DowntimeMs: 300, Bytes: 3 << 29},
		}
	}
	n1.Moves = &debvisorv1.MovePlan{
		Node: nodeRef("n1"), ImbalanceBefore: 0.25, ImbalanceAfter: 0.125, Estimate: estimate,
		Moves: []*debvisorv1.PlannedMove{
			move(0, f.made.vms[5], debvisorv1.MoveMethod_MOVE_METHOD_LIVE), move(1, f.made.vms[2], debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE),
		},
		Blocked: []*debvisorv1.BlockedVM{{VmName: "busy", Reasons: []*debvisorv1.PlanReason{
			{Code: "VM_IN_USE", Message: "VM busy is in use by operation op-busy"}, {Code: "MEMORY", Message: "n2 and n3 have not enough"},
		}}},
		BlockedLeftOut: 1,
	}
	even.Moves = &debvisorv1.MovePlan{
		ImbalanceBefore: 0.25, ImbalanceAfter: 0.01, Estimate: estimate, Moves: n1.Moves.GetMoves()[:1],
	}
	return map[string]*debvisorv1.Plan{"plan-web": web, "plan-n1": n1, "plan-even": even}
}

func (f *fakeMigrations) GetPlan(_ context.Context, ref *debvisorv1.PlanRef) (*debvisorv1.Plan, error) {
	p, ok := f.plans()[ref.GetPlanId()]
	if !ok {
		return nil, errdefs.New(errdefs.NotFound, "PLAN_NOT_FOUND", "no plan %q; plans are kept for 10 minutes", ref.GetPlanId())
	}
	return p, nil
}

func (f *fakeMigrations) ListPlans(context.Context, *debvisorv1.Empty) (*debvisorv1.PlanList, error) {
	all := f.plans()
	all["plan-web"].OperationId = "op-web"
	return &debvisorv1.PlanList{Plans: []*debvisorv1.Plan{all["plan-even"], all["plan-n1"], all["plan-web"]}}, nil
}

func (f *fakeMigrations) PlanEvacuation(_ context.Context, req *debvisorv1.EvacuationPlanRequest) (*debvisorv1.Plan, error) {
	if _, err := f.made.node(req.GetNode()); err != nil {
		return nil, err
	}
	p := f.plans()["plan-n1"]
	if req.GetAllowDowntime() && req.GetParallel() == 2 {
		p.Moves.Blocked, p.Moves.BlockedLeftOut = nil, 0
	}
	return p, nil
}

func (f *fakeMigrations) PlanRebalance(_ context.Context, req *debvisorv1.RebalancePlanRequest) (*debvisorv1.Plan, error) {
	if len(req.GetNodes()) == 2 && nodeName(req.GetNodes()[1]) != "n3" || req.GetMaxMoves() == 1 {
		return nil, errdefs.New(errdefs.Internal, "TEST", "not as the script asked: %v", req)
	}
	return f.plans()["plan-even"], nil
}

func (f *fakeMigrations) ExecutePlan(ctx context.Context, ref *debvisorv1.PlanRef) (*debvisorv1.PlanExecution, error) {
	switch ref.GetPlanId() {
	case "plan-web", "plan-even":
	case "plan-n1":
		return nil, errdefs.New(errdefs.FailedPrecondition, "PLAN_STALE", "plan plan-n1 does not hold any more, and nothing was begun: VM web1: it is on n3 now and was on n1")
	case "plan-done":
		return nil, errdefs.New(errdefs.FailedPrecondition, "PLAN_EXECUTED", "plan plan-done is carried out by operation op-web already").With("operation", "op-web")
	default:
		_, err := f.GetPlan(ctx, ref)
		return nil, err
	}
	if v := metadata.ValueFromIncomingContext(ctx, "debvisor-wait"); len(v) != 1 || v[0] != "none" {
		return nil, errdefs.New(errdefs.Internal, "TEST", "hvctl must not wait here")
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("debvisor-operation", "op-web")); err != nil {
		return nil, err
	}
	return &debvisorv1.PlanExecution{Status: debvisorv1.StatusCode_STATUS_OK}, nil
}
