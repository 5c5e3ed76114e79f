package main

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// fakeStorage has tank/web on n1, its copy on n3, and what protects it.
type fakeStorage struct {
	debvisorv1.UnimplementedStorageServiceServer
	made *cluster
}

func zfs(node, path string) *debvisorv1.DatasetRef {
	pool, name, _ := strings.Cut(path, "/")
	return &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: pool, Name: name, Node: nodeRef(node)}
}

// known refuses what there is not: only tank/web, on n1 if a node is said.
func known(ref *debvisorv1.DatasetRef) error {
	if ref.GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
		return knownImage(ref)
	}
	switch name := datasetName(ref); {
	case name == "tank/twin" && ref.GetNode() == nil:
		return errdefs.New(errdefs.FailedPrecondition, "AMBIGUOUS_DATASET", "2 nodes have a dataset tank/twin; name one of them in dataset.node: n1, n3")
	case name != "tank/web" && name != "tank/twin" || ref.GetNode() != nil && nodeName(ref.GetNode()) != "n1":
		return errdefs.New(errdefs.NotFound, "DATASET_NOT_FOUND", "no dataset or image %q of backend zfs", name)
	}
	return nil
}

func (f *fakeStorage) ListStorage(_ context.Context, filter *debvisorv1.StorageFilter) (*debvisorv1.StorageList, error) {
	list := &debvisorv1.StorageList{
		Pools: []*debvisorv1.StoragePool{
			{Node: nodeRef("n1"), Name: "tank", Health: "ONLINE", SizeBytes: 1 << 40, FreeBytes: 1 << 39, Version: "2.4.4"},
			{Node: nodeRef("n3"), Name: "tank", Health: "DEGRADED", StaleBecause: "the agent of n3 is not heard"},
		},
		Datasets: []*debvisorv1.Dataset{
			{Ref: zfs("n1", "tank"), UsedBytes: 5 << 30},
			{Ref: zfs("n1", "tank/web"), Volume: true, VolumeBytes: 20 << 30, UsedBytes: 3 << 30, ReferencedBytes: 2 << 30, AvailableBytes: 1 << 39, Encrypted: true, Vms: []string{uuidWeb}, Guid: "11"},
			{Ref: zfs("n3", "tank/web"), Volume: true, VolumeBytes: 20 << 30, ReadOnly: true, ReplicationJob: "web-copy", Guid: "12"},
			{Ref: zfs("n3", "tank/clone"), Origin: "tank/web@s1", Guid: "13"},
		},
	}
	if nodeName(filter.GetNode()) == "n3" && filter.GetPool() == "tank" {
		list.Pools, list.Datasets = list.GetPools()[1:], list.GetDatasets()[2:]
	}
	return list, nil
}

// begin answers with an operation that the fake goes through.
func (f *fakeStorage) begin(ctx context.Context, op *debvisorv1.Operation, step string, end func(*debvisorv1.Operation)) error {
	if v := metadata.ValueFromIncomingContext(ctx, "debvisor-wait"); len(v) != 1 || v[0] != "none" {
		return errdefs.New(errdefs.Internal, "TEST", "hvctl must not wait here")
	}
	op.State, op.CreatedAt, op.StartedAt, op.Principal = debvisorv1.OperationState_OPERATION_STATE_RUNNING, madeTime(0), madeTime(0), "operator"
	working := proto.CloneOf(op)
	working.Step = step
	working.Progress = &debvisorv1.OperationProgress{Percent: 50, BytesDone: 3 << 29, BytesTotal: 3 << 30, BytesPerSecond: 110 << 20, EtaMs: 14000}
	last := proto.CloneOf(working)
	last.Step, last.State, last.EndedAt = "", debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED, madeTime(9)
	last.Progress.BytesDone = 3 << 30
	if end != nil {
		end(last)
	}
	f.made.mu.Lock()
	f.made.operations[op.GetId()] = []*debvisorv1.Operation{op, working, last}
	f.made.mu.Unlock()
	return grpc.SetHeader(ctx, metadata.Pairs("debvisor-operation", op.GetId()))
}

func snapshotOperation(id, kind string, d *debvisorv1.SnapshotDetails) *debvisorv1.Operation {
	return &debvisorv1.Operation{Id: id, Kind: kind, Resources: []string{"zfs/n1/tank/web"}, Snapshot: d}
}

