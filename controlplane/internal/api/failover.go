package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/failover"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// FailoverVM brings the VM of a lost node back elsewhere, as ExecuteFailover does
// with nothing said: on RBD, where it is fenced, or where somebody has confirmed
// that the node is off.
func (s *migrationService) FailoverVM(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.FailoverResult, error) {
	return s.failover(ctx, ref, &debvisorv1.FailoverRequest{Vm: ref})
}

// ExecuteFailover brings the VM of a lost node back elsewhere and waits until its
// guest runs. FailedPrecondition FAILOVER_NOT_ALLOWED with every reason; Aborted,
// naming it, where another operation holds the VM.
func (s *migrationService) ExecuteFailover(ctx context.Context, req *debvisorv1.FailoverRequest) (*debvisorv1.FailoverResult, error) {
	return s.failover(ctx, req, req)
}

func (s *migrationService) failover(ctx context.Context, asked proto.Message, req *debvisorv1.FailoverRequest) (*debvisorv1.FailoverResult, error) {
	wait, err := waits(ctx)
	if err != nil {
		return nil, err
	}
	id, err := s.beginFailover(ctx, asked, req)
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, id)
	if !wait {
		return &debvisorv1.FailoverResult{
			Status: debvisorv1.StatusCode_STATUS_OK, OperationId: id,
			Message: fmt.Sprintf("operation %s brings the VM back; watch it for its end", id),
		}, nil
	}
	op, err := awaitEnd(ctx, s.view, s.operations, id)
	if err != nil {
		return nil, err
	}
	return failoverResult(op)
}

