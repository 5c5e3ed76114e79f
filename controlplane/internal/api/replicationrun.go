package api

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// The kinds of the operations on replication jobs.
const (
	kindReplicate = "replication.run"
	kindEndJob    = "replication.delete"
)

// RunZfsReplication runs a replication job, waits until both ends have the same
// newest snapshot, and answers how the job stands then.
func (s *storageService) RunZfsReplication(ctx context.Context, ref *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	op, err := s.submit(ctx, kindReplicate, ref, func(scope cluster.Scope, spec *operations.Spec) error {
		entry, err := findJob(scope, ref.GetJobId())
		if err != nil {
			return err
		}
		job := entry.Value
		if err := beingDeleted(job); err != nil {
			return err
		}
		if err := confirmable(job, ref.GetConfirmPlanId(), time.Now()); err != nil {
			return err
		}
		options := jobOptions(job)
		if inventory, ok := s.seen.of(scope.Snapshot(), job.GetSource()); ok {
			d := dataset{node: job.GetSource(), path: job.GetDataset(), known: inventory.byName[job.GetDataset()]}
			if err := needsSnapshots("options", d, options); err != nil {
				return err
			}
		}
		detail := replicateOf(job)
		detail.ConfirmedPlan = ref.GetConfirmPlanId()
		spec.Replicate, spec.Resources, spec.Owner = detail, jobResources(job), job.GetTenant()
		if !options.GetNoSnapshot() {
			spec.Begin = func(id string) { detail.Snapshot = cluster.SnapshotName(id, time.Now()) }
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.statusOf(ctx, op)
}

// confirmable refuses to confirm a plan that is not the job's last, or has ended.
func confirmable(job *storev1.ReplicationJob, plan string, now time.Time) error {
	if plan == "" {
		return nil
	}
	live := liveDecision(job, now)
	switch {
	case live == nil:
		return errdefs.New(errdefs.FailedPrecondition, "PLAN_NOT_FOUND",
			"job %s has no plan that could be confirmed; plans can be for %d minutes: plan it anew", job.GetId(), int(decisionFor.Minutes())).With("job", job.GetId())
	case live.GetPlanId() != plan:
		return errdefs.New(errdefs.FailedPrecondition, "PLAN_CHANGED", "the plan of job %s is %s by now, and not %s: look at what it says first", job.GetId(), live.GetPlanId(), clip(plan)).
			With("job", job.GetId()).With("plan", live.GetPlanId())
	}
	return nil
}

func replicateOf(job *storev1.ReplicationJob) *storev1.Replicate {
	return &storev1.Replicate{
		JobId: job.GetId(), Source: job.GetSource(), Target: job.GetTarget(), Dataset: job.GetDataset(), TargetDataset: job.GetTargetDataset(),
	}
}

// jobResources are what work on a job holds in use.
func jobResources(job *storev1.ReplicationJob) []string {
	return []string{cluster.ReplicationResource(job.GetId()), cluster.CopyResource(job.GetTarget(), job.GetTargetDataset())}
}

// statusOf answers an operation on a job with how the job stands.
func (s *storageService) statusOf(ctx context.Context, op *storev1.Operation) (*debvisorv1.ReplicationStatus, error) {
	scope := scopeOf(ctx, s.view.Current())
	entry, ok := scope.Replication(op.GetReplicate().GetJobId())
	if !ok { // it is deleted, by this operation or since
		return &debvisorv1.ReplicationStatus{
			JobId: op.GetReplicate().GetJobId(), State: debvisorv1.ReplicationState_REPL_STATE_SUCCESS, OperationId: op.GetId(),
			LastUpdate: timestamp(op.GetEndedAt()),
		}, nil
	}
	status := jobStatus(scope, entry.Value, time.Now())
	status.OperationId = op.GetId()
	return status, nil
}

// GetReplicationStatus answers how a replication job stands.
func (s *storageService) GetReplicationStatus(ctx context.Context, ref *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	scope := scopeOf(ctx, s.view.Current())
	entry, err := findJob(scope, ref.GetJobId())
	if err != nil {
		return nil, err
	}
	return jobStatus(scope, entry.Value, time.Now()), nil
}

// ListReplications answers the replication jobs of the caller's scope, by id.
func (s *storageService) ListReplications(ctx context.Context, filter *debvisorv1.ReplicationFilter) (*debvisorv1.ReplicationList, error) {
	scope := scopeOf(ctx, s.view.Current())
	node, err := findNode(scope.Snapshot(), filter.GetNode())
	if err != nil {
		return nil, err
	}
	list := &debvisorv1.ReplicationList{}
	for entry := range scope.Replications() {
		job := entry.Value
		if (node == "" || job.GetSource() == node || job.GetTarget() == node) && (filter.GetPolicy() == "" || job.GetPolicy() == filter.GetPolicy()) {
			status := jobStatus(scope, job, time.Now())
			status.Decision = nil // GetReplicationStatus tells
			list.Replications = append(list.Replications, status)
		}
	}
	slices.SortFunc(list.GetReplications(), func(a, b *debvisorv1.ReplicationStatus) int { return cmp.Compare(a.GetJobId(), b.GetJobId()) })
	return list, nil
}

// jobStatus is how a job stands, with the run that is at work.
func jobStatus(scope cluster.Scope, job *storev1.ReplicationJob, now time.Time) *debvisorv1.ReplicationStatus {
	m := &debvisorv1.ReplicationStatus{
		JobId: job.GetId(), State: debvisorv1.ReplicationState_REPL_STATE_PENDING, LastSnapshotName: job.GetCursorName(),
		BytesTransferred: job.GetLastBytes(), DurationMs: job.GetLastDurationMs(),
		LastError: discreetText(scope, []string{job.GetDataset(), job.GetTargetDataset()}, job.GetLastError()), LastErrorCode: job.GetLastErrorCode(),
		LastUpdate: timestamp(cmp.Or(job.GetLastEnd(), job.GetCreatedAt())), OperationId: job.GetLastOperation(),
		Source: nodeRef(job.GetSource()), Target: nodeRef(job.GetTarget()), Policy: job.GetPolicy(),
		Dataset: datasetRef(job.GetSource(), job.GetDataset()), TargetDataset: datasetRef(job.GetTarget(), job.GetTargetDataset()),
		Resumes: job.GetResumesTotal(), LagBytes: job.GetLagBytes(), LastSuccess: timestamp(job.GetLastSuccess()),
		RpoMissedSince: timestamp(job.GetRpoMissedSince()), RpoSeconds: jobOptions(job).GetRpoSeconds(),
		Decision: discreetDecision(scope, job, liveDecision(job, now)),
	}
	if at := job.GetCursorCreated(); at != nil {
		m.LagSeconds = uint64(max(0, now.Sub(at.AsTime()).Seconds()))
	}
	switch {
	case job.GetLastErrorCode() != "":
		m.State = debvisorv1.ReplicationState_REPL_STATE_FAILED
	case job.GetLastSuccess() != nil:
		m.State = debvisorv1.ReplicationState_REPL_STATE_SUCCESS
	}
	if op, ok := scope.Operation(job.GetLastOperation()); ok {
		m.SetAside = op.Value.GetReplicate().GetSetAside()
	}
	id, held := scope.Holder(cluster.ReplicationResource(job.GetId()))
	if op, ok := scope.Operation(id); held && ok {
		atWork(m, readable(scope, op.Value), now)
	}
	return m
}

// atWork adds what is known of the operation that works on a job.
func atWork(m *debvisorv1.ReplicationStatus, op *storev1.Operation, now time.Time) {
	p := decode(op.GetProgress(), &debvisorv1.OperationProgress{})
	m.OperationId, m.Phase = op.GetId(), op.GetStep()
	m.BytesTransferred, m.BytesTotal, m.BytesPerSecond, m.EtaMs = p.GetBytesDone(), p.GetBytesTotal(), p.GetBytesPerSecond(), p.GetEtaMs()
	m.Resumes += op.GetReplicate().GetResumes()
	m.SetAside, m.LastUpdate, m.DurationMs = op.GetReplicate().GetSetAside(), moment(now), 0
	m.State = debvisorv1.ReplicationState_REPL_STATE_PENDING
	if op.GetState() == task.OpRunning {
		m.State = debvisorv1.ReplicationState_REPL_STATE_RUNNING
		m.DurationMs = uint64(max(0, now.Sub(op.GetStartedAt().AsTime()).Milliseconds()))
	}
}

// DeleteReplication ends a job and waits until what it keeps on both nodes is
// released; the copy stays, and becomes writable. FailedPrecondition for a job of
// a replication policy, which would make it anew.
func (s *storageService) DeleteReplication(ctx context.Context, ref *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	if ref.GetConfirmPlanId() != "" {
		return nil, errdefs.Field("confirm_plan_id", clip(ref.GetConfirmPlanId()), "nothing: it is for runs")
	}
	op, err := s.submit(ctx, kindEndJob, ref, func(scope cluster.Scope, spec *operations.Spec) error {
		entry, err := findJob(scope, ref.GetJobId())
		if err != nil {
			return err
		}
		job := entry.Value
		if policy := job.GetPolicy(); policy != "" && !job.GetDeleting() {
			return errdefs.New(errdefs.FailedPrecondition, "JOB_OF_POLICY", "job %s belongs to replication policy %s: take its dataset or target out of that, or delete that", job.GetId(), policy).
				With("job", job.GetId()).With("policy", policy)
		}
		spec.Replicate, spec.Resources, spec.Owner = replicateOf(job), jobResources(job), job.GetTenant()
		leaving := proto.CloneOf(job)
		leaving.Deleting = true
		spec.Also = func(string) store.Change {
			key := store.ReplicationKey(job.GetId())
			return store.Change{
				Require: []store.Condition{store.Unchanged(key, entry.ModRevision)},
				Puts:    []store.Put{store.PutProto(key, leaving)},
			}
		}
		return nil
	})
	if err != nil {
		return nil, changedMeanwhile(err, ref.GetJobId())
	}
	return s.statusOf(ctx, op)
}

// changedMeanwhile tells of a job that somebody else changed while this call
// was about to.
func changedMeanwhile(err error, id string) error {
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) || conflict.Key != store.ReplicationKey(id) {
		return err
	}
	return errdefs.New(errdefs.Aborted, "JOB_CHANGED", "replication job %s changed at that moment; try again", id).With("job", id).WithRetry(time.Second).WithCause(err)
}

// noPolicy is what comes of a policy that does not exist.
func noPolicy(kind, name string) error {
	return errdefs.New(errdefs.NotFound, "POLICY_NOT_FOUND", "no %s policy is called %q", kind, clip(name)).With("policy", clip(name))
}
