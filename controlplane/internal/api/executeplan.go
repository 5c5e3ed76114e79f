package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/plans"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// ExecutePlan carries a plan out as it is, once at most, and waits for the end.
// FailedPrecondition: it does not hold any more (PLAN_STALE, naming what
// changed), is carried out already (PLAN_EXECUTED, naming the operation), or has
// nothing to carry out.
func (s *migrationService) ExecutePlan(ctx context.Context, ref *debvisorv1.PlanRef) (*debvisorv1.PlanExecution, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	id, err := s.execute(ctx, ref)
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, id)
	done := &debvisorv1.PlanExecution{Status: debvisorv1.StatusCode_STATUS_OK, OperationId: id}
	if !wait {
		done.Message = fmt.Sprintf("operation %s carries the plan out; watch it for its end", id)
		return done, nil
	}
	op, err := awaitEnd(ctx, s.view, s.operations, id)
	if err != nil {
		return nil, err
	}
	if op.GetState() != task.OpSucceeded {
		return nil, failure(op)
	}
	done.Message = fmt.Sprintf("plan %s is carried out", ref.GetPlanId())
	return done, nil
}

// executeTries bounds how often a plan's record may change under its execution,
// and lookAgain is how long the snapshot is given to show it.
const (
	executeTries = 10
	lookAgain    = 200 * time.Millisecond
)

