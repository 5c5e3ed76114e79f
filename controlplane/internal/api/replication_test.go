package api_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// plan asks for the replication of a dataset to a node.
func (r *storageRig) plan(path, target string, change func(*debvisorv1.ZfsReplicationPlan)) (*debvisorv1.ReplicationJob, error) {
	req := &debvisorv1.ZfsReplicationPlan{Dataset: ds(path), Target: nodeRef(target)}
	if change != nil {
		change(req)
	}
	return r.storage.PlanZfsReplication(r.t.Context(), req)
}

func TestPlanReplication(t *testing.T) {
	r := startStorage(t)
	first, err := r.plan("tank/x", "b", nil)
	d := first.GetDecision()
	if err != nil || d.GetMode() != debvisorv1.ReplicationMode_REPLICATION_MODE_FULL || len(d.GetSteps()) != 3 || d.GetEstimatedBytes() != 5000+5003 || d.GetPlanId() == "" {
		t.Fatalf("%v, %v", first, err)
	}
	if left := time.Until(time.Unix(d.GetExpiresAt().GetSeconds(), 0)); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("it ends in %v", left)
	}
	record := r.view.Current().Replications[first.GetJobId()].Value
	if record.GetDatasetGuid() != 11 || record.GetSource() != "a" || record.GetTargetDataset() != "tank/x" || record.GetCreatedBy() != "operator" || record.GetPolicy() != "" {
		t.Errorf("written is %v", record)
	}
	again, err := r.plan("tank/x", "b", func(p *debvisorv1.ZfsReplicationPlan) {
		p.Source, p.Options = nodeRef("a"), &debvisorv1.ReplicationOptions{RpoSeconds: 60}
	})
	if err != nil || again.GetJobId() != first.GetJobId() || again.GetPlan().GetOptions().GetRpoSeconds() != 60 || len(r.view.Current().Replications) != 1 {
		t.Errorf("the same, without an id: %v, %v", again, err)
	}
	if third, err := r.plan("tank/x", "b", func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = first.GetJobId() }); err != nil || third.GetPlan().GetOptions().GetRpoSeconds() != 60 {
		t.Errorf("by its id, and its options stay: %v, %v", third, err)
	}
	named, err := r.plan("tank/x", "b", func(p *debvisorv1.ZfsReplicationPlan) { p.JobId, p.TargetDataset = "Mine-1", ds("tank/other") })
	if err != nil || named.GetJobId() != "Mine-1" || named.GetPlan().GetTargetDataset().GetName() != "other" {
		t.Errorf("%v, %v", named, err)
	}
	for what, c := range map[string]struct {
		change func(*debvisorv1.ZfsReplicationPlan)
		want   string
	}{
		"another plan of that id": {func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = "Mine-1" }, "JOB_EXISTS job_id"},
		"another id of that plan": {func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = "j2" }, "REPLICATED_ALREADY job_id"},
		"an id that is none":      {func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = "a/b" }, "INVALID_FIELD job_id"},
		"an id of an option":      {func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = "-r" }, "INVALID_FIELD job_id"},
		"onto itself":             {func(p *debvisorv1.ZfsReplicationPlan) { p.Target = nodeRef("a") }, "INVALID_FIELD target.node_id.id"},
		"into itself": {func(p *debvisorv1.ZfsReplicationPlan) {
			p.Target, p.TargetDataset = nodeRef("a"), ds("tank/x/copy")
		}, "INVALID_FIELD target.node_id.id"},
		"no such source":   {func(p *debvisorv1.ZfsReplicationPlan) { p.Source = nodeRef("zz") }, "NODE_NOT_FOUND"},
		"no such target":   {func(p *debvisorv1.ZfsReplicationPlan) { p.Target = nodeRef("zz") }, "NODE_NOT_FOUND"},
		"no target":        {func(p *debvisorv1.ZfsReplicationPlan) { p.Target = nodeRef("") }, "INVALID_FIELD target"},
		"no dataset there": {func(p *debvisorv1.ZfsReplicationPlan) { p.Source = nodeRef("b") }, "DATASET_NOT_FOUND"},
		"two sources":      {func(p *debvisorv1.ZfsReplicationPlan) { p.Dataset, p.Source = ds("tank/x", "a"), nodeRef("b") }, "INVALID_FIELD source.node_id.id"},
		"two targets":      {func(p *debvisorv1.ZfsReplicationPlan) { p.TargetDataset = ds("tank/o", "c") }, "INVALID_FIELD target_dataset.node"},
		"a copy that is RBD": {func(p *debvisorv1.ZfsReplicationPlan) {
			p.TargetDataset = &debvisorv1.DatasetRef{Backend: 2, Pool: "p", Name: "n"}
		}, "INVALID_FIELD target_dataset.backend"},
		"no such policy": {func(p *debvisorv1.ZfsReplicationPlan) { p.Policy = "none" }, "POLICY_NOT_FOUND"},
		"bandwidth": {func(p *debvisorv1.ZfsReplicationPlan) {
			p.Options = &debvisorv1.ReplicationOptions{BandwidthMib: 1 << 30}
		}, "INVALID_FIELD options.bandwidth_mib"},
		"snapshots of a copy":   {func(p *debvisorv1.ZfsReplicationPlan) { p.Source, p.Target = nodeRef("c"), nodeRef("a") }, "INVALID_FIELD options.no_snapshot"},
		"names that do not fit": {func(p *debvisorv1.ZfsReplicationPlan) { p.TargetDataset = ds("tank/" + strings.Repeat("l", 230)) }, "INVALID_FIELD target_dataset"},
		"another's copy": {func(p *debvisorv1.ZfsReplicationPlan) {
			p.Dataset, p.TargetDataset = ds("tank/y"), ds("tank/other")
		}, "TARGET_TAKEN target_dataset"},
	} {
		_, err := r.plan("tank/x", "b", c.change)
		refusedAs(t, what, err, c.want)
	}
	r.zfs.silent["b"] = true
	_, err = r.plan("tank/y", "b", nil)
	refusedAs(t, "a target that does not answer", err, "NO_SESSION")
	if len(r.view.Current().Replications) != 2 {
		t.Error("a refusal left a job")
	}
}