func (f *fakeStorage) CreateSnapshot(ctx context.Context, req *debvisorv1.SnapshotRequest) (*debvisorv1.SnapshotStatus, error) {
	if err := known(req.GetDataset()); err != nil {
		return nil, err
	}
	d := &debvisorv1.SnapshotDetails{Node: nodeRef("n1"), Datasets: []string{"tank/web"}, Name: "dv-1", Label: req.GetLabel()}
	if req.GetDataset().GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
		d.Node, d.Datasets, d.Backend = nil, []string{"vms/ns/web"}, debvisorv1.StorageBackend_BACKEND_RBD
	}
	if req.GetConsistency() == debvisorv1.Consistency_CONSISTENCY_APPLICATION && req.GetFreezeBudgetMs() == 2000 {
		d.Freeze = &debvisorv1.FreezeResult{Frozen: true, Filesystems: 2, FrozenMs: 120}
	}
	return &debvisorv1.SnapshotStatus{}, f.begin(ctx, snapshotOperation("op-snap", "snapshot.create", d), "taking it", nil)
}

func (f *fakeStorage) CreateSnapshotSet(ctx context.Context, req *debvisorv1.SnapshotSetRequest) (*debvisorv1.SnapshotSetStatus, error) {
	if req.GetVm().GetVmId() != "web1" && len(req.GetDatasets()) != 2 {
		return nil, errdefs.New(errdefs.Internal, "TEST", "not as the script asked: %v", req)
	}
	d := &debvisorv1.SnapshotDetails{Node: nodeRef("n1"), Datasets: []string{"tank/web", "tank/web-data"}, Name: "dv-2"}
	return &debvisorv1.SnapshotSetStatus{}, f.begin(ctx, snapshotOperation("op-set", "snapshot.create", d), "taking them", nil)
}

func madeSnapshots() []*debvisorv1.Snapshot {
	return []*debvisorv1.Snapshot{
		{Ref: &debvisorv1.SnapshotRef{Dataset: zfs("n1", "tank/web"), SnapshotName: "dv-1"}, CreatedAt: madeTime(0), Label: "before", OperationId: "op-snap", UsedBytes: 1 << 20, ReferencedBytes: 2 << 30, Guid: "1001"},
		{Ref: &debvisorv1.SnapshotRef{Dataset: zfs("n1", "tank/web"), SnapshotName: "dv-2"}, CreatedAt: madeTime(60), OperationId: "op-set", Holds: []string{"debvisor:web-copy"}, Clones: []string{"tank/clone"}, Guid: "1002"},
		{Ref: &debvisorv1.SnapshotRef{Dataset: zfs("n1", "tank/web"), SnapshotName: "mine"}, CreatedAt: madeTime(90), Guid: "1003"},
	}
}

// ListSnapshots gives one a page.
func (f *fakeStorage) ListSnapshots(_ context.Context, filter *debvisorv1.SnapshotFilter) (*debvisorv1.SnapshotList, error) {
	if err := known(filter.GetDataset()); err != nil {
		return nil, err
	}
	all := madeSnapshots()
	if !filter.GetAll() {
		all = all[:2]
	}
	if filter.GetDataset().GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
		all = madeTemplates()
	}
	at := len(filter.GetPage())
	list := &debvisorv1.SnapshotList{Snapshots: all[at : at+1]}
	if at+1 < len(all) {
		list.NextPage = filter.GetPage() + "x"
	}
	return list, nil
}

func (f *fakeStorage) GetSnapshot(_ context.Context, ref *debvisorv1.SnapshotRef) (*debvisorv1.Snapshot, error) {
	for _, s := range append(madeSnapshots(), madeTemplates()...) {
		if s.GetRef().GetSnapshotName() == ref.GetSnapshotName() && known(ref.GetDataset()) == nil {
			return s, nil
		}
	}
	return nil, errdefs.New(errdefs.NotFound, "SNAPSHOT_NOT_FOUND", "node n1 has no %s", snapshotName(ref))
}

func (f *fakeStorage) DeleteSnapshots(ctx context.Context, req *debvisorv1.DeleteSnapshotsRequest) (*debvisorv1.PruneResult, error) {
	for _, ref := range req.GetSnapshots() {
		if ref.GetSnapshotName() == "dv-2" {
			return nil, errdefs.New(errdefs.FailedPrecondition, "SNAPSHOTS_NEEDED", "nothing was removed, since 1 cannot be: tank/web@dv-2: held by debvisor:web-copy")
		}
	}
	d := &debvisorv1.SnapshotDetails{Node: nodeRef("n1"), Datasets: []string{"tank/web"}, Removed: uint32(len(req.GetSnapshots())), FreedBytes: 1 << 20}
	if req.GetSnapshots()[0].GetDataset().GetBackend() == debvisorv1.StorageBackend_BACKEND_RBD {
		d.Datasets, d.Backend = []string{"vms/base"}, debvisorv1.StorageBackend_BACKEND_RBD
	}
	return &debvisorv1.PruneResult{}, f.begin(ctx, snapshotOperation("op-del", "snapshot.delete", d), "removing", nil)
}

