package integration

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// plan has hvctl ask a replica for the plan of the guest's move, which must be allowed.
func (m *mover) plan(a *api, to *lab.Node) *debvisorv1.MigrationPlanResult {
	m.c.t.Helper()
	out, err := m.c.Hvctl(m.c.within(time.Minute), a.replica, "-o", "json", "migrate", "plan", m.Name, "--to", to.Name)
	if err != nil {
		m.c.t.Fatalf("%v\n%s", err, out)
	}
	plan := &debvisorv1.MigrationPlanResult{}
	m.c.must(protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal([]byte(out), plan))
	if !plan.GetAllowed() || plan.GetPlanId() == "" || plan.GetExpiresAt() == nil {
		m.c.t.Fatalf("planned as %v", plan)
	}
	return plan
}

// execute begins to carry a plan out.
func (c *cluster) execute(a *api, plan string) (*debvisorv1.PlanExecution, error) {
	return a.migrations.ExecutePlan(withRequestID(c.within(time.Minute), requestID()), &debvisorv1.PlanRef{PlanId: plan})
}

// stale checks that a plan is refused as stale with these words, and that nothing was begun.
func (c *cluster) stale(a *api, plan, change, words string) {
	c.t.Helper()
	_, err := c.execute(a, plan)
	d := refused(c.t, err, codes.FailedPrecondition)
	if d.GetCode() != "PLAN_STALE" || !strings.Contains(d.GetMessage(), words) || !strings.Contains(d.GetContext()["changes"], change) {
		c.t.Errorf("refused with %v, want the change %s and %q", d, change, words)
	}
	p, err := a.migrations.GetPlan(c.within(10*time.Second), &debvisorv1.PlanRef{PlanId: plan})
	if err != nil || p.GetOperationId() != "" {
		c.t.Errorf("the stale plan is %v, %v", p.GetOperationId(), err)
	}
}

// TestPlansByID plans on a replica that does not lead, moves the guest by the plan's id on another, and is refused each plan that
// does not hold any more.
func TestPlansByID(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, leader := c.follower()
	first, second := g.plan(a, g.to), g.plan(c.api(leader), g.to)
	if first.GetMethod() != debvisorv1.MoveMethod_MOVE_METHOD_LIVE || first.GetEstimate().GetDurationMs() == 0 || len(first.GetNodes()) < len(c.Nodes) || // other tests register nodes of their own
		len(first.GetNodes()[0].GetParts()) == 0 || len(first.GetDisks()) == 0 {
		t.Errorf("planned as %v", first)
	}
	for _, r := range c.Replicas {
		c.eventually(10*time.Second, r.Name+" has the plan", func() error {
			p, err := c.api(r).migrations.GetPlan(c.within(10*time.Second), &debvisorv1.PlanRef{PlanId: first.GetPlanId()})
			if err == nil && p.GetMigration().GetVm().GetVmId() != g.UUID {
				err = fmt.Errorf("it is %v", p)
			}
			return err
		})
	}

	// Two carry it out at once: one does.
	others := c.others(a.replica)
	errs := make(chan error, len(others))
	var operations []string
	for _, r := range others {
		go func() {
			_, err := c.execute(c.api(r), first.GetPlanId())
			errs <- err
		}()
	}
	for range others {
		if err := <-errs; err != nil && status.Code(err) != codes.FailedPrecondition && status.Code(err) != codes.Aborted {
			t.Errorf("one of two at once: %v", err)
		}
	}
	list, err := a.operations.ListOperations(c.within(10*time.Second), &debvisorv1.OperationFilter{Resource: "vm/" + g.UUID, Kind: "migrate"})
	c.must(err)
	for _, op := range list.GetOperations() {
		if op.GetMigration().GetPlanId() == first.GetPlanId() {
			operations = append(operations, op.GetId())
		}
	}
	if len(operations) != 1 {
		t.Fatalf("the plan was carried out by %v", operations)
	}
	c.succeeded(time.Minute, a, operations[0])
	g.arrived()
	_, err = c.execute(a, first.GetPlanId())
	if d := refused(t, err, codes.FailedPrecondition); d.GetCode() != "PLAN_EXECUTED" || d.GetContext()["operation"] != operations[0] {
		t.Errorf("again: %v", d)
	}

	c.stale(a, second.GetPlanId(), "VM_MOVED", "is on "+g.to.Name+" now and was on "+g.from.Name)
	c.cordonedMeanwhile(a)
}

