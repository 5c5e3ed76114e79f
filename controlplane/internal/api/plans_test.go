package api_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

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

// planning is a cluster with a client of its plans.
type planning struct {
	*replica
	debvisorv1.MigrationServiceClient
	noWait context.Context
}

func startPlanning(t *testing.T) planning {
	t.Helper()
	r := startCluster(t)
	return planning{
		r, debvisorv1.NewMigrationServiceClient(r.principal("operator")),
		metadata.AppendToOutgoingContext(t.Context(), "debvisor-wait", "none"),
	}
}

// prepare plans to move a VM, which must be allowed, and gives the plan's id.
func (p planning) prepare(vm, target string) string {
	p.t.Helper()
	s := spec(vm, "", target)
	plan, err := p.PrepareMigration(p.t.Context(), &debvisorv1.VMMigratePlan{
		Vm: s.GetVm(), Target: s.GetTarget(), Options: &debvisorv1.MigrateOptions{BandwidthMib: 7},
	})
	if err != nil || !plan.GetAllowed() || plan.GetPlanId() == "" || plan.GetExpiresAt() == nil {
		p.t.Fatalf("%v, %v", plan, err)
	}
	return plan.GetPlanId()
}

func (p planning) execute(id string) (*debvisorv1.PlanExecution, error) {
	return p.ExecutePlan(p.noWait, &debvisorv1.PlanRef{PlanId: id})
}

func TestExecutePlanOnce(t *testing.T) {
	p := startPlanning(t)
	id := p.prepare("web", "")
	var wg sync.WaitGroup
	done, errs := make([]*debvisorv1.PlanExecution, 6), make([]error, 6)
	for i := range done {
		wg.Go(func() { done[i], errs[i] = p.execute(id) })
	}
	wg.Wait()
	operation := ""
	for i, err := range errs {
		switch {
		case err == nil && operation == "":
			operation = done[i].GetOperationId()
		case code(err) != "PLAN_EXECUTED" && code(err) != "IN_USE" || errdefs.FromStatus(err).Context["operation"] == "":
			t.Errorf("%v, %v", done[i], err)
		}
	}
	s := p.view.Current()
	op := s.Operations[operation].Value
	if len(s.Operations) != 1 || op.GetKind() != "migrate" || op.GetMigrate().GetTarget() != "b" || op.GetMigrate().GetSource() != "a" ||
		op.GetMigrate().GetPlanId() != id || len(op.GetMigrate().GetOptions()) == 0 || s.InUse["vm/"+web].Value != operation {
		t.Errorf("operations %v", s.Operations)
	}
	plan, err := p.GetPlan(t.Context(), &debvisorv1.PlanRef{PlanId: id})
	if err != nil || plan.GetOperationId() != operation || plan.GetMigration().GetVmName() != "web" || plan.GetPrincipal() != "operator" {
		t.Errorf("%v, %v", plan, err)
	}
	p.end(operation, func(op *storev1.Operation) { op.State = task.OpSucceeded })
	if _, err := p.execute(id); code(err) != "PLAN_EXECUTED" {
		t.Errorf("again, after its end: %v", err)
	}
}

func TestExecutePlanWaitsAndCanBeRepeated(t *testing.T) {
	p := startPlanning(t)
	ref := &debvisorv1.PlanRef{PlanId: p.prepare("web", "b")}
	type end struct {
		*debvisorv1.PlanExecution
		error
	}
	answered := make(chan end, 1)
	ctx := withRequestID(t.Context(), "one")
	go func() {
		done, err := p.ExecutePlan(ctx, ref)
		answered <- end{done, err}
	}()
	eventually(t, func() error {
		active := p.view.Current().ActiveOperations()
		if len(active) == 0 {
			return fmt.Errorf("no operation")
		}
		p.end(active[0].Value.GetId(), func(op *storev1.Operation) { op.State = task.OpSucceeded })
		return nil
	})
	first := <-answered
	if first.error != nil || first.GetOperationId() == "" {
		t.Fatal(first)
	}
	p.vm(web, "web", "b") // the plan would be stale by now
	again, err := p.ExecutePlan(ctx, ref)
	if err != nil || again.GetOperationId() != first.GetOperationId() {
		t.Errorf("repeated: %v, %v", again, err)
	}
}

