package api

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// maxPolicyJobs bounds the jobs of one policy: they are made, and those that
// leave are ended, in one transaction, which holds 1,000 keys.
const maxPolicyJobs = 150

// SetReplicationPolicy makes or replaces a named replication policy and its
// jobs, one for each dataset and target, in one transaction. A job of the same
// source, target and dataset that no policy has is taken over. Jobs that the
// policy no longer has are ended, each by an operation; Aborted where one of
// them is at work. Its datasets must be there.
func (s *storageService) SetReplicationPolicy(ctx context.Context, req *debvisorv1.ReplicationPolicySpec) (*debvisorv1.ReplicationPolicyStatus, error) {
	if err := checkSchedule(req.GetSchedule(), req.GetTimeZone()); err != nil {
		return nil, err
	}
	if n := len(req.GetDatasets()) * len(req.GetTargets()); n > maxPolicyJobs {
		return nil, errdefs.Field("datasets", fmt.Sprintf("%d datasets to %d targets", len(req.GetDatasets()), len(req.GetTargets())),
			fmt.Sprintf("at most %d of them, each dataset counted for each target; make several policies", maxPolicyJobs))
	}
	scope := scopeOf(ctx, s.view.Current())
	wanted, kept, err := s.policyPairs(ctx, scope, req)
	if err != nil {
		return nil, err
	}
	record := &storev1.ReplicationPolicy{Name: req.GetName(), ChangedAt: timestamppb.New(time.Now()), ChangedBy: authn.From(ctx).Name}
	if record.Spec, err = encodeMessage(kept); err != nil {
		return nil, fmt.Errorf("encoding a replication policy: %w", err)
	}
	options, err := encodeMessage(cmp.Or(req.GetOptions(), &debvisorv1.ReplicationOptions{}))
	if err != nil {
		return nil, fmt.Errorf("encoding a replication's options: %w", err)
	}
	key := store.ReplicationPolicyKey(req.GetName())
	op, err := s.apply(ctx, "replication.policy.set", req, "replication-policy/"+req.GetName(), func(snapshot *cluster.Snapshot) (store.Change, error) {
		was := snapshot.ReplicationPolicies[req.GetName()]
		record.Run = was.Value.GetRun()
		change := store.Change{
			Require: []store.Condition{store.Unchanged(key, was.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, record)},
		}
		members, err := s.enlist(ctx, scopeOf(ctx, snapshot), req.GetName(), options, wanted, &change)
		if err != nil {
			return store.Change{}, err
		}
		err = s.dismiss(ctx, snapshot, req, req.GetName(), members, &change)
		return change, err
	})
	if err != nil {
		return nil, err
	}
	status := s.replicationPolicyStatus(s.view.Current(), record, time.Now())
	status.OperationId = op.GetId()
	return status, nil
}

// wantedJob is a job that a policy is to have.
type wantedJob struct {
	pair
	field string
	guid  uint64
}

// policyPairs finds what a policy's jobs keep alike, and gives its spec with each
// dataset's node.
func (s *storageService) policyPairs(ctx context.Context, scope cluster.Scope, req *debvisorv1.ReplicationPolicySpec) ([]wantedJob, *debvisorv1.ReplicationPolicySpec, error) {
	kept := proto.CloneOf(req)
	kept.Datasets = nil
	var all []wantedJob
	for j, target := range req.GetTargets() {
		if target.GetPrefix() != "" {
			if err := cluster.ZFSDataset(fmt.Sprintf("targets[%d].prefix", j), target.GetPrefix()); err != nil {
				return nil, nil, err
			}
		}
	}
	for i, ref := range req.GetDatasets() {
		field := fmt.Sprintf("datasets[%d]", i)
		for j, target := range req.GetTargets() {
			targetField := fmt.Sprintf("targets[%d]", j)
			copied := ""
			if target.GetPrefix() != "" {
				copied = target.GetPrefix() + "/" + ref.GetName()
			}
			p, d, err := s.resolvePair(ctx, scope, field, ref, targetField+".node.node_id.id", target.GetNode(), targetField+".prefix", copied)
			if err == nil {
				err = needsSnapshots("options", d, req.GetOptions())
			}
			if err != nil {
				return nil, nil, err
			}
			if slices.ContainsFunc(all, func(o wantedJob) bool { return o.pair == p }) {
				return nil, nil, errdefs.Field(field, p.String(), "each dataset and each target once")
			}
			if at := slices.IndexFunc(all, func(o wantedJob) bool { return o.target == p.target && o.copied == p.copied }); at >= 0 {
				return nil, nil, errdefs.Field(targetField+".prefix", p.String(), "a copy of its own for each dataset; "+all[at].String()+" has the same")
			}
			all = append(all, wantedJob{p, targetField + ".prefix", d.known.GetGuid()})
			ref = d.ref()
		}
		kept.Datasets = append(kept.Datasets, ref)
	}
	return all, kept, nil
}