// What is replicated on must not come back to where it came from.
// TestAJobThatIsDeletedWhileItIsPlanned does not come back, with the cursor and the
// policy of its former life.
func TestAJobThatIsDeletedWhileItIsPlanned(t *testing.T) {
	r := startStorage(t)
	first, err := r.plan("tank/x", "b", nil)
	if err != nil {
		t.Fatal(err)
	}
	key := store.ReplicationKey(first.GetJobId())
	r.zfs.before = func() {
		if _, err := r.store.Commit(t.Context(), store.Change{Deletes: []string{key}}); err != nil {
			t.Error(err)
		}
	}
	if again, err := r.plan("tank/x", "b", nil); err == nil || !strings.Contains(err.Error(), "was deleted at that moment") {
		t.Errorf("%v, %v", again, err)
	}
	r.zfs.before = nil
	r.remove(key) // the replica sees what came before
	if n := len(r.view.Current().Replications); n != 0 {
		t.Errorf("%d jobs", n)
	}
}

func TestReplicationLoops(t *testing.T) {
	r := startStorage(t)
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/x", Guid: 21, ReplicationJob: "ab"}, "s")
	r.zfs.dataset("c", &agentv1.ZfsDataset{Name: "tank/x", Guid: 22, ReplicationJob: "bc"}, "s")
	r.reportZFS("b", "c")
	further := func(from, to, id string, copied *debvisorv1.DatasetRef) error {
		_, err := r.plan("tank/x", to, func(p *debvisorv1.ZfsReplicationPlan) {
			p.Source, p.JobId, p.TargetDataset, p.Options = nodeRef(from), id, copied, &debvisorv1.ReplicationOptions{NoSnapshot: true}
		})
		return err
	}
	for _, hop := range []string{"ab", "bc"} {
		if err := further(hop[:1], hop[1:], hop, nil); err != nil {
			t.Fatal(err)
		}
	}
	err := further("c", "a", "ca", nil)
	refusedAs(t, "round in a ring", err, "REPLICATION_LOOP target_dataset")
	if !strings.Contains(err.Error(), "ab, then bc, then this one") {
		t.Errorf("it does not name the chain: %v", err)
	}
	refusedAs(t, "back", further("b", "a", "ba", nil), "REPLICATION_LOOP target_dataset")
	refusedAs(t, "into a child of the source", further("c", "a", "ca", ds("tank/x/back")), "REPLICATION_LOOP target_dataset")
	if err := further("c", "a", "ca", ds("tank/back")); err != nil {
		t.Errorf("beside it: %v", err)
	}
}

