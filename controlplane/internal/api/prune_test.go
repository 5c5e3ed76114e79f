package api_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func TestDeleteSnapshots(t *testing.T) {
	r := startStorage(t)
	r.zfs.dataset("a", &agentv1.ZfsDataset{Name: "tank/d", Guid: 20}, "free", "held", "cloned", "cursor", "theirs", "noguid")
	r.zfs.change("a", "tank/d@held", func(s *agentv1.ZfsSnapshot) { s.Holds = []string{"backup"} })
	r.zfs.change("a", "tank/d@cloned", func(s *agentv1.ZfsSnapshot) { s.Clones = []string{"tank/clone"} })
	r.zfs.change("a", "tank/d@cursor", func(s *agentv1.ZfsSnapshot) { s.Guid = 77 })
	r.zfs.change("a", "tank/d@theirs", func(s *agentv1.ZfsSnapshot) { s.Operation = "" })
	r.zfs.change("a", "tank/d@noguid", func(s *agentv1.ZfsSnapshot) { s.Guid = 0 })
	r.zfs.change("a", "tank/d@free", func(s *agentv1.ZfsSnapshot) { s.Created = time.Now().Unix() + 1000 })
	r.put(store.PutProto(store.ReplicationKey("j7"), &storev1.ReplicationJob{Id: "j7", Source: "a", Target: "b", Dataset: "tank/d", TargetDataset: "tank/d", CursorGuid: 77}))
	remove := func(id string, refs ...*debvisorv1.SnapshotRef) (*debvisorv1.PruneResult, error) {
		return r.storage.DeleteSnapshots(notWaiting(t, id), &debvisorv1.DeleteSnapshotsRequest{Snapshots: refs})
	}
	all := []*debvisorv1.SnapshotRef{}
	for _, name := range []string{"free", "held", "cloned", "cursor", "theirs", "noguid"} {
		all = append(all, snap("tank/d", name, "a"))
	}
	_, err := remove("all", all...)
	refusedAs(t, "what is needed", err, "SNAPSHOTS_NEEDED")
	for _, text := range []string{"tank/d@held: held by backup", "tank/d@cloned: cloned by tank/clone", "tank/d@cursor: last common snapshot with node b (job j7)", "tank/d@theirs: not ours", "tank/d@noguid: "} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v does not say %q", err, text)
		}
	}
	if strings.Contains(err.Error(), "tank/d@free:") {
		t.Errorf("%v names the one that could go", err)
	}
	_, err = remove("missing", all[0], snap("tank/d", "gone", "a"))
	refusedAs(t, "one that is not there", err, "SNAPSHOT_NOT_FOUND")
	if !strings.Contains(err.Error(), "tank/d@gone") || strings.Contains(err.Error(), "@free") {
		t.Error(err)
	}
	_, err = remove("nodes", all[0], snap("tank/twin", "x", "b"))
	refusedAs(t, "of two nodes", err, "INVALID_FIELD snapshots[1].dataset.node")
	if len(r.view.Current().Operations) != 0 {
		t.Error("a refusal left an operation")
	}
	begun, err := remove("good", all[0], all[0], snap("tank/x", "s1"))
	if err != nil || begun.GetOperationId() == "" || !strings.Contains(begun.GetMessage(), "watch it") {
		t.Fatalf("%v, %v", begun, err)
	}
	op := r.begun("snapshot.delete")
	id := &agentv1.ZfsSnapshotID{}
	if err := proto.Unmarshal(op.GetRemoveSnapshots().GetSnapshots()[0], id); err != nil || len(op.GetRemoveSnapshots().GetSnapshots()) != 2 || id.GetGuid() == 0 {
		t.Errorf("written is %v, %v, %v", op, id, err)
	}
	r.finish(op.GetId(), func(op *storev1.Operation) {
		op.GetRemoveSnapshots().Removed, op.GetRemoveSnapshots().FreedBytes, op.GetRemoveSnapshots().Kept = 1, 10, 1
		op.GetRemoveSnapshots().KeptBecause = [][]byte{encode(t, &agentv1.ZfsKept{Snapshot: id, Code: "SNAPSHOT_HELD", Reason: "it is held by now"})}
	})
	result, err := r.storage.DeleteSnapshots(withRequestID(t.Context(), "good"), &debvisorv1.DeleteSnapshotsRequest{Snapshots: []*debvisorv1.SnapshotRef{all[0], all[0], snap("tank/x", "s1")}})
	if err != nil || result.GetStatus() != debvisorv1.StatusCode_STATUS_WARN || result.GetRemovedCount() != 1 || result.GetFreedBytes() != 10 ||
		!slices.Equal(result.GetKeptBecause(), []string{id.GetDataset() + "@" + id.GetName() + ": it is held by now"}) {
		t.Errorf("%v, %v", result, err)
	}
}

// TestManyThatAreNeeded has an error that still fits into a header.
func TestManyThatAreNeeded(t *testing.T) {
	r := startStorage(t)
	long := "tank/" + strings.Repeat("n", 150)
	req := &debvisorv1.DeleteSnapshotsRequest{}
	for i := range 500 {
		name := fmt.Sprintf("%03d%s", i, strings.Repeat("s", 80))
		r.zfs.dataset("a", &agentv1.ZfsDataset{Name: long}, name)
		r.zfs.change("a", long+"@"+name, func(s *agentv1.ZfsSnapshot) { s.Holds = []string{strings.Repeat("h", 200)} })
		req.Snapshots = append(req.GetSnapshots(), snap(long, name, "a"))
	}
	_, err := r.storage.DeleteSnapshots(t.Context(), req)
	refusedAs(t, "500", err, "SNAPSHOTS_NEEDED")
}