// enlist adds to a change the jobs that a policy has, and gives their ids.
func (s *storageService) enlist(
	ctx context.Context, scope cluster.Scope, policy string, options []byte, wanted []wantedJob, change *store.Change,
) (map[string]bool, error) {
	members := map[string]bool{}
	all := maps.Clone(everyJob(scope.Snapshot())) // and those of this change, which must make no loop among themselves
	for _, w := range wanted {
		entry, exists := all.of(w.pair)
		var job *storev1.ReplicationJob
		if exists {
			job = proto.CloneOf(entry.Value)
			if err := beingDeleted(job); err != nil {
				return nil, err
			}
			if other := job.GetPolicy(); other != "" && other != policy {
				return nil, errdefs.New(errdefs.FailedPrecondition, "JOB_OF_POLICY", "%s is kept alike by replication policy %s already", w, other).
					With("field", w.field).With("policy", other)
			}
		} else {
			job = s.newJob(ctx, scope, w.id(), w.pair, w.guid)
			if err := fits(scope, all, w.field, job.GetId(), w.pair); err != nil {
				return nil, err
			}
		}
		members[job.GetId()] = true
		if job.GetPolicy() == policy && string(job.GetOptions()) == string(options) {
			continue
		}
		job.Policy, job.Options = policy, options
		all[job.GetId()] = cluster.Entry[*storev1.ReplicationJob]{Value: job}
		key := store.ReplicationKey(job.GetId())
		change.Require = append(change.Require, store.Unchanged(key, entry.ModRevision))
		change.Puts = append(change.Puts, store.PutProto(key, job))
	}
	return members, nil
}

// dismiss adds to a change the end of those of a policy's jobs that are not
// among its members any more.
func (s *storageService) dismiss(ctx context.Context, snapshot *cluster.Snapshot, req proto.Message, policy string, members map[string]bool, change *store.Change) error {
	scope := scopeOf(ctx, snapshot)
	ended := 0
	for _, id := range slices.Sorted(maps.Keys(everyJob(snapshot))) {
		entry := everyJob(snapshot)[id]
		if entry.Value.GetPolicy() != policy || members[id] || entry.Value.GetDeleting() {
			continue
		}
		if ended++; ended > maxPolicyJobs {
			return errdefs.New(errdefs.FailedPrecondition, "TOO_MANY_JOBS", "more than %d jobs of policy %s would end at once; take datasets out in several steps", maxPolicyJobs, policy).
				With("policy", policy)
		}
		spec, err := specOf(ctx, scope, kindEndJob, req)
		if err != nil {
			return err
		}
		spec.Replicate, spec.Resources, spec.Owner = replicateOf(entry.Value), jobResources(entry.Value), entry.Value.GetTenant()
		spec.Replicate.Policy = policy
		_, end, err := operations.Pending(snapshot, spec)
		if err != nil {
			return err
		}
		job := proto.CloneOf(entry.Value)
		job.Deleting, job.Policy = true, ""
		key := store.ReplicationKey(id)
		change.Require = append(append(change.Require, end.Require...), store.Unchanged(key, entry.ModRevision))
		change.Puts = append(append(change.Puts, end.Puts...), store.PutProto(key, job))
	}
	return nil
}

// ListReplicationPolicies answers the replication policies, by name.
func (s *storageService) ListReplicationPolicies(context.Context, *debvisorv1.Empty) (*debvisorv1.ReplicationPolicyList, error) {
	snapshot, list := s.view.Current(), &debvisorv1.ReplicationPolicyList{}
	for _, name := range slices.Sorted(maps.Keys(snapshot.ReplicationPolicies)) {
		list.Policies = append(list.Policies, s.replicationPolicyStatus(snapshot, snapshot.ReplicationPolicies[name].Value, time.Now()))
	}
	return list, nil
}

// DeleteReplicationPolicy ends a policy and its jobs; copies stay. Aborted where
// one of the jobs is at work.
func (s *storageService) DeleteReplicationPolicy(ctx context.Context, ref *debvisorv1.StoragePolicyRef) (*debvisorv1.Empty, error) {
	key := store.ReplicationPolicyKey(ref.GetName())
	_, err := s.apply(ctx, "replication.policy.delete", ref, "replication-policy/"+ref.GetName(), func(snapshot *cluster.Snapshot) (store.Change, error) {
		was, ok := snapshot.ReplicationPolicies[ref.GetName()]
		if !ok {
			return store.Change{}, noPolicy("replication", ref.GetName())
		}
		change := store.Change{Require: []store.Condition{store.Unchanged(key, was.ModRevision)}, Deletes: []string{key}}
		err := s.dismiss(ctx, snapshot, ref, ref.GetName(), nil, &change)
		return change, err
	})
	return &debvisorv1.Empty{}, err
}

func (s *storageService) replicationPolicyStatus(snapshot *cluster.Snapshot, record *storev1.ReplicationPolicy, now time.Time) *debvisorv1.ReplicationPolicyStatus {
	spec := decode(record.GetSpec(), &debvisorv1.ReplicationPolicySpec{})
	m := &debvisorv1.ReplicationPolicyStatus{
		Spec: spec, Run: policyRun(record.GetRun(), spec.GetSchedule(), spec.GetTimeZone(), spec.GetPaused(), now),
	}
	for _, id := range slices.Sorted(maps.Keys(everyJob(snapshot))) {
		if job := everyJob(snapshot)[id].Value; job.GetPolicy() == record.GetName() {
			status := jobStatus(snapshot.Within(""), job, now)
			status.Decision = nil
			m.Jobs = append(m.Jobs, status)
		}
	}
	return m
}