func (f *fakeStorage) PruneSnapshots(ctx context.Context, req *debvisorv1.PruneRequest) (*debvisorv1.PruneResult, error) {
	if req.GetPolicy().GetKeepLast() != 2 || req.GetPolicy().GetKeepWithinSeconds() != 3600 || req.GetPolicy().GetKeepPattern() != "pre-*" || !req.GetRecursive() {
		return nil, errdefs.New(errdefs.Internal, "TEST", "not as the script asked: %v", req)
	}
	d := &debvisorv1.SnapshotDetails{
		Node: nodeRef("n1"), Datasets: []string{"tank/web"}, Removed: 1, FreedBytes: 3 << 20, KeptBecause: []string{"tank/web@dv-9: it is held by now"},
	}
	return &debvisorv1.PruneResult{}, f.begin(ctx, snapshotOperation("op-prune", "snapshot.prune", d), "removing the first 500", nil)
}

func (f *fakeStorage) PlanPrune(_ context.Context, req *debvisorv1.PruneRequest) (*debvisorv1.PrunePlan, error) {
	if err := known(req.GetDataset()); err != nil {
		return nil, err
	}
	all := madeSnapshots()
	return &debvisorv1.PrunePlan{Keep: 1, Remove: 1, FreedBytes: 3 << 20, Verdicts: []*debvisorv1.PruneVerdict{
		{Snapshot: all[0].GetRef(), CreatedAt: all[0].GetCreatedAt(), Label: "before", UsedBytes: 1 << 20},
		{Snapshot: all[1].GetRef(), CreatedAt: all[1].GetCreatedAt(), Keep: true, Rules: []string{"last 1", "held by debvisor:web-copy"}},
	}}, nil
}

func (f *fakeStorage) SetRetentionPolicy(_ context.Context, spec *debvisorv1.RetentionPolicySpec) (*debvisorv1.RetentionPolicyStatus, error) {
	if spec.GetSchedule() == "often" {
		return nil, errdefs.Field("schedule", "often", `"every 15m" or five cron fields`)
	}
	want := &debvisorv1.RetentionPolicySpec{
		Name: "nightly", Rules: &debvisorv1.RetentionPolicy{KeepDailyDays: 14, TimeZone: "Europe/Berlin"}, Schedule: "30 2 * * *", TimeZone: "Europe/Berlin",
		SnapshotLabel: "auto", Recursive: true, Datasets: []*debvisorv1.DatasetRef{zfs("", "tank/web"), zfs("n3", "tank/twin")},
	}
	if !proto.Equal(spec, want) {
		return nil, errdefs.New(errdefs.Internal, "TEST", "not as the script asked: %v", spec)
	}
	return &debvisorv1.RetentionPolicyStatus{Spec: spec, Run: &debvisorv1.PolicyRun{NextDue: madeTime(600)}}, nil
}

func (f *fakeStorage) ListRetentionPolicies(context.Context, *debvisorv1.Empty) (*debvisorv1.RetentionPolicyList, error) {
	return &debvisorv1.RetentionPolicyList{Policies: []*debvisorv1.RetentionPolicyStatus{{
		Spec: &debvisorv1.RetentionPolicySpec{
			Name: "nightly", Rules: &debvisorv1.RetentionPolicy{KeepLast: 2, KeepWithinSeconds: 3600, OnlyPattern: "auto"}, Datasets: []*debvisorv1.DatasetRef{zfs("n1", "tank/web")},
			Schedule: "every 15m", SnapshotLabel: "auto",
		},
		Run: &debvisorv1.PolicyRun{NextDue: madeTime(600), Fired: 7, Skipped: 2, LastSkip: "in use"},
	}}}, nil
}

func (f *fakeStorage) DeleteRetentionPolicy(_ context.Context, ref *debvisorv1.StoragePolicyRef) (*debvisorv1.Empty, error) {
	if ref.GetName() != "nightly" {
		return nil, errdefs.New(errdefs.NotFound, "POLICY_NOT_FOUND", "no retention policy is called %q", ref.GetName())
	}
	return &debvisorv1.Empty{}, nil
}