func TestPrune(t *testing.T) {
	r := startStorage(t)
	rules := &debvisorv1.RetentionPolicy{KeepLast: 1}
	r.zfs.change("a", "tank/x@s1", func(s *agentv1.ZfsSnapshot) { s.UsedBytes = 7 })
	plan, err := r.storage.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: ds("tank/x"), Policy: rules, Recursive: true})
	if err != nil || plan.GetKeep() != 2 || plan.GetRemove() != 1 || plan.GetFreedBytes() != 100 || len(plan.GetVerdicts()) != 3 {
		t.Fatalf("%v, %v", plan, err)
	}
	if v := plan.GetVerdicts()[0]; v.GetKeep() || v.GetSnapshot().GetSnapshotName() != "s1" || v.GetUsedBytes() != 7 || v.GetLabel() != "label-s1" || len(v.GetRules()) != 0 {
		t.Errorf("the first is %v", v)
	}
	if v := plan.GetVerdicts()[1]; !v.GetKeep() || v.GetRules()[0] != "last 1" {
		t.Errorf("the second is %v", v)
	}
	begun, err := r.storage.PruneSnapshots(notWaiting(t, "one"), &debvisorv1.PruneRequest{Dataset: ds("tank/x"), Policy: rules, Recursive: true})
	if err != nil || begun.GetOperationId() == "" {
		t.Fatalf("%v, %v", begun, err)
	}
	op := r.begun("snapshot.prune")
	written := &debvisorv1.RetentionPolicy{}
	if err := proto.Unmarshal(op.GetRemoveSnapshots().GetRetention(), written); err != nil || !proto.Equal(written, rules) ||
		!op.GetRemoveSnapshots().GetRecursive() || !slices.Equal(op.GetRemoveSnapshots().GetDatasets(), []string{"tank/x"}) {
		t.Errorf("written is %v", op)
	}
	for field, policy := range map[string]*debvisorv1.RetentionPolicy{
		"policy": {}, "policy.keep_pattern": {KeepPattern: "["}, "policy.only_pattern": {KeepLast: 1, OnlyPattern: `\`}, "policy.time_zone": {KeepLast: 1, TimeZone: "Mars/Base"},
	} {
		_, err := r.storage.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: ds("tank/x"), Policy: policy})
		refusedAs(t, field, err, "INVALID_FIELD "+field)
		_, err = r.storage.PruneSnapshots(t.Context(), &debvisorv1.PruneRequest{Dataset: ds("tank/x"), Policy: policy})
		refusedAs(t, field, err, "INVALID_FIELD "+field)
	}
	r.zfs.silent["a"] = true
	_, err = r.storage.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: ds("tank/x"), Policy: rules})
	refusedAs(t, "a node that does not answer", err, "NO_SESSION")
}

// TestPruneStopsAtAnothersDatasets: what lies in a tenant's dataset and is another's
// is neither told of nor pruned, though all below is asked for.
func TestPruneStopsAtAnothersDatasets(t *testing.T) {
	w := startWorld(t)
	acme := w.of["acme"]
	w.zfs.dataset("a", &agentv1.ZfsDataset{Name: acme.pool + "/d", Guid: 70}, "s1", "s2")
	w.zfs.dataset("a", &agentv1.ZfsDataset{Name: acme.pool + "/d/inner", Guid: 71}, "s1", "s2")
	w.reportZFS("a")
	w.put(store.PutJSON(store.TenantKey("inner"), &storev1.Tenant{
		Storage: []*storev1.TenantStorage{{Backend: "zfs", Pool: acme.pool, Name: "d/inner"}},
	}))
	confined := debvisorv1.NewStorageServiceClient(w.caller("operator", acme.tenant).conn)
	req := &debvisorv1.PruneRequest{Dataset: ds(acme.pool + "/d"), Policy: &debvisorv1.RetentionPolicy{KeepLast: 1}, Recursive: true}
	plan, err := confined.PlanPrune(t.Context(), req)
	if err != nil || len(plan.GetVerdicts()) != 6 {
		t.Fatalf("%v, %v", plan, err)
	}
	for _, v := range plan.GetVerdicts() {
		if v.GetSnapshot().GetDataset().GetName() == "d/inner" {
			t.Errorf("it is told of another's %v", v)
		}
	}
	if _, err := confined.PlanPrune(t.Context(), &debvisorv1.PruneRequest{Dataset: ds(acme.pool + "/d/inner"), Policy: req.GetPolicy()}); code(err) != "DATASET_NOT_FOUND" {
		t.Errorf("another's dataset itself: %v", err)
	}
	begun, err := confined.PruneSnapshots(notWaiting(t, "below"), req)
	if err != nil {
		t.Fatal(err)
	}
	removal := w.view.Current().Operations[begun.GetOperationId()].Value.GetRemoveSnapshots()
	want := []string{acme.pool + "/d", acme.pool + "/d/x", acme.pool + "/d/y"}
	if got := slices.Sorted(slices.Values(removal.GetDatasets())); removal.GetRecursive() || !slices.Equal(got, want) {
		t.Errorf("what is to be pruned: %v; want %v and nothing below", removal, want)
	}
}
