package plans

import (
	"bytes"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Change is one thing that is not any more as a plan assumed.
type Change struct {
	// VM is the UUID, Name the name of the VM that would move.
	VM, Name string
	// Code is for programs: one of the constants below, or a planner's reason
	// that is in the way now.
	Code string
	// Message is for people.
	Message string
}

// The codes of changes, besides the planner's reasons.
const (
	VMGone            = "VM_GONE"
	VMMoved           = "VM_MOVED"
	GenerationChanged = "GENERATION_CHANGED"
	DefinitionChanged = "DEFINITION_CHANGED"
	MethodChanged     = "METHOD_CHANGED"
)

// Changes tells what has changed since a plan was computed so that it may not
// be carried out as it is; none: it still holds, as far as the snapshot tells.
// CPUs are not judged anew: whoever begins a move does that.
func Changes(s *cluster.Snapshot, p *storev1.Plan) ([]Change, error) {
	plan, err := Result(p)
	if err != nil {
		return nil, err
	}
	downtime, options, err := terms(p)
	if err != nil {
		return nil, err
	}
	moves := planned(plan)
	c := checker{
		world: planner.NewWorld(s, nil), moves: moves,
		request: planner.Request{AllowDowntime: downtime, Options: options, Tenant: p.GetTenant()},
	}
	for i, g := range p.GetGrounds() {
		if i < len(moves) {
			c.check(s, g, moves[i])
		}
	}
	return c.changes, nil
}

// terms are those under which a plan's moves were planned.
func terms(p *storev1.Plan) (downtime bool, options *debvisorv1.MigrateOptions, err error) {
	switch p.GetKind() {
	case KindMigrate:
		req, err := request(p, &debvisorv1.VMMigratePlan{})
		return req.GetAllowDowntime(), req.GetOptions(), err
	case KindEvacuate:
		req, err := request(p, &debvisorv1.EvacuationPlanRequest{})
		return req.GetAllowDowntime(), nil, err
	}
	return false, nil, nil
}

// checker checks one move after another.
type checker struct {
	world   *planner.World
	request planner.Request
	moves   []*debvisorv1.PlannedMove
	changes []Change
}

// check compares a move with the ground on which it was planned, and plans it
// anew where that still is so.
func (c *checker) check(s *cluster.Snapshot, g *storev1.PlanGround, m *debvisorv1.PlannedMove) {
	no := func(code, format string, args ...any) {
		c.changes = append(c.changes, Change{g.GetVmUuid(), m.GetVmName(), code, fmt.Sprintf(format, args...)})
	}
	entry, ok := s.Within(c.request.Tenant).VM(g.GetVmUuid())
	vm := entry.Value
	switch {
	case !ok:
		no(VMGone, "there is no such VM any more")
		return
	case vm.GetNode() != g.GetSource():
		no(VMMoved, "it is on %s now and was on %s", vm.GetNode(), g.GetSource())
		return
	case vm.GetGeneration() != g.GetGeneration():
		no(GenerationChanged, "it was moved meanwhile and is back on %s: its placement is generation %d and was %d",
			vm.GetNode(), vm.GetGeneration(), g.GetGeneration())
	}
	if !bytes.Equal(definition(vm), g.GetDefinition()) {
		no(DefinitionChanged, "its definition has changed")
	}
	r := c.request
	r.VM, r.Source, r.Target, r.TargetOnly = g.GetVmUuid(), g.GetSource(), g.GetTarget(), true
	result := c.world.Plan(r)
	if result.Allowed {
		if result.Method != m.GetMethod() {
			no(MethodChanged, "it would move %s now and not %s", manner(result.Method), manner(m.GetMethod()))
		}
		return
	}
	c.inTheWay(&result, m, no)
}

// inTheWay names all that the planner has against a move now, but for what
// moves of earlier waves clear out of its way: that is judged when its turn
// comes.
func (c *checker) inTheWay(r *planner.Result, m *debvisorv1.PlannedMove, no func(code, format string, args ...any)) {
	for _, reason := range r.Reasons {
		no(reason.Code, "%s", reason.Message)
	}
	at := slices.IndexFunc(r.Nodes, func(v planner.Verdict) bool { return v.Node == r.Target })
	if at < 0 {
		no(planner.NodeNotFound, "no node is called %s any more", r.Target)
		return
	}
	for _, reason := range r.Nodes[at].Reasons {
		if c.clearedBefore(m, reason.Code) {
			continue
		}
		no(reason.Code, "%s: %s", r.Target, reason.Message)
	}
}

// clearedBefore tells whether a reason against a move's target may be gone once
// the moves of earlier waves are done.
func (c *checker) clearedBefore(m *debvisorv1.PlannedMove, code string) bool {
	return slices.ContainsFunc(c.moves, func(earlier *debvisorv1.PlannedMove) bool {
		if earlier.GetWave() >= m.GetWave() {
			return false
		}
		switch code {
		case planner.Memory, planner.DiskSpace, planner.NameClash:
			return nodeID(earlier.GetSource()) == nodeID(m.GetTarget())
		case planner.AntiAffinity: // it may be about a rack or a zone
			return true
		}
		return false
	})
}

// Result reads what a plan came to, with what only its record knows. Errors:
// Unavailable while it is not computed; where it could not be, NotFound or
// Internal.
func Result(p *storev1.Plan) (*debvisorv1.Plan, error) {
	switch p.GetState() {
	case storev1.PlanState_PLAN_STATE_READY:
	case storev1.PlanState_PLAN_STATE_FAILED:
		return nil, failure(p)
	default:
		return nil, notComputed(p.GetId())
	}
	plan := &debvisorv1.Plan{}
	if err := proto.Unmarshal(p.GetResult(), plan); err != nil {
		return nil, broken(p, err)
	}
	plan.Id, plan.Kind, plan.Principal, plan.OperationId = p.GetId(), p.GetKind(), p.GetPrincipal(), p.GetOperationId()
	plan.CreatedAt = &debvisorv1.Timestamp{Seconds: p.GetCreatedAt().GetSeconds(), Nanos: p.GetCreatedAt().GetNanos()}
	plan.ExpiresAt = &debvisorv1.Timestamp{Seconds: p.GetExpiresAt().GetSeconds(), Nanos: p.GetExpiresAt().GetNanos()}
	if m := plan.GetMigration(); m.GetAllowed() {
		m.PlanId, m.ExpiresAt = plan.GetId(), plan.GetExpiresAt()
	}
	return plan, nil
}
