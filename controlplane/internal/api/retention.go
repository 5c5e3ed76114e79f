package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	"github.com/debvisor/debvisor/controlplane/internal/schedule"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// SetRetentionPolicy makes or replaces a named retention policy. Its datasets
// must be there; each is kept with its node. InvalidArgument names what is wrong
// of rules, schedule, zone and patterns.
func (s *storageService) SetRetentionPolicy(ctx context.Context, req *debvisorv1.RetentionPolicySpec) (*debvisorv1.RetentionPolicyStatus, error) {
	if _, _, err := retention.FromProto("rules", req.GetRules()); err != nil {
		return nil, err
	}
	if err := checkSchedule(req.GetSchedule(), req.GetTimeZone()); err != nil {
		return nil, err
	}
	if err := checkLabel("snapshot_label", req.GetSnapshotLabel()); err != nil {
		return nil, err
	}
	if len(req.GetDatasets()) == 0 {
		return nil, errdefs.Field("datasets", "none", "at least one dataset")
	}
	scope := scopeOf(ctx, s.view.Current())
	kept := proto.CloneOf(req)
	kept.Datasets = nil
	for i, ref := range req.GetDatasets() {
		field := fmt.Sprintf("datasets[%d]", i)
		if isImage(ref) {
			found, err := s.findImage(ctx, scope, field, ref)
			if err != nil {
				return nil, err
			}
			named := imageRef(found.id)
			named.Node = nodeRef(found.node) // which cluster is meant
			kept.Datasets = append(kept.Datasets, named)
			continue
		}
		d, err := s.resolve(ctx, scope, field, ref, "prune the snapshots")
		if err == nil && req.GetSnapshotLabel() != "" {
			err = snapshottable(scope, d)
		}
		if err != nil {
			return nil, err
		}
		kept.Datasets = append(kept.Datasets, d.ref())
	}
	record := &storev1.RetentionPolicy{Name: req.GetName(), ChangedAt: timestamppb.New(time.Now()), ChangedBy: authn.From(ctx).Name}
	var err error
	if record.Spec, err = encodeMessage(kept); err != nil {
		return nil, fmt.Errorf("encoding a retention policy: %w", err)
	}
	key := store.RetentionPolicyKey(req.GetName())
	op, err := s.apply(ctx, "retention.set", req, "retention/"+req.GetName(), func(snapshot *cluster.Snapshot) (store.Change, error) {
		was := snapshot.RetentionPolicies[req.GetName()]
		record.Run = was.Value.GetRun()
		return store.Change{
			Require: []store.Condition{store.Unchanged(key, was.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, record)},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	status := retentionStatus(record, time.Now())
	status.OperationId = op.GetId()
	return status, nil
}

// apply makes a change that is one transaction, with its operation.
func (s *storageService) apply(
	ctx context.Context, kind string, req proto.Message, resource string, change func(*cluster.Snapshot) (store.Change, error),
) (*storev1.Operation, error) {
	spec, err := specOf(ctx, scopeOf(ctx, s.view.Current()), kind, req)
	if err != nil {
		return nil, err
	}
	spec.Resources = []string{resource}
	op, err := s.operations.Apply(ctx, spec, change)
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, op.GetId())
	return op, nil
}

// checkSchedule refuses a schedule that means nothing; none is one, too.
func checkSchedule(expr, zone string) error {
	if expr == "" && zone == "" {
		return nil
	}
	if expr == "" {
		expr = "every 1d" // for the zone
	}
	_, err := schedule.Parse(expr, zone)
	return err
}

// ListRetentionPolicies answers the retention policies, by name.
func (s *storageService) ListRetentionPolicies(context.Context, *debvisorv1.Empty) (*debvisorv1.RetentionPolicyList, error) {
	snapshot, list := s.view.Current(), &debvisorv1.RetentionPolicyList{}
	for _, name := range slices.Sorted(maps.Keys(snapshot.RetentionPolicies)) {
		list.Policies = append(list.Policies, retentionStatus(snapshot.RetentionPolicies[name].Value, time.Now()))
	}
	return list, nil
}

// DeleteRetentionPolicy ends a policy; snapshots stay.
func (s *storageService) DeleteRetentionPolicy(ctx context.Context, ref *debvisorv1.StoragePolicyRef) (*debvisorv1.Empty, error) {
	key := store.RetentionPolicyKey(ref.GetName())
	_, err := s.apply(ctx, "retention.delete", ref, "retention/"+ref.GetName(), func(snapshot *cluster.Snapshot) (store.Change, error) {
		was, ok := snapshot.RetentionPolicies[ref.GetName()]
		if !ok {
			return store.Change{}, noPolicy("retention", ref.GetName())
		}
		return store.Change{Require: []store.Condition{store.Unchanged(key, was.ModRevision)}, Deletes: []string{key}}, nil
	})
	return &debvisorv1.Empty{}, err
}

func retentionStatus(record *storev1.RetentionPolicy, now time.Time) *debvisorv1.RetentionPolicyStatus {
	spec := decode(record.GetSpec(), &debvisorv1.RetentionPolicySpec{})
	return &debvisorv1.RetentionPolicyStatus{
		Spec: spec, Run: policyRun(record.GetRun(), spec.GetSchedule(), spec.GetTimeZone(), spec.GetPaused(), now),
	}
}

// policyRun is how a policy's schedule stands.
func policyRun(run *storev1.StoragePolicyRun, expr, zone string, paused bool, now time.Time) *debvisorv1.PolicyRun {
	m := &debvisorv1.PolicyRun{
		LastDue: timestamp(run.GetLastDue()), LastOperations: run.GetLastOperations(),
		Fired: run.GetFired(), Skipped: run.GetSkipped(), LastSkip: run.GetLastSkip(),
	}
	if expr == "" || paused {
		return m
	}
	if due, err := schedule.Parse(expr, zone); err == nil {
		if next := due.Next(now); !next.IsZero() {
			m.NextDue = moment(next)
		}
	}
	return m
}