func TestRunReplication(t *testing.T) {
	r := startStorage(t)
	job, err := r.plan("tank/x", "b", nil)
	if err != nil {
		t.Fatal(err)
	}
	ref := &debvisorv1.JobRef{JobId: job.GetJobId()}
	if status, err := r.storage.GetReplicationStatus(t.Context(), ref); err != nil || status.GetState() != debvisorv1.ReplicationState_REPL_STATE_PENDING || status.GetDecision().GetPlanId() == "" {
		t.Errorf("before: %v, %v", status, err)
	}
	answered := make(chan *debvisorv1.ReplicationStatus, 1)
	go func() {
		status, err := r.storage.RunZfsReplication(withRequestID(t.Context(), "run"), ref)
		if err != nil {
			t.Error(err)
		}
		answered <- status
	}()
	op := r.begun("replication.run")
	run := op.GetReplicate()
	if run.GetJobId() != job.GetJobId() || run.GetSource() != "a" || run.GetTarget() != "b" || run.GetDataset() != "tank/x" || run.GetTargetDataset() != "tank/x" ||
		!cluster.OurSnapshotName(run.GetSnapshot()) || !slices.Equal(op.GetResources(), []string{"replication/" + job.GetJobId(), "zfs-copy/b/tank/x"}) {
		t.Errorf("written is %v", op)
	}
	working := proto.CloneOf(op)
	working.State, working.StartedAt, working.Step = task.OpRunning, timestamppb.New(time.Now().Add(-time.Minute)), "sending @s1"
	working.GetReplicate().Resumes, working.GetReplicate().SetAside = 2, "tank/x.diverged"
	working.Progress = encode(t, &debvisorv1.OperationProgress{BytesDone: 40, BytesTotal: 100, BytesPerSecond: 7, EtaMs: 9})
	r.put(store.PutProto(store.OperationKey(op.GetId()), working))
	status, err := r.storage.GetReplicationStatus(t.Context(), ref)
	if err != nil || status.GetState() != debvisorv1.ReplicationState_REPL_STATE_RUNNING || status.GetBytesTransferred() != 40 || status.GetBytesTotal() != 100 ||
		status.GetBytesPerSecond() != 7 || status.GetEtaMs() != 9 || status.GetPhase() != "sending @s1" || status.GetResumes() != 2 || status.GetDurationMs() < 60000 ||
		status.GetOperationId() != op.GetId() || status.GetSetAside() != "tank/x.diverged" {
		t.Errorf("at work: %v, %v", status, err)
	}
	_, err = r.storage.RunZfsReplication(notWaiting(t, "two"), ref)
	refusedAs(t, "twice at once", err, "IN_USE")
	_, err = r.storage.DeleteReplication(notWaiting(t, "del"), ref)
	refusedAs(t, "its end meanwhile", err, "IN_USE")
	record := proto.CloneOf(r.view.Current().Replications[job.GetJobId()].Value)
	record.CursorName, record.CursorGuid, record.CursorCreated = "s2", 1002, timestamppb.New(time.Now().Add(-time.Hour))
	record.LastSuccess, record.LastEnd, record.LastOperation, record.LastBytes, record.LastDurationMs = timestamppb.Now(), timestamppb.Now(), op.GetId(), 100, 61000
	r.finish(op.GetId(), func(op *storev1.Operation) { op.GetReplicate().SetAside = "tank/x.diverged" }, store.PutProto(store.ReplicationKey(job.GetJobId()), record))
	status = <-answered
	if status.GetState() != debvisorv1.ReplicationState_REPL_STATE_SUCCESS || status.GetLastSnapshotName() != "s2" || status.GetBytesTransferred() != 100 ||
		status.GetLagSeconds() < 3600 || status.GetLagSeconds() > 3700 || status.GetDurationMs() != 61000 || status.GetSetAside() != "tank/x.diverged" {
		t.Errorf("after: %v", status)
	}
	record.LastErrorCode, record.LastError = "TARGET_NO_SPACE", "no room"
	r.put(store.PutProto(store.ReplicationKey(job.GetJobId()), record))
	list, err := r.storage.ListReplications(t.Context(), &debvisorv1.ReplicationFilter{Node: nodeRef("b")})
	if err != nil || len(list.GetReplications()) != 1 || list.GetReplications()[0].GetState() != debvisorv1.ReplicationState_REPL_STATE_FAILED || list.GetReplications()[0].GetLastError() != "no room" {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := r.storage.ListReplications(t.Context(), &debvisorv1.ReplicationFilter{Node: nodeRef("c")}); err != nil || len(list.GetReplications()) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	_, err = r.storage.RunZfsReplication(t.Context(), &debvisorv1.JobRef{JobId: "none"})
	refusedAs(t, "no job", err, "JOB_NOT_FOUND")
	_, err = r.storage.GetReplicationStatus(t.Context(), &debvisorv1.JobRef{JobId: "no/ne"})
	refusedAs(t, "no id", err, "INVALID_FIELD job_id")
}

// What is destroyed on a target is destroyed by the plan that says so, and no other.
func TestConfirmedPlans(t *testing.T) {
	r := startStorage(t)
	job, err := r.plan("tank/x", "b", func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = "j" })
	if err != nil {
		t.Fatal(err)
	}
	confirm := func(plan string) error {
		_, err := r.storage.RunZfsReplication(notWaiting(t, "run "+plan), &debvisorv1.JobRef{JobId: "j", ConfirmPlanId: plan})
		return err
	}
	refusedAs(t, "another plan", confirm("plan-other"), "PLAN_CHANGED")
	if err := confirm(job.GetDecision().GetPlanId()); err != nil {
		t.Fatal(err)
	}
	op := r.begun("replication.run")
	if op.GetReplicate().GetConfirmedPlan() != job.GetDecision().GetPlanId() {
		t.Errorf("written is %v", op)
	}
	r.finish(op.GetId(), nil)
	record := proto.CloneOf(r.view.Current().Replications["j"].Value)
	record.DecisionExpires = timestamppb.New(time.Now().Add(-time.Second))
	r.put(store.PutProto(store.ReplicationKey("j"), record))
	_, err = r.storage.RunZfsReplication(t.Context(), &debvisorv1.JobRef{JobId: "j", ConfirmPlanId: job.GetDecision().GetPlanId()})
	refusedAs(t, "one that has ended", err, "PLAN_NOT_FOUND")
}