// beginFailover submits the failover, unless an earlier request with the same id
// has. What it was judged by must still be so: otherwise it is judged anew.
func (s *migrationService) beginFailover(ctx context.Context, asked proto.Message, req *debvisorv1.FailoverRequest) (string, error) {
	spec, err := specOf(ctx, scopeOf(ctx, s.view.Current()), failover.Kind, asked)
	if err != nil {
		return "", err
	}
	for try := 1; ; try++ {
		changed := s.view.Changed()
		if op, err := s.operations.Repeated(spec); op != nil || err != nil {
			return op.GetId(), err
		}
		v, err := s.judgeFailover(ctx, req)
		if err == nil {
			err = operations.InUse(scopeOf(ctx, s.view.Current()), vmResource(v.VM.Value.GetUuid()))
		}
		if err == nil && !v.Allowed {
			err = failoverRefusal(v)
		}
		if err != nil {
			// The VM may be held by what another replica has just begun for this
			// very request.
			if op, repeated := s.operations.Repeated(spec); op != nil || repeated != nil {
				return op.GetId(), repeated
			}
			return "", err
		}
		s.fillFailover(&spec, req, v)
		id, err := s.operations.Submit(ctx, spec)
		var conflict *store.ConflictError
		if !errors.As(err, &conflict) || try == executeTries {
			return id, err
		}
		select {
		case <-changed:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// fillFailover says in a specification what was judged.
func (s *migrationService) fillFailover(spec *operations.Spec, req *debvisorv1.FailoverRequest, v *failover.Verdict) {
	vm, status := v.VM.Value, v.Status
	f := &storev1.Failover{
		VmUuid: vm.GetUuid(), VmName: v.Name, Source: v.Source, Generation: vm.GetGeneration(), Target: v.Target, Fsid: v.FSID,
		NodeIsOff: req.GetNodeIsOff(), AcceptDataLossSeconds: req.GetAcceptDataLossSeconds(), DataAgeSeconds: uint64(v.DataAge.Seconds()),
		Start: v.Start, Proof: v.Proof, SourceLastSeen: status.Value.GetLastSeen(), SourceBootId: status.Value.GetBootId(),
	}
	for _, d := range v.Disks {
		if b, err := encodeMessage(d.FailoverDisk); err == nil {
			f.Disks = append(f.Disks, b)
		}
	}
	spec.Failover, spec.Resources = f, []string{vmResource(vm.GetUuid())}
	spec.Also = func(string) store.Change {
		return store.Change{Require: []store.Condition{
			store.Unchanged(store.VMKey(vm.GetUuid()), v.VM.ModRevision), store.Unchanged(store.StatusKey(v.Source), status.ModRevision),
		}}
	}
}

// PlanFailover is the dry run of a failover: allowed, or every reason why not.
func (s *migrationService) PlanFailover(ctx context.Context, req *debvisorv1.FailoverRequest) (*debvisorv1.FailoverPlan, error) {
	v, err := s.judgeFailover(ctx, req)
	if err != nil {
		return nil, err
	}
	plan := &debvisorv1.FailoverPlan{
		Allowed: v.Allowed, Source: nodeRef(v.Source), Target: nodeRef(v.Target), Proof: v.Proof, DataAgeSeconds: uint64(v.DataAge.Seconds()),
		Vm: &debvisorv1.VMRef{VmId: v.VM.Value.GetUuid()}, VmName: v.Name, Reasons: planReasons(v.Reasons),
		Message: fmt.Sprintf("VM %s can be brought back on %s", v.Name, v.Target),
	}
	if !v.Allowed {
		plan.Message = v.Refusal()
	}
	for _, n := range v.Nodes {
		verdict := &debvisorv1.NodeVerdict{Node: nodeRef(n.Node), Allowed: n.Allowed, Reasons: planReasons(n.Reasons), Score: n.Score, Method: n.Method}
		for _, part := range n.Parts {
			verdict.Parts = append(verdict.Parts, &debvisorv1.ScorePart{Name: part.Name, Weight: part.Weight, Value: part.Value})
		}
		plan.Nodes = append(plan.Nodes, verdict)
	}
	for i := range v.Disks {
		plan.Disks = append(plan.Disks, failoverDisk(v, &v.Disks[i]))
	}
	return plan, nil
}

func planReasons(list []planner.Reason) []*debvisorv1.PlanReason {
	out := make([]*debvisorv1.PlanReason, 0, len(list))
	for _, r := range list {
		out = append(out, &debvisorv1.PlanReason{Code: r.Code, Message: r.Message})
	}
	return out
}

// failoverDisk is what becomes of a disk, as callers see it.
func failoverDisk(v *failover.Verdict, d *failover.Disk) *debvisorv1.FailoverDisk {
	m := &debvisorv1.FailoverDisk{Target: d.GetTarget(), JobId: d.GetJobId(), Snapshot: d.GetSnapshot().GetName(), AgeSeconds: uint64(d.Age.Seconds())}
	if image := d.GetImage(); image != nil {
		name := image.GetName()
		if image.GetNamespace() != "" {
			name = image.GetNamespace() + "/" + name
		}
		m.Source = &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: image.GetPool(), Name: name}
		return m
	}
	m.Source, m.Replica = datasetRef(v.Source, d.SourceDataset), datasetRef(d.Job.Value.GetTarget(), d.GetDataset())
	return m
}

// failoverRefusal is a failover that is not allowed, as an error with all its
// reasons.
func failoverRefusal(v *failover.Verdict) error {
	e := errdefs.New(errdefs.FailedPrecondition, "FAILOVER_NOT_ALLOWED", "%s", v.Refusal()).
		With("vm", v.VM.Value.GetUuid()).With("source", v.Source)
	if v.Target != "" {
		e = e.With("target", v.Target)
	}
	return e.With("reasons", strings.Join(v.Codes(), ","))
}

// failoverResult is the end of a failover: its result, or its error.
func failoverResult(op *storev1.Operation) (*debvisorv1.FailoverResult, error) {
	f := op.GetFailover()
	switch op.GetState() {
	case task.OpSucceeded:
	case task.OpCancelled:
		return nil, powerFailure(op) // it says what had been done by then
	default:
		return nil, failure(op)
	}
	result := &debvisorv1.FailoverResult{
		Status: debvisorv1.StatusCode_STATUS_OK, OperationId: op.GetId(), Source: nodeRef(f.GetSource()), Target: nodeRef(f.GetTarget()),
		Proof: f.GetProof(), DataAgeSeconds: f.GetDataAgeSeconds(), DurationMs: sinceMs(op.GetCreatedAt(), op.GetEndedAt()),
		Message: fmt.Sprintf("VM %s runs on %s", f.GetVmName(), f.GetTarget()),
	}
	if !f.GetStart() {
		result.Message = fmt.Sprintf("VM %s is defined on %s, shut off as it was", f.GetVmName(), f.GetTarget())
	}
	return result, nil
}

func sinceMs(from, to *timestamppb.Timestamp) uint64 {
	return uint64(max(to.AsTime().Sub(from.AsTime()).Milliseconds(), 0))
}

// judgeFailover judges a failover, having asked what only agents know: the images'
// ids and features, and the newest snapshots of the chosen target's replicas.
func (s *migrationService) judgeFailover(ctx context.Context, req *debvisorv1.FailoverRequest) (*failover.Verdict, error) {
	scope := scopeOf(ctx, s.view.Current())
	vm, err := findVM(scope, req.GetVm())
	if err != nil {
		return nil, err
	}
	target, err := findNode(scope.Snapshot(), req.GetTarget())
	if err != nil {
		return nil, err
	}
	r := failover.Request{
		VM: vm.GetUuid(), Target: target, Tenant: scope.Tenant(), NodeIsOff: req.GetNodeIsOff(), By: authn.From(ctx).Name,
		AcceptLoss: time.Duration(min(req.GetAcceptDataLossSeconds(), maxAccepted)) * time.Second, Now: time.Now(),
	}
	v := failover.Judge(scope.Snapshot(), r)
	s.askImages(ctx, &r, v)
	s.askReplicas(ctx, &r, v)
	r.Target = v.Target // what was found out is about that one
	return failover.Judge(s.view.Current(), r), nil
}

// maxAccepted is the most data loss that can be accepted, seconds: ten years.
const maxAccepted = 10 * 365 * 24 * 3600