// execute submits the operation that carries a plan out, together with the mark
// in the plan that there is one.
func (s *migrationService) execute(ctx context.Context, ref *debvisorv1.PlanRef) (string, error) {
	spec, err := specOf(ctx, scopeOf(ctx, s.view.Current()), "", ref)
	if err != nil {
		return "", err
	}
	for try := 1; ; try++ {
		changed := s.view.Changed()
		scope := scopeOf(ctx, s.view.Current())
		if op, err := s.operations.Repeated(spec); op != nil || err != nil {
			return op.GetId(), err
		}
		entry, err := s.executable(ctx, scope, ref)
		if err == nil {
			err = carryOut(scope, entry, &spec)
		}
		if err != nil {
			// It may be what another replica has just begun for this very request.
			if op, repeated := s.operations.Repeated(spec); op != nil || repeated != nil {
				return op.GetId(), repeated
			}
			return "", err
		}
		id, err := s.operations.Submit(ctx, spec)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) || try == executeTries {
			return id, err
		}
		select { // somebody else executes it, or it is swept
		case <-changed:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// executable gives a plan that can be carried out by the caller, as far as its
// record tells. To empty a node by a plan takes what it takes without one.
func (s *migrationService) executable(ctx context.Context, scope cluster.Scope, ref *debvisorv1.PlanRef) (cluster.Entry[*storev1.Plan], error) {
	entry, err := findPlan(scope, ref)
	if err != nil {
		return entry, err
	}
	p := entry.Value
	if p.GetOperationId() != "" {
		return entry, errdefs.New(errdefs.FailedPrecondition, "PLAN_EXECUTED",
			"plan %s is carried out by operation %s already; ask for another plan", p.GetId(), p.GetOperationId()).
			With("plan", p.GetId()).With("operation", p.GetOperationId())
	}
	if p.GetKind() == plans.KindEvacuate {
		return entry, s.authz.Authorize(scope.Snapshot(), authn.From(ctx), debvisorv1.NodeService_EvacuateNode_FullMethodName, time.Now())
	}
	return entry, nil
}

// carryOut says which operation carries a plan out. The error is
// FailedPrecondition: the plan allows nothing or does not hold any more; or
// Aborted: another operation holds what it is about.
func carryOut(scope cluster.Scope, entry cluster.Entry[*storev1.Plan], spec *operations.Spec) error {
	p := entry.Value
	plan, err := plans.Result(p)
	if err != nil {
		return err
	}
	if p.GetKind() == plans.KindMigrate {
		err = carryMigration(p, plan.GetMigration(), spec)
	} else {
		err = carryMoves(p, plan.GetMoves(), spec)
	}
	if err != nil {
		return err
	}
	for _, resource := range spec.Resources {
		if err := operations.InUse(scope, resource); err != nil {
			return err
		}
	}
	changes, err := plans.Changes(scope.Snapshot(), p)
	if err != nil {
		return err
	}
	if len(changes) > 0 {
		return stale(p, changes)
	}
	spec.Also = func(id string) store.Change {
		next := proto.CloneOf(p)
		next.OperationId = id
		key := store.PlanKey(p.GetId())
		return store.Change{
			Require: []store.Condition{store.Unchanged(key, entry.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, next)},
		}
	}
	return nil
}

func carryMigration(p *storev1.Plan, m *debvisorv1.MigrationPlanResult, spec *operations.Spec) error {
	if !m.GetAllowed() {
		return errdefs.New(errdefs.FailedPrecondition, "MIGRATION_NOT_ALLOWED", "plan %s allows no move: %s", p.GetId(), m.GetMessage()).
			With("plan", p.GetId())
	}
	req := decode(p.GetRequest(), &debvisorv1.VMMigratePlan{})
	options, err := encodeOptions(req.GetOptions())
	if err != nil {
		return err
	}
	spec.Kind = plans.KindMigrate
	spec.Resources = []string{vmResource(m.GetVm().GetVmId())}
	spec.Migrate = &storev1.Migrate{
		VmUuid: m.GetVm().GetVmId(), VmName: m.GetVmName(), Source: m.GetSource().GetNodeId().GetId(),
		Target: m.GetTarget().GetNodeId().GetId(), AllowDowntime: req.GetAllowDowntime(), Options: options, PlanId: p.GetId(),
	}
	return nil
}

func carryMoves(p *storev1.Plan, m *debvisorv1.MovePlan, spec *operations.Spec) error {
	if len(m.GetMoves()) == 0 {
		return errdefs.New(errdefs.FailedPrecondition, "PLAN_EMPTY", "plan %s moves no VM", p.GetId()).With("plan", p.GetId())
	}
	e := &storev1.Evacuate{PlanId: p.GetId(), Parallel: m.GetParallelPerNode()}
	spec.Kind, spec.Resources = p.GetKind(), []string{"rebalance"}
	if p.GetKind() == plans.KindEvacuate {
		e.Node = m.GetNode().GetNodeId().GetId()
		e.AllowDowntime = decode(p.GetRequest(), &debvisorv1.EvacuationPlanRequest{}).GetAllowDowntime()
		spec.Resources = []string{"evacuation/" + e.GetNode()}
	}
	for _, move := range m.GetMoves() {
		e.Moves = append(e.Moves, &storev1.Move{
			VmUuid: move.GetVm().GetVmId(), VmName: move.GetVmName(), Source: move.GetSource().GetNodeId().GetId(),
			Target: move.GetTarget().GetNodeId().GetId(), State: storev1.MoveState_MOVE_STATE_WAITING, Wave: move.GetWave(),
		})
	}
	spec.Evacuate = e
	return nil
}

// shownChanges is how many changes a refusal tells in words.
const shownChanges = 10

// stale refuses a plan that does not hold any more, naming what changed.
func stale(p *storev1.Plan, changes []plans.Change) error {
	var texts, codes []string
	for i, c := range changes {
		if i < shownChanges {
			texts = append(texts, fmt.Sprintf("VM %s: %s", c.Name, c.Message))
		}
		codes = append(codes, c.VM+":"+c.Code)
	}
	if more := len(changes) - len(texts); more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return errdefs.New(errdefs.FailedPrecondition, "PLAN_STALE", "plan %s does not hold any more, and nothing was begun: %s",
		p.GetId(), strings.Join(texts, "; ")).With("plan", p.GetId()).With("changes", clipTo(strings.Join(codes, ","), maxChangesText))
}

// maxChangesText keeps an error's details within what a header takes, bytes.
const maxChangesText = 1024

func clipTo(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