// Both ends are asked anew for each plan: what can be resumed, what diverged.
func TestPlansOfWhatIsThere(t *testing.T) {
	r := startStorage(t)
	if _, err := r.plan("tank/x", "b", func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = "j" }); err != nil {
		t.Fatal(err)
	}
	again := func() *debvisorv1.ReplicationDecision {
		t.Helper()
		job, err := r.plan("tank/x", "b", func(p *debvisorv1.ZfsReplicationPlan) { p.Source = nodeRef("a") })
		if err != nil {
			t.Fatal(err)
		}
		return job.GetDecision()
	}
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/x", Guid: 31, AvailableBytes: 1 << 40, ReplicationJob: "j", Partial: true, ResumeToken: "dead"}, "s1")
	r.zfs.change("b", "tank/x@s1", func(s *agentv1.ZfsSnapshot) { s.Guid, s.CreateTxg = 1001, 1 })
	if d := again(); d.GetMode() != debvisorv1.ReplicationMode_REPLICATION_MODE_INCREMENTAL || d.GetCommonGuid() != "1001" || len(d.GetSteps()) != 2 {
		t.Errorf("with a dead token: %v", d)
	}
	r.zfs.tokens["dead"] = &agentv1.ZfsSendEstimate{Bytes: 77, To: "tank/x@s2", ToGuid: 1002, FromGuid: 1001}
	if d := again(); d.GetMode() != debvisorv1.ReplicationMode_REPLICATION_MODE_RESUME || d.GetEstimatedBytes() != 77 {
		t.Errorf("with one that is alive: %v", d)
	}
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/x", Guid: 31, AvailableBytes: 10, ReplicationJob: "j"})
	if d := again(); d.GetMode() != debvisorv1.ReplicationMode_REPLICATION_MODE_REFUSED || !strings.Contains(d.String(), "10 bytes left") {
		t.Errorf("no room: %v", d)
	}
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/x", Guid: 31, AvailableBytes: 1 << 40, ReplicationJob: "j"}, "theirs")
	diverged := again()
	if diverged.GetDivergence() != debvisorv1.Divergence_DIVERGENCE_TARGET_NEWER || diverged.GetSetAside() == "" || !slices.Equal(diverged.GetDestroy(), []string{"@theirs"}) {
		t.Errorf("diverged: %v", diverged)
	}
	r.zfs.dataset("b", &agentv1.ZfsDataset{Name: "tank/x", Guid: 31, AvailableBytes: 1 << 40})
	if d := again(); d.GetMode() != debvisorv1.ReplicationMode_REPLICATION_MODE_REFUSED || d.GetDivergence() != debvisorv1.Divergence_DIVERGENCE_UNRELATED {
		t.Errorf("somebody else's: %v", d)
	}
}

