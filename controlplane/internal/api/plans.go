package api

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/plans"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// PrepareMigration is a dry run: allowed, or every reason why not.
func (s *migrationService) PrepareMigration(ctx context.Context, req *debvisorv1.VMMigratePlan) (*debvisorv1.MigrationPlanResult, error) {
	vm, _, _, err := resolve(scopeOf(ctx, s.view.Current()), req)
	if err != nil {
		return nil, err
	}
	req = proto.CloneOf(req)
	req.Vm = &debvisorv1.VMRef{VmId: vm}
	plan, err := s.plan(ctx, plans.KindMigrate, req)
	return plan.GetMigration(), err
}

// PlanEvacuation is the dry run of emptying a node. A tenant's caller sees and
// moves its own VMs only.
func (s *migrationService) PlanEvacuation(ctx context.Context, req *debvisorv1.EvacuationPlanRequest) (*debvisorv1.Plan, error) {
	if _, err := needNode(s.view.Current(), "node.node_id.id", req.GetNode()); err != nil {
		return nil, err
	}
	return s.plan(ctx, plans.KindEvacuate, req)
}

// PlanRebalance is the dry run of evening out the nodes. It is about everybody's
// VMs, so the table keeps a tenant's callers from it.
func (s *migrationService) PlanRebalance(ctx context.Context, req *debvisorv1.RebalancePlanRequest) (*debvisorv1.Plan, error) {
	for _, node := range req.GetNodes() {
		if _, err := needNode(s.view.Current(), "nodes", node); err != nil {
			return nil, err
		}
	}
	return s.plan(ctx, plans.KindRebalance, req)
}

// plan has the leader compute a plan.
func (s *migrationService) plan(ctx context.Context, kind string, req proto.Message) (*debvisorv1.Plan, error) {
	p, err := s.desk.Ask(ctx, plans.Request{
		Kind: kind, Principal: authn.From(ctx).Name, Tenant: tenantOf(ctx), Message: req,
	})
	if err != nil {
		return nil, err
	}
	return plans.Result(p)
}

// GetPlan answers a plan.
func (s *migrationService) GetPlan(ctx context.Context, ref *debvisorv1.PlanRef) (*debvisorv1.Plan, error) {
	entry, err := findPlan(scopeOf(ctx, s.view.Current()), ref)
	if err != nil {
		return nil, err
	}
	return plans.Result(entry.Value)
}

// ListPlans answers the plans that are kept, newest first, without their moves
// and the verdicts on nodes.
func (s *migrationService) ListPlans(ctx context.Context, _ *debvisorv1.Empty) (*debvisorv1.PlanList, error) {
	list := &debvisorv1.PlanList{}
	now := time.Now()
	for _, p := range plans.Newest(scopeOf(ctx, s.view.Current())) {
		if plans.Expired(p, now) || p.GetState() != storev1.PlanState_PLAN_STATE_READY {
			continue
		}
		plan, err := plans.Result(p)
		if err != nil {
			continue // GetPlan tells what is wrong with it
		}
		if m := plan.GetMigration(); m != nil {
			m.Nodes = nil
		}
		if m := plan.GetMoves(); m != nil {
			m.Moves, m.Blocked = nil, nil
		}
		list.Plans = append(list.Plans, plan)
	}
	return list, nil
}

// findPlan gives a plan of the scope that has not ended. The error is NotFound.
func findPlan(scope cluster.Scope, ref *debvisorv1.PlanRef) (cluster.Entry[*storev1.Plan], error) {
	entry, ok := scope.Plan(ref.GetPlanId())
	if !ok || plans.Expired(entry.Value, time.Now()) {
		return entry, errdefs.New(errdefs.NotFound, "PLAN_NOT_FOUND", "no plan %q; plans are kept for %d minutes",
			clip(ref.GetPlanId()), int(plans.KeepFor.Minutes())).With("plan", clip(ref.GetPlanId()))
	}
	return entry, nil
}