func madeReplication(state debvisorv1.ReplicationState) *debvisorv1.ReplicationStatus {
	return &debvisorv1.ReplicationStatus{
		JobId: "web-copy", State: state, LastSnapshotName: "dv-2", BytesTransferred: 3 << 30, DurationMs: 9000, OperationId: "op-repl",
		Source: nodeRef("n1"), Target: nodeRef("n3"), Dataset: zfs("n1", "tank/web"), TargetDataset: zfs("n3", "tank/web"), Resumes: 2,
		LagSeconds: 600, LagBytes: 1 << 20, RpoSeconds: 300, RpoMissedSince: madeTime(300), LastSuccess: madeTime(0), Policy: "off-site",
	}
}

func (f *fakeStorage) PlanZfsReplication(_ context.Context, req *debvisorv1.ZfsReplicationPlan) (*debvisorv1.ReplicationJob, error) {
	if err := known(req.GetDataset()); err != nil {
		return nil, err
	}
	if req.GetOptions() != nil && (req.GetOptions().GetRpoSeconds() != 300 || req.GetTargetDataset().GetName() != "copies/web") {
		return nil, errdefs.New(errdefs.Internal, "TEST", "not as the script asked: %v", req)
	}
	job := &debvisorv1.ReplicationJob{
		JobId: "web-copy",
		Plan:  &debvisorv1.ZfsReplicationPlan{Source: nodeRef("n1"), Target: req.GetTarget(), Dataset: zfs("n1", "tank/web"), TargetDataset: zfs("n3", "tank/web"), Options: req.GetOptions()},
		Decision: &debvisorv1.ReplicationDecision{
			PlanId: "plan-1", Mode: debvisorv1.ReplicationMode_REPLICATION_MODE_INCREMENTAL, Divergence: debvisorv1.Divergence_DIVERGENCE_TARGET_NEWER, Common: "@dv-1",
			Steps:          []*debvisorv1.ReplicationStepPlan{{From: "@dv-1", To: "@dv-2", EstimatedBytes: 5 << 20}, {To: "@dv-3"}},
			EstimatedBytes: 5 << 20, SetAside: "tank/web.diverged-1", Destroy: []string{"@theirs"}, Reasons: []string{"the copy has snapshots of its own"}, ExpiresAt: madeTime(600),
		},
	}
	if nodeName(req.GetTarget()) == "n2" {
		job.Decision = &debvisorv1.ReplicationDecision{Mode: debvisorv1.ReplicationMode_REPLICATION_MODE_REFUSED, Reasons: []string{"no room"}}
	}
	return job, nil
}

func replicationOperation(id, kind string) *debvisorv1.Operation {
	return &debvisorv1.Operation{Id: id, Kind: kind, Resources: []string{"replication/web-copy"}, Replication: &debvisorv1.ReplicationDetails{
		JobId: "web-copy", Source: nodeRef("n1"), Target: nodeRef("n3"), Dataset: "tank/web", TargetDataset: "tank/web", Attempt: 1,
	}}
}

func (f *fakeStorage) RunZfsReplication(ctx context.Context, ref *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	if ref.GetConfirmPlanId() == "plan-old" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "PLAN_CHANGED", "the plan of job web-copy is plan-1 by now")
	}
	if ref.GetJobId() != "web-copy" {
		return nil, errdefs.New(errdefs.NotFound, "JOB_NOT_FOUND", "no replication job %q", ref.GetJobId())
	}
	return &debvisorv1.ReplicationStatus{}, f.begin(ctx, replicationOperation("op-repl", "replication.run"), "sending @dv-2", func(op *debvisorv1.Operation) {
		op.Replication.Resumes, op.Replication.SetAside = 1, "tank/web.diverged-1"
	})
}

func (f *fakeStorage) GetReplicationStatus(ctx context.Context, ref *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	switch ref.GetJobId() {
	case "web-copy":
		return madeReplication(debvisorv1.ReplicationState_REPL_STATE_SUCCESS), nil
	case "bad":
		bad := madeReplication(debvisorv1.ReplicationState_REPL_STATE_FAILED)
		bad.JobId, bad.LastErrorCode, bad.LastError = "bad", "TARGET_NO_SPACE", "no room on n3"
		return bad, nil
	case "busy":
		f.made.mu.Lock()
		_, seen := f.made.operations["op-busy-repl"]
		f.made.mu.Unlock()
		if seen {
			return madeReplication(debvisorv1.ReplicationState_REPL_STATE_SUCCESS), nil
		}
		busy := madeReplication(debvisorv1.ReplicationState_REPL_STATE_RUNNING)
		busy.OperationId = "op-busy-repl"
		busy.Phase, busy.BytesTotal, busy.BytesPerSecond, busy.EtaMs = "sending @dv-2", 6<<30, 110<<20, 14000
		return busy, f.begin(metadata.NewIncomingContext(ctx, metadata.Pairs("debvisor-wait", "none")), replicationOperation("op-busy-repl", "replication.run"), "sending @dv-2", nil)
	}
	return nil, errdefs.New(errdefs.NotFound, "JOB_NOT_FOUND", "no replication job %q", ref.GetJobId())
}