func TestReplicationPolicies(t *testing.T) {
	r := startStorage(t)
	adopted, err := r.plan("tank/x", "b", nil)
	if err != nil {
		t.Fatal(err)
	}
	spec := &debvisorv1.ReplicationPolicySpec{
		Name: "off-site", Schedule: "every 15m", Options: &debvisorv1.ReplicationOptions{RpoSeconds: 1800},
		Datasets: []*debvisorv1.DatasetRef{ds("tank/x"), ds("tank/y")}, Targets: []*debvisorv1.ReplicationTarget{{Node: nodeRef("b")}, {Node: nodeRef("c"), Prefix: "tank/copies"}},
	}
	set, err := r.storage.SetReplicationPolicy(withRequestID(t.Context(), "set"), spec)
	if err != nil || len(set.GetJobs()) != 4 || set.GetRun().GetNextDue() == nil || set.GetSpec().GetDatasets()[1].GetNode().GetNodeId().GetId() != "a" {
		t.Fatalf("%v, %v", set, err)
	}
	jobs := map[string]string{}
	for _, job := range set.GetJobs() {
		jobs[job.GetTarget().GetNodeId().GetId()+":"+job.GetTargetDataset().GetPool()+"/"+job.GetTargetDataset().GetName()] = job.GetJobId()
		if job.GetPolicy() != "off-site" || job.GetRpoSeconds() != 1800 {
			t.Errorf("%v", job)
		}
	}
	if jobs["b:tank/x"] != adopted.GetJobId() || jobs["c:tank/copies/y"] == "" {
		t.Errorf("the jobs are %v", jobs)
	}
	_, err = r.storage.DeleteReplication(t.Context(), &debvisorv1.JobRef{JobId: jobs["b:tank/y"]})
	refusedAs(t, "a job of a policy", err, "JOB_OF_POLICY")
	_, err = r.plan("tank/y", "b", func(p *debvisorv1.ZfsReplicationPlan) { p.Options = &debvisorv1.ReplicationOptions{NewestOnly: true} })
	refusedAs(t, "its options", err, "JOB_OF_POLICY")
	_, err = r.plan("tank/y", "b", func(p *debvisorv1.ZfsReplicationPlan) {
		p.Policy, p.Options = "off-site", &debvisorv1.ReplicationOptions{}
	})
	refusedAs(t, "both", err, "INVALID_FIELD options")
	other := proto.CloneOf(spec)
	other.Name = "other"
	_, err = r.storage.SetReplicationPolicy(t.Context(), other)
	refusedAs(t, "another policy of the same", err, "JOB_OF_POLICY")

	if _, err := r.storage.RunZfsReplication(notWaiting(t, "run"), &debvisorv1.JobRef{JobId: jobs["c:tank/copies/y"]}); err != nil {
		t.Fatal(err)
	}
	smaller := proto.CloneOf(spec)
	smaller.Datasets = smaller.GetDatasets()[:1]
	_, err = r.storage.SetReplicationPolicy(t.Context(), smaller)
	refusedAs(t, "one that is at work would end", err, "IN_USE")
	if len(r.view.Current().ReplicationPolicies["off-site"].Value.GetSpec()) == 0 || r.view.Current().Replications[jobs["b:tank/y"]].Value.GetDeleting() {
		t.Error("half of it was done")
	}
	r.finish(r.begun("replication.run").GetId(), nil)
	smaller.Options = nil
	set, err = r.storage.SetReplicationPolicy(t.Context(), smaller)
	if err != nil || len(set.GetJobs()) != 2 || set.GetJobs()[0].GetRpoSeconds() != 0 {
		t.Fatalf("%v, %v", set, err)
	}
	var ending []string
	for _, op := range r.view.Current().ActiveOperations() {
		if op.Value.GetKind() == "replication.delete" {
			ending = append(ending, op.Value.GetReplicate().GetJobId())
			if !r.view.Current().Replications[op.Value.GetReplicate().GetJobId()].Value.GetDeleting() || len(op.Value.GetResources()) != 2 {
				t.Errorf("%v", op.Value)
			}
		}
	}
	want := []string{jobs["b:tank/y"], jobs["c:tank/copies/y"]}
	slices.Sort(want)
	slices.Sort(ending)
	if !slices.Equal(ending, want) {
		t.Errorf("ended are %v, want %v", ending, want)
	}
	_, err = r.storage.RunZfsReplication(notWaiting(t, "late"), &debvisorv1.JobRef{JobId: jobs["b:tank/y"]})
	refusedAs(t, "to run one that ends", err, "JOB_DELETING")
	_, err = r.storage.SetReplicationPolicy(t.Context(), spec)
	refusedAs(t, "to have one again that ends", err, "JOB_DELETING")
	r.listAndDeletePolicy(t)
}