func TestStalePlans(t *testing.T) {
	p := startPlanning(t)
	for name, c := range map[string]struct {
		happens func()
		want    string
	}{
		"moved": {func() { p.vm(web, "web", "b") }, "is on b now and was on a"},
		"cordoned": {func() {
			p.node("b", func(n *storev1.Node, _ *storev1.NodeStatus) { n.Cordoned, n.CordonReason = true, "disk swap" })
		}, "disk swap"},
		"not heard": {func() {
			p.node("b", func(_ *storev1.Node, s *storev1.NodeStatus) {
				s.Liveness = storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE
			})
		}, "not heard"},
		"gone": {func() {
			p.remove(store.VMKey(web))
		}, "no such VM"},
	} {
		id := p.prepare(web, "b")
		c.happens()
		_, err := p.execute(id)
		e := errdefs.FromStatus(err)
		if code(err) != "PLAN_STALE" || e.Kind != errdefs.FailedPrecondition || !strings.Contains(e.Message, c.want) || e.Context["changes"] == "" {
			t.Errorf("%s: %v", name, err)
		}
		p.node("b", nil)
		p.vm(web, "web", "a")
		if _, err := p.execute(id); err != nil && name != "moved" && name != "gone" {
			t.Errorf("%s: it is as it was, and yet %v", name, err)
		}
		for _, op := range p.view.Current().ActiveOperations() {
			p.end(op.Value.GetId(), func(op *storev1.Operation) { op.State = task.OpFailed })
		}
		eventually(t, func() error {
			if n := len(p.view.Current().InUse); n > 0 {
				return fmt.Errorf("%d in use", n)
			}
			return nil
		})
	}
}

func TestPlansThatCannotBeExecuted(t *testing.T) {
	p := startPlanning(t)
	refused, err := p.PrepareMigration(t.Context(), &debvisorv1.VMMigratePlan{Vm: &debvisorv1.VMRef{VmId: "web"}, Target: nodeRef("a")})
	if err != nil || refused.GetAllowed() || refused.GetPlanId() != "" {
		t.Errorf("%v, %v", refused, err)
	}
	list, err := p.ListPlans(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetPlans()) != 1 || len(list.GetPlans()[0].GetMigration().GetNodes()) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	if _, err := p.execute(list.GetPlans()[0].GetId()); code(err) != "MIGRATION_NOT_ALLOWED" {
		t.Errorf("one that allows nothing: %v", err)
	}
	if _, err := p.execute("plan-none"); code(err) != "PLAN_NOT_FOUND" {
		t.Errorf("one that is not there: %v", err)
	}
	id := p.prepare("web", "b")
	record := proto.CloneOf(p.view.Current().Plans[id].Value)
	record.ExpiresAt = timestamppb.New(time.Now().Add(-time.Second))
	p.put(store.PutProto(store.PlanKey(id), record)) // not swept yet
	if _, err := p.execute(id); code(err) != "PLAN_NOT_FOUND" {
		t.Errorf("one that has expired: %v", err)
	}
	if _, err := p.GetPlan(t.Context(), &debvisorv1.PlanRef{PlanId: id}); code(err) != "PLAN_NOT_FOUND" {
		t.Errorf("one that has expired: %v", err)
	}
	id = p.prepare("web", "b")
	p.put(store.PutString(store.InUseKey("vm/"+web), "op-other"))
	if _, err := p.execute(id); code(err) != "IN_USE" || errdefs.FromStatus(err).Context["operation"] != "op-other" {
		t.Errorf("the VM is in use: %v", err)
	}
	options := &debvisorv1.MigrateOptions{OnDeadline: debvisorv1.DeadlineAction_DEADLINE_ACTION_PAUSE}
	if _, err := p.MigrateVM(p.noWait, &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: twin}, Options: options}); errdefs.FromStatus(err).Kind != errdefs.FailedPrecondition ||
		!strings.Contains(err.Error(), "may_pause") {
		t.Errorf("a pause that the policy forbids: %v", err)
	}
	options = &debvisorv1.MigrateOptions{ParallelConnections: 17}
	if _, err := p.MigrateVM(p.noWait, &debvisorv1.VMMigrateSpec{Vm: &debvisorv1.VMRef{VmId: twin}, Options: options}); errdefs.FromStatus(err).Kind != errdefs.InvalidArgument ||
		!strings.Contains(err.Error(), "options.parallel_connections") {
		t.Errorf("too many connections: %v", err)
	}
}