func (f *fakeStorage) ListReplications(_ context.Context, filter *debvisorv1.ReplicationFilter) (*debvisorv1.ReplicationList, error) {
	if filter.GetPolicy() == "none" {
		return &debvisorv1.ReplicationList{}, nil
	}
	return &debvisorv1.ReplicationList{Replications: []*debvisorv1.ReplicationStatus{madeReplication(debvisorv1.ReplicationState_REPL_STATE_SUCCESS)}}, nil
}

func (f *fakeStorage) DeleteReplication(ctx context.Context, ref *debvisorv1.JobRef) (*debvisorv1.ReplicationStatus, error) {
	if ref.GetJobId() == "of-policy" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "JOB_OF_POLICY", "job of-policy belongs to replication policy off-site").With("policy", "off-site")
	}
	return &debvisorv1.ReplicationStatus{}, f.begin(ctx, replicationOperation("op-end", "replication.delete"), "releasing", nil)
}

func (f *fakeStorage) SetReplicationPolicy(_ context.Context, spec *debvisorv1.ReplicationPolicySpec) (*debvisorv1.ReplicationPolicyStatus, error) {
	want := &debvisorv1.ReplicationPolicySpec{
		Name: "off-site", Datasets: []*debvisorv1.DatasetRef{zfs("", "tank/web")}, Schedule: "every 15m",
		Targets: []*debvisorv1.ReplicationTarget{{Node: nodeRef("n3")}, {Node: nodeRef("n2"), Prefix: "backup/n1"}}, Options: &debvisorv1.ReplicationOptions{RpoSeconds: 3600},
	}
	if !proto.Equal(spec, want) {
		return nil, errdefs.New(errdefs.Internal, "TEST", "not as the script asked: %v", spec)
	}
	return &debvisorv1.ReplicationPolicyStatus{
		Spec: spec, Run: &debvisorv1.PolicyRun{NextDue: madeTime(600)}, Jobs: []*debvisorv1.ReplicationStatus{madeReplication(1), madeReplication(1)},
	}, nil
}

func (f *fakeStorage) ListReplicationPolicies(context.Context, *debvisorv1.Empty) (*debvisorv1.ReplicationPolicyList, error) {
	return &debvisorv1.ReplicationPolicyList{Policies: []*debvisorv1.ReplicationPolicyStatus{{
		Spec: &debvisorv1.ReplicationPolicySpec{
			Name: "off-site", Datasets: []*debvisorv1.DatasetRef{zfs("n1", "tank/web")}, Schedule: "0 * * * *", TimeZone: "Asia/Tokyo", Paused: true,
			Targets: []*debvisorv1.ReplicationTarget{{Node: nodeRef("n3"), Prefix: "backup"}}, Options: &debvisorv1.ReplicationOptions{NewestOnly: true, BandwidthMib: 50},
		},
		Run: &debvisorv1.PolicyRun{Fired: 3}, Jobs: []*debvisorv1.ReplicationStatus{madeReplication(debvisorv1.ReplicationState_REPL_STATE_SUCCESS)},
	}}}, nil
}

func (f *fakeStorage) DeleteReplicationPolicy(context.Context, *debvisorv1.StoragePolicyRef) (*debvisorv1.Empty, error) {
	return &debvisorv1.Empty{}, nil
}

func TestReadDatasets(t *testing.T) {
	for text, want := range map[string]string{
		"tank/a": ":tank/a", "n1:tank/a/b": "n1:tank/a/b", "tank/a:b": ":tank/a:b", "n1:tank/a:b": "n1:tank/a:b",
		"tank": "", "": "", "/a": "", "n1:tank": "", ":tank/a": "", "tank/": "",
	} {
		ref, err := readDataset(text)
		if got := nodeName(ref.GetNode()) + ":" + datasetName(ref); want != "" && (err != nil || got != want) || want == "" && err == nil {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
	for text, good := range map[string]bool{"tank/a@s": true, "n1:tank/a@s": true, "tank/a": false, "tank/a@": false, "@s": false} {
		if _, err := readSnapshot(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}