// cordonedMeanwhile plans a move to a node that is cordoned before the plan is carried out, and carries it out once it is not.
func (c *cluster) cordonedMeanwhile(a *api) {
	c.t.Helper()
	g := c.guest("web") // it can go back
	plan := g.plan(a, g.to)
	_, err := a.nodes.CordonNode(c.within(30*time.Second), &debvisorv1.CordonRequest{Node: node(g.to.Name), Reason: "disk swap"})
	c.must(err)
	c.stale(a, plan.GetPlanId(), "NODE_CORDONED", "disk swap")
	_, err = a.nodes.UncordonNode(c.within(30*time.Second), node(g.to.Name))
	c.must(err)
	out, err := c.Hvctl(c.within(time.Minute), a.replica, "plan", "execute", plan.GetPlanId())
	if err != nil || !strings.Contains(out, g.Name+" migrated") {
		c.t.Errorf("%v\n%s", err, out)
	}
	g.arrived()
}

// TestPlansOfManyMoves plans how a node is emptied and how the nodes are evened out. Nothing is moved.
func TestPlansOfManyMoves(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, _ := c.follower()
	plan, err := a.migrations.PlanEvacuation(c.within(30*time.Second), &debvisorv1.EvacuationPlanRequest{Node: node(g.from.Name)})
	c.must(err)
	at := slices.IndexFunc(plan.GetMoves().GetMoves(), func(m *debvisorv1.PlannedMove) bool { return m.GetVm().GetVmId() == g.UUID })
	if at < 0 || plan.GetMoves().GetMoves()[at].GetTarget().GetNodeId().GetId() != g.to.Name {
		t.Errorf("planned as %v", plan)
	}
	out, err := c.Hvctl(c.within(time.Minute), a.replica, "plan", "show", plan.GetId())
	if err != nil || !strings.Contains(out, g.from.Name+" → "+g.to.Name) {
		t.Errorf("%v\n%s", err, out)
	}
	even, err := a.migrations.PlanRebalance(c.within(30*time.Second), &debvisorv1.RebalancePlanRequest{})
	if err != nil || even.GetMoves().GetImbalanceAfter() > even.GetMoves().GetImbalanceBefore() {
		t.Errorf("evened out: %v, %v", even, err)
	}
	for _, id := range []string{plan.GetId(), even.GetId()} {
		c.eventually(10*time.Second, "another replica lists plan "+id, func() error {
			list, err := c.api(c.Replicas[0]).migrations.ListPlans(c.within(10*time.Second), &debvisorv1.Empty{})
			if err == nil && !slices.ContainsFunc(list.GetPlans(), func(p *debvisorv1.Plan) bool { return p.GetId() == id }) {
				err = fmt.Errorf("it lists %d others", len(list.GetPlans()))
			}
			return err
		})
	}
	g.stayed()
}

// TestAPlanOutlivesItsLeader asks for a plan while the leader stands still: whoever leads next makes it.
func TestAPlanOutlivesItsLeader(t *testing.T) {
	c := plain.use(t)
	g := c.guest("web")
	a, leader := c.follower()
	c.must(leader.Process.Stop(c.within(10 * time.Second)))
	c.eventually(time.Minute, "the next leader plans", func() error {
		plan, err := a.migrations.PrepareMigration(c.within(10*time.Second), &debvisorv1.VMMigratePlan{Vm: vmRef(g.UUID), Target: node(g.to.Name)})
		if err == nil && !plan.GetAllowed() {
			err = errors.New(plan.GetMessage())
		}
		return err
	})
	c.must(leader.Process.Cont())
	c.must(c.whole(c.within(time.Minute)))
	g.stayed()
}