func TestPlansOfManyMoves(t *testing.T) {
	p := startPlanning(t)
	plan, err := p.PlanEvacuation(t.Context(), &debvisorv1.EvacuationPlanRequest{Node: nodeRef("a"), Parallel: 1})
	// web goes to b; so does twin, but for another of its name there.
	if err != nil || plan.GetKind() != "evacuate" || len(plan.GetMoves().GetMoves()) != 1 || len(plan.GetMoves().GetBlocked()) != 1 ||
		plan.GetMoves().GetBlocked()[0].GetVm().GetVmId() != twin {
		t.Fatalf("%v, %v", plan, err)
	}
	done, err := p.execute(plan.GetId())
	if err != nil {
		t.Fatal(err)
	}
	op := p.view.Current().Operations[done.GetOperationId()].Value
	e := op.GetEvacuate()
	if op.GetKind() != "evacuate" || op.GetResources()[0] != "evacuation/a" || e.GetNode() != "a" || e.GetParallel() != 1 || e.GetPlanId() != plan.GetId() ||
		len(e.GetMoves()) != 1 || e.GetMoves()[0].GetVmUuid() != web || e.GetMoves()[0].GetTarget() != "b" || e.GetMoves()[0].GetSource() != "a" {
		t.Errorf("executed by %v", op)
	}
	p.node("c", nil)
	if plan, err = p.PlanRebalance(t.Context(), &debvisorv1.RebalancePlanRequest{Nodes: []*debvisorv1.NodeRef{nodeRef("a"), nodeRef("c")}}); err != nil ||
		plan.GetKind() != "rebalance" || plan.GetMoves() == nil {
		t.Fatalf("%v, %v", plan, err)
	}
	if len(plan.GetMoves().GetMoves()) == 0 {
		if _, err := p.execute(plan.GetId()); code(err) != "PLAN_EMPTY" {
			t.Errorf("nothing to move: %v", err)
		}
	}
	list, err := p.ListPlans(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetPlans()) != 2 || list.GetPlans()[0].GetKind() != "rebalance" || list.GetPlans()[1].GetOperationId() != done.GetOperationId() ||
		len(list.GetPlans()[1].GetMoves().GetMoves()) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	for _, err := range []error{
		func() error {
			_, err := p.PlanEvacuation(t.Context(), &debvisorv1.EvacuationPlanRequest{Node: nodeRef("x")})
			return err
		}(),
		func() error {
			_, err := p.PlanRebalance(t.Context(), &debvisorv1.RebalancePlanRequest{Nodes: []*debvisorv1.NodeRef{nodeRef("x")}})
			return err
		}(),
	} {
		if code(err) != "NODE_NOT_FOUND" {
			t.Errorf("a node that is not there: %v", err)
		}
	}
}

func TestTenants(t *testing.T) {
	p := startPlanning(t)
	for _, who := range []string{"red", "blue"} {
		p.put(store.PutJSON(store.PrincipalKey(who), &storev1.Principal{Permissions: []string{"migration:*"}, Tenant: who}))
	}
	owned := func(uuid, name, tenant string) {
		d := &agentv1.Domain{Uuid: uuid, Name: name, State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: gib, Persistent: true}
		p.put(store.PutProto(store.VMKey(uuid), &storev1.VM{
			Uuid: uuid, Name: name, Node: "a", Generation: 1, Domain: encode(t, d), Policy: encode(t, &debvisorv1.VMPolicy{Tenant: tenant}),
		}))
	}
	owned(web, "web", "red")
	owned(twin, "twin", "blue")
	red, blue := debvisorv1.NewMigrationServiceClient(p.principal("red")), debvisorv1.NewMigrationServiceClient(p.principal("blue"))
	ask := func(c debvisorv1.MigrationServiceClient, vm string) (*debvisorv1.MigrationPlanResult, error) {
		return c.PrepareMigration(t.Context(), &debvisorv1.VMMigratePlan{Vm: &debvisorv1.VMRef{VmId: vm}})
	}
	own, err := ask(red, "web")
	if err != nil || !own.GetAllowed() {
		t.Fatalf("its own: %v, %v", own, err)
	}
	for _, vm := range []string{"web", web, strings.ToUpper(web)} {
		if _, err := ask(blue, vm); code(err) != "VM_NOT_FOUND" {
			t.Errorf("another's VM %s: %v", vm, err)
		}
	}
	if _, err := blue.MigrateVM(p.noWait, spec("web", "", "b")); code(err) != "VM_NOT_FOUND" {
		t.Errorf("moving another's VM: %v", err)
	}
	ref := &debvisorv1.PlanRef{PlanId: own.GetPlanId()}
	if _, err := blue.GetPlan(t.Context(), ref); code(err) != "PLAN_NOT_FOUND" {
		t.Errorf("another's plan: %v", err)
	}
	if _, err := blue.ExecutePlan(p.noWait, ref); code(err) != "PLAN_NOT_FOUND" {
		t.Errorf("executing another's plan: %v", err)
	}
	if list, err := blue.ListPlans(t.Context(), &debvisorv1.Empty{}); err != nil || len(list.GetPlans()) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if plan, err := p.GetPlan(t.Context(), ref); err != nil || plan.GetPrincipal() != "red" {
		t.Errorf("whoever belongs to no tenant sees all: %v, %v", plan, err)
	}
	if _, err := red.PlanRebalance(t.Context(), &debvisorv1.RebalancePlanRequest{}); code(err) != "CONFINED" {
		t.Errorf("evening out everybody's: %v", err)
	}
	empty, err := red.PlanEvacuation(t.Context(), &debvisorv1.EvacuationPlanRequest{Node: nodeRef("a")})
	if err != nil || len(empty.GetMoves().GetMoves()) != 1 || empty.GetMoves().GetMoves()[0].GetVm().GetVmId() != web {
		t.Fatalf("%v, %v", empty, err)
	}
	if _, err := red.ExecutePlan(p.noWait, &debvisorv1.PlanRef{PlanId: empty.GetId()}); code(err) != "CONFINED" {
		t.Errorf("emptying a node without the right: %v", err)
	}
	if _, err := red.ExecutePlan(p.noWait, ref); err != nil {
		t.Errorf("its own plan: %v", err)
	}
}
