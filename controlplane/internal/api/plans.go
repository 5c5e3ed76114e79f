package api

import (
	"context"
	"strings"
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
	snapshot := s.view.Current()
	vm, _, _, err := resolve(snapshot, tenantOf(snapshot, authn.From(ctx)), req)
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
// VMs, so a tenant's caller may not: PermissionDenied.
func (s *migrationService) PlanRebalance(ctx context.Context, req *debvisorv1.RebalancePlanRequest) (*debvisorv1.Plan, error) {
	snapshot, caller := s.view.Current(), authn.From(ctx)
	if tenant := tenantOf(snapshot, caller); tenant != "" {
		return nil, errdefs.New(errdefs.PermissionDenied, "NOT_FOR_TENANTS",
			"%s belongs to the tenant %s, and to even out nodes moves everybody's VMs", caller.Name, tenant).With("principal", caller.Name)
	}
	for _, node := range req.GetNodes() {
		if _, err := needNode(snapshot, "nodes", node); err != nil {
			return nil, err
		}
	}
	return s.plan(ctx, plans.KindRebalance, req)
}

// plan has the leader compute a plan.
func (s *migrationService) plan(ctx context.Context, kind string, req proto.Message) (*debvisorv1.Plan, error) {
	caller := authn.From(ctx)
	p, err := s.desk.Ask(ctx, plans.Request{
		Kind: kind, Principal: caller.Name, Tenant: tenantOf(s.view.Current(), caller), Message: req,
	})
	if err != nil {
		return nil, err
	}
	return plans.Result(p)
}

// GetPlan answers a plan.
func (s *migrationService) GetPlan(ctx context.Context, ref *debvisorv1.PlanRef) (*debvisorv1.Plan, error) {
	entry, err := findPlan(ctx, s.view.Current(), ref)
	if err != nil {
		return nil, err
	}
	return plans.Result(entry.Value)
}

// ListPlans answers the plans that are kept, newest first, without their moves
// and the verdicts on nodes.
func (s *migrationService) ListPlans(ctx context.Context, _ *debvisorv1.Empty) (*debvisorv1.PlanList, error) {
	list := &debvisorv1.PlanList{}
	snapshot, now := s.view.Current(), time.Now()
	tenant := tenantOf(snapshot, authn.From(ctx))
	for _, p := range plans.Newest(snapshot) {
		if !visible(p, tenant, now) || p.GetState() != storev1.PlanState_PLAN_STATE_READY {
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

// findPlan gives a plan that the caller may see. The error is NotFound.
func findPlan(ctx context.Context, s *cluster.Snapshot, ref *debvisorv1.PlanRef) (cluster.Entry[*storev1.Plan], error) {
	entry, ok := s.Plans[ref.GetPlanId()]
	if !ok || !visible(entry.Value, tenantOf(s, authn.From(ctx)), time.Now()) {
		return entry, errdefs.New(errdefs.NotFound, "PLAN_NOT_FOUND", "no plan %q; plans are kept for %d minutes",
			clip(ref.GetPlanId()), int(plans.KeepFor.Minutes())).With("plan", clip(ref.GetPlanId()))
	}
	return entry, nil
}

// visible tells whether a plan has not ended and is the tenant's; whoever
// belongs to no tenant sees all.
func visible(p *storev1.Plan, tenant string, now time.Time) bool {
	return !plans.Expired(p, now) && (tenant == "" || p.GetTenant() == tenant)
}

// tenantOf is the tenant that a caller belongs to; empty: to none.
func tenantOf(s *cluster.Snapshot, caller *authn.Caller) string {
	if caller == nil || caller.Principal == nil {
		return ""
	}
	return s.Principals[caller.Name].Value.GetTenant()
}

// findOwnVM is findVM where VMs of other tenants do not exist.
func findOwnVM(s *cluster.Snapshot, tenant string, ref *debvisorv1.VMRef) (*storev1.VM, error) {
	vm, err := findVM(s, ref)
	if tenant == "" {
		return vm, err
	}
	var own []string
	for _, name := range []string{ref.GetVmId(), strings.ToLower(ref.GetVmId())} {
		for _, uuid := range s.FindVM(name) {
			policy := decode(s.VMs[uuid].Value.GetPolicy(), &debvisorv1.VMPolicy{})
			if policy.GetTenant() == tenant {
				own = append(own, uuid)
			}
		}
		if len(own) > 0 {
			break
		}
	}
	switch len(own) {
	case 0:
		return nil, unknownVM(ref)
	case 1:
		return s.VMs[own[0]].Value, nil
	}
	return nil, ambiguousVM(ref, own)
}