func (r *storageRig) listAndDeletePolicy(t *testing.T) {
	t.Helper()
	list, err := r.storage.ListReplicationPolicies(t.Context(), &debvisorv1.Empty{})
	if err != nil || len(list.GetPolicies()) != 1 || len(list.GetPolicies()[0].GetJobs()) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	ref := &debvisorv1.StoragePolicyRef{Name: "off-site"}
	if _, err := r.storage.DeleteReplicationPolicy(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	for id, job := range r.view.Current().Replications {
		if _, held := r.view.Current().InUse["replication/"+id]; !held || !job.Value.GetDeleting() {
			t.Errorf("job %s does not end", id)
		}
	}
	_, err = r.storage.DeleteReplicationPolicy(t.Context(), ref)
	refusedAs(t, "once more", err, "POLICY_NOT_FOUND")
}

func TestDeleteReplication(t *testing.T) {
	r := startStorage(t)
	if _, err := r.plan("tank/x", "b", func(p *debvisorv1.ZfsReplicationPlan) { p.JobId = "j" }); err != nil {
		t.Fatal(err)
	}
	_, err := r.storage.DeleteReplication(t.Context(), &debvisorv1.JobRef{JobId: "j", ConfirmPlanId: "p"})
	refusedAs(t, "a plan", err, "INVALID_FIELD confirm_plan_id")
	answered := make(chan *debvisorv1.ReplicationStatus, 1)
	go func() {
		status, err := r.storage.DeleteReplication(t.Context(), &debvisorv1.JobRef{JobId: "j"})
		if err != nil {
			t.Error(err)
		}
		answered <- status
	}()
	op := r.begun("replication.delete")
	if !r.view.Current().Replications["j"].Value.GetDeleting() || op.GetReplicate().GetJobId() != "j" {
		t.Errorf("written is %v", op)
	}
	r.remove(store.ReplicationKey("j"))
	r.finish(op.GetId(), nil)
	if status := <-answered; status.GetJobId() != "j" || status.GetOperationId() != op.GetId() || status.GetState() != debvisorv1.ReplicationState_REPL_STATE_SUCCESS {
		t.Errorf("%v", status)
	}
	_, err = r.storage.GetReplicationStatus(t.Context(), &debvisorv1.JobRef{JobId: "j"})
	refusedAs(t, "it is gone", err, "JOB_NOT_FOUND")
}

// Two who ask for the same at once have one job.
func TestOneJobForTwoWhoAsk(t *testing.T) {
	r := startStorage(t)
	ids := make(chan string, 4)
	for range 4 {
		go func() {
			job, err := r.plan("tank/x", "b", nil)
			if err != nil {
				t.Error(err)
			}
			ids <- job.GetJobId()
		}()
	}
	first := <-ids
	for range 3 {
		if id := <-ids; id != first {
			t.Errorf("jobs %s and %s", first, id)
		}
	}
	if n := len(r.view.Current().Replications); n != 1 {
		t.Errorf("%d jobs", n)
	}
}

// A tenant's caller replicates its own, and learns nothing of others' jobs.
func TestReplicationOfTenants(t *testing.T) {
	w := startWorld(t)
	acme, globex := w.of["acme"], w.of["globex"]
	confined := debvisorv1.NewStorageServiceClient(w.caller("operator", acme.tenant).conn)
	job, err := confined.PlanZfsReplication(t.Context(), &debvisorv1.ZfsReplicationPlan{Dataset: ds(acme.pool + "/d/y"), Target: nodeRef("b")})
	if err != nil || w.view.Current().Replications[job.GetJobId()].Value.GetTenant() != acme.tenant {
		t.Fatalf("%v, %v", job, err)
	}
	for _, id := range []string{globex.job, "nobody-has-that"} {
		_, err := confined.PlanZfsReplication(t.Context(), &debvisorv1.ZfsReplicationPlan{JobId: id, Dataset: ds(acme.pool + "/d/y"), Target: nodeRef("b"), TargetDataset: ds(acme.pool + "/d/z")})
		refusedAs(t, "an id that is not its own", err, "JOB_NOT_FOUND")
	}
	for _, copied := range []string{globex.pool + "/d/x", "tank/x", acme.pool + "/elsewhere", acme.pool + "/d"} {
		_, err := confined.PlanZfsReplication(t.Context(), &debvisorv1.ZfsReplicationPlan{Dataset: ds(acme.pool + "/d/y"), Target: nodeRef("b"), TargetDataset: ds(copied)})
		want := "DATASET_NOT_FOUND"
		if copied == acme.pool+"/d" {
			want = ""
		}
		if code(err) != want {
			t.Errorf("to %s: %v", copied, err)
		}
	}
	for _, name := range []string{"d/../../" + globex.pool + "/d/x", "d/y@s1", "d/y#b", "d/y%recv"} {
		_, err := confined.CreateSnapshot(t.Context(), &debvisorv1.SnapshotRequest{Dataset: &debvisorv1.DatasetRef{Backend: 1, Pool: acme.pool, Name: name}})
		refusedAs(t, name, err, "INVALID_FIELD dataset.name")
	}
	list, err := confined.ListReplications(t.Context(), &debvisorv1.ReplicationFilter{})
	if err != nil || len(list.GetReplications()) != 3 {
		t.Errorf("%v, %v", list, err)
	}
	storage, err := confined.ListStorage(t.Context(), &debvisorv1.StorageFilter{Backend: debvisorv1.StorageBackend_BACKEND_ZFS})
	if err != nil || len(storage.GetDatasets()) != 2 || len(storage.GetPools()) != 1 || storage.GetPools()[0].GetSizeBytes() != 0 || storage.GetPools()[0].GetHealth() != "ONLINE" {
		t.Errorf("%v, %v", storage, err)
	}
	operator := debvisorv1.NewStorageServiceClient(w.caller("operator", "").conn)
	_, err = operator.PlanZfsReplication(t.Context(), &debvisorv1.ZfsReplicationPlan{Dataset: ds(acme.pool + "/d/y"), Target: nodeRef("b"), TargetDataset: ds(globex.pool + "/d/q")})
	refusedAs(t, "an operator mixes tenants up", err, "TENANTS_DIFFER")
	begun, err := operator.CreateSnapshot(notWaiting(t, "op"), &debvisorv1.SnapshotRequest{Dataset: ds(acme.pool + "/d/y")})
	if err != nil {
		t.Fatal(err)
	}
	if op, ok := w.view.Current().Within(acme.tenant).Operation(begun.GetOperationId()); !ok || op.Value.GetPrincipal() != "operator-of-nobody" {
		t.Errorf("what an operator does to a tenant's dataset is the tenant's to see: %v", op)
	}
}
