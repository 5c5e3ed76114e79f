package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// decisionFor is how long a plan can be confirmed by its id.
const decisionFor = 10 * time.Minute

// PlanZfsReplication makes a replication job, or finds the one that there is,
// and tells what its next run would send, as things are now. A job is found by
// its id, or without one by what it keeps alike where; of a known id with
// another source, target or dataset: AlreadyExists. Both ends are asked:
// Unavailable where one does not answer, and nothing is made then.
func (s *storageService) PlanZfsReplication(ctx context.Context, req *debvisorv1.ZfsReplicationPlan) (*debvisorv1.ReplicationJob, error) {
	scope := scopeOf(ctx, s.view.Current())
	spec, err := specOf(ctx, scope, "replication.plan", req)
	if err != nil {
		return nil, err
	}
	if op, err := s.operations.Repeated(spec); op != nil || err != nil {
		return s.plannedBefore(scope, op, err)
	}
	job, err := s.wanted(ctx, scope, req)
	if err != nil {
		return nil, err
	}
	_, known := everyJob(scope.Snapshot())[job.GetId()]
	plan, err := s.decide(ctx, scope, job)
	if err != nil {
		return nil, err
	}
	decision, expires := plan.Decision, time.Now().Add(decisionFor)
	decision.ExpiresAt = moment(expires)
	encoded, err := encodeMessage(decision)
	if err != nil {
		return nil, fmt.Errorf("encoding a replication's plan: %w", err)
	}
	spec.Resources = []string{"replication-plan/" + job.GetId()}
	spec.Owner = job.GetTenant()
	op, err := s.operations.Apply(ctx, spec, func(snapshot *cluster.Snapshot) (store.Change, error) {
		scope := scopeOf(ctx, snapshot)
		was, exists := everyJob(snapshot)[job.GetId()]
		if exists && pairOf(was.Value) != pairOf(job) {
			return store.Change{}, otherPlan(scope, was.Value)
		}
		if !exists && known {
			// What was copied of its record is not so any more.
			return store.Change{}, errdefs.New(errdefs.Aborted, "JOB_CHANGED", "replication job %s was deleted at that moment; try again", job.GetId()).With("job", job.GetId()).WithRetry(time.Second)
		}
		if !exists {
			if err := fits(scope, everyJob(snapshot), "target_dataset", job.GetId(), pairOf(job)); err != nil {
				return store.Change{}, err
			}
		}
		is := job
		if exists {
			if err := beingDeleted(was.Value); err != nil {
				return store.Change{}, err
			}
			is = proto.CloneOf(was.Value)
			is.Options = job.GetOptions()
		}
		is.Decision, is.DecisionExpires = encoded, timestamppb.New(expires)
		key := store.ReplicationKey(is.GetId())
		return store.Change{
			Require: []store.Condition{store.Unchanged(key, was.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, is)},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, op.GetId())
	return jobMessage(job, discreetDecision(scope, job, decision)), nil
}

// plannedBefore answers a repeated request: with the job as it is now.
func (s *storageService) plannedBefore(scope cluster.Scope, op *storev1.Operation, err error) (*debvisorv1.ReplicationJob, error) {
	if err != nil {
		return nil, err
	}
	for _, resource := range op.GetResources() {
		if entry, ok := scope.Replication(resource[len("replication-plan/"):]); ok {
			return jobMessage(entry.Value, discreetDecision(scope, entry.Value, liveDecision(entry.Value, time.Now()))), nil
		}
	}
	return nil, errdefs.New(errdefs.NotFound, "JOB_NOT_FOUND", "the job that operation %s made is gone", op.GetId()).With("operation", op.GetId())
}

// wanted is the job that a request is about: the one there is, with the options
// asked for, or a new one that is written nowhere yet.
func (s *storageService) wanted(ctx context.Context, scope cluster.Scope, req *debvisorv1.ZfsReplicationPlan) (*storev1.ReplicationJob, error) {
	if id := req.GetJobId(); id != "" {
		if err := checkJob(id); err != nil {
			return nil, err
		}
	}
	copied, err := targetOf(req)
	if err != nil {
		return nil, err
	}
	ref := proto.CloneOf(req.GetDataset())
	switch source, said := req.GetSource().GetNodeId().GetId(), ref.GetNode().GetNodeId().GetId(); {
	case said == "" && source != "":
		ref.Node = req.GetSource()
	case said != "" && source != "" && said != source:
		return nil, errdefs.Field("source.node_id.id", clip(source), "the node that dataset.node names, or nothing")
	}
	p, d, err := s.resolvePair(ctx, scope, "dataset", ref, "target.node_id.id", req.GetTarget(), "target_dataset", copied)
	if err != nil {
		return nil, err
	}
	job, err := s.jobFor(ctx, scope, req.GetJobId(), p, d)
	if err != nil {
		return nil, err
	}
	if err := s.setOptions(scope, job, req); err != nil {
		return nil, err
	}
	return job, needsSnapshots("options", d, jobOptions(job))
}

// targetOf is the copy's full name; empty: the same as the dataset's.
func targetOf(req *debvisorv1.ZfsReplicationPlan) (string, error) {
	ref := req.GetTargetDataset()
	switch {
	case ref == nil:
		return "", nil
	case ref.GetBackend() != debvisorv1.StorageBackend_BACKEND_ZFS:
		return "", errdefs.Field("target_dataset.backend", ref.GetBackend().String(), "BACKEND_ZFS")
	}
	if on := ref.GetNode().GetNodeId().GetId(); on != "" && on != req.GetTarget().GetNodeId().GetId() {
		return "", errdefs.Field("target_dataset.node", clip(on), "the node that target names, or nothing")
	}
	return cluster.ZFSPath("target_dataset", ref.GetPool(), ref.GetName())
}

// jobFor gives a copy of the job of a pair, or a new one.
func (s *storageService) jobFor(ctx context.Context, scope cluster.Scope, id string, p pair, d dataset) (*storev1.ReplicationJob, error) {
	if id != "" {
		if entry, ok := scope.Replication(id); ok {
			if pairOf(entry.Value) != p {
				return nil, otherPlan(scope, entry.Value)
			}
			return proto.CloneOf(entry.Value), beingDeleted(entry.Value)
		}
		if scope.Confined() {
			// Ids are everybody's: to say which are taken would tell of others' jobs.
			return nil, errdefs.New(errdefs.NotFound, "JOB_NOT_FOUND", "no replication job %q; leave job_id empty for a new one, which is then given an id", id).With("job", id)
		}
	}
	if entry, ok := everyJob(scope.Snapshot()).of(p); ok {
		_, own := scope.Replication(entry.Value.GetId())
		switch {
		case !own:
			return nil, errdefs.New(errdefs.FailedPrecondition, "REPLICATED_ALREADY", "%s is replicated to %s already, by an operator's job", p.dataset, p.target).
				With("dataset", p.dataset)
		case id != "":
			return nil, errdefs.New(errdefs.AlreadyExists, "REPLICATED_ALREADY", "%s is kept alike by job %s already", p, entry.Value.GetId()).
				With("field", "job_id").With("job", entry.Value.GetId())
		}
		return proto.CloneOf(entry.Value), beingDeleted(entry.Value)
	}
	if id == "" {
		id = p.id()
	}
	job := s.newJob(ctx, scope, id, p, d.known.GetGuid())
	return job, fits(scope, everyJob(scope.Snapshot()), "target_dataset", id, p)
}

// otherPlan refuses an id that is another plan's.
func otherPlan(scope cluster.Scope, job *storev1.ReplicationJob) error {
	if _, own := scope.Replication(job.GetId()); !own {
		return errdefs.New(errdefs.AlreadyExists, "JOB_EXISTS", "another job has that id; take another").With("field", "job_id")
	}
	return errdefs.New(errdefs.AlreadyExists, "JOB_EXISTS", "job %s exists and is another plan's: %s", job.GetId(), pairOf(job)).
		With("field", "job_id").With("job", job.GetId())
}

// setOptions gives a job the options of a request, or of the policy it names; a
// job that exists keeps its own where the request has none.
func (s *storageService) setOptions(scope cluster.Scope, job *storev1.ReplicationJob, req *debvisorv1.ZfsReplicationPlan) error {
	options := req.GetOptions()
	if name := req.GetPolicy(); name != "" {
		policy, ok := scope.Snapshot().ReplicationPolicies[name]
		switch {
		case !ok || scope.Confined():
			return noPolicy("replication", name)
		case options != nil:
			return errdefs.Field("options", "set", "nothing beside policy, whose options count")
		}
		options = decode(policy.Value.GetSpec(), &debvisorv1.ReplicationPolicySpec{}).GetOptions()
		if options == nil {
			options = &debvisorv1.ReplicationOptions{}
		}
	}
	if options == nil {
		return nil
	}
	if job.GetPolicy() != "" && job.GetPolicy() != req.GetPolicy() {
		return errdefs.New(errdefs.FailedPrecondition, "JOB_OF_POLICY", "job %s belongs to replication policy %s, whose options count; change that", job.GetId(), job.GetPolicy()).
			With("job", job.GetId()).With("policy", job.GetPolicy())
	}
	encoded, err := encodeMessage(options)
	if err != nil {
		return fmt.Errorf("encoding a replication's options: %w", err)
	}
	job.Options = encoded
	return nil
}

// jobMessage gives a job with its plan.
func jobMessage(job *storev1.ReplicationJob, decision *debvisorv1.ReplicationDecision) *debvisorv1.ReplicationJob {
	return &debvisorv1.ReplicationJob{
		JobId: job.GetId(), Decision: decision,
		Plan: &debvisorv1.ZfsReplicationPlan{
			JobId: job.GetId(), Source: nodeRef(job.GetSource()), Target: nodeRef(job.GetTarget()), Policy: job.GetPolicy(),
			Dataset: datasetRef(job.GetSource(), job.GetDataset()), TargetDataset: datasetRef(job.GetTarget(), job.GetTargetDataset()),
			Options: jobOptions(job),
		},
	}
}

func jobOptions(job *storev1.ReplicationJob) *debvisorv1.ReplicationOptions {
	return decode(job.GetOptions(), &debvisorv1.ReplicationOptions{})
}

// liveDecision is a job's last plan while it can be confirmed.
func liveDecision(job *storev1.ReplicationJob, now time.Time) *debvisorv1.ReplicationDecision {
	if len(job.GetDecision()) == 0 || !now.Before(job.GetDecisionExpires().AsTime()) {
		return nil
	}
	return decode(job.GetDecision(), &debvisorv1.ReplicationDecision{})
}
