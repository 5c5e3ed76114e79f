package facts

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/retention"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const ours = "dv-20261122T130506Z-8h9n0pqr"

func TestWhoseSnapshots(t *testing.T) {
	got := Snapshots(&agentv1.ZfsListing{
		Datasets: []*agentv1.ZfsDataset{{Name: "tank/a"}, {Name: "tank/copy", ReplicationJob: "j"}},
		Snapshots: []*agentv1.ZfsSnapshot{
			{Dataset: "tank/a", Name: "x", Operation: "op-1", Guid: 1, Created: 7, CreateTxg: 2, UsedBytes: 3, Label: "l", Set: "op-1", Holds: []string{"h"}, Clones: []string{"c"}},
			{Dataset: "tank/a", Name: ours, Guid: 2},
			{Dataset: "tank/copy", Name: ours, Guid: 3, Created: 8},
			{Dataset: "tank/copy", Name: "theirs", Guid: 4},
		},
	})
	want := []retention.Snapshot{
		{Dataset: "tank/a", Name: "x", GUID: 1, CreateTXG: 2, Created: time.Unix(7, 0), Used: 3, Ours: true, Holds: []string{"h"}, Clones: []string{"c"}, Label: "l", Set: "op-1"},
		{Dataset: "tank/a", Name: ours, GUID: 2}, // only its name is as ours
		{Dataset: "tank/copy", Name: ours, GUID: 3, Created: time.Unix(8, 0), Ours: true},
		{Dataset: "tank/copy", Name: "theirs", GUID: 4},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatReplicationNeeds(t *testing.T) {
	decision, err := proto.Marshal(&debvisorv1.ReplicationDecision{Common: "#debvisor-j1-a", Steps: []*debvisorv1.ReplicationStepPlan{{From: "@b", To: "@c"}, {From: "@c", To: "d"}}})
	if err != nil {
		t.Fatal(err)
	}
	d := cluster.Empty().Draft()
	d.Replications.Put("j2", &storev1.ReplicationJob{Source: "n2", Target: "n1", CursorGuid: 1}, 1)
	d.Replications.Put("j1", &storev1.ReplicationJob{Source: "n1", Target: "n2", CursorGuid: 1}, 1)
	d.Replications.Put("elsewhere", &storev1.ReplicationJob{Source: "n2", Target: "n3", CursorGuid: 1}, 1)
	d.Replications.Put("new", &storev1.ReplicationJob{Source: "n1", Target: "n3"}, 1)
	run := &storev1.Replicate{JobId: "j1", Source: "n1", Target: "n2", Dataset: "tank/a", TargetDataset: "tank/b", Decision: decision, Snapshot: "e"}
	d.Operations.Put("op-1", &storev1.Operation{Id: "op-1", State: storev1.OperationState_OPERATION_STATE_RUNNING, Detail: &storev1.Operation_Replicate{Replicate: run}}, 1)
	d.Operations.Put("op-0", &storev1.Operation{Id: "op-0", State: storev1.OperationState_OPERATION_STATE_FAILED, Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{
		JobId: "j0", Source: "n1", Dataset: "tank/a", Snapshot: "f",
	}}}, 1)
	s := d.Snapshot(1)
	listing := &agentv1.ZfsListing{Datasets: []*agentv1.ZfsDataset{{Name: "tank/a"}, {Name: "tank/copy", Partial: true, ReplicationJob: "j2"}}}
	for guid, name := range []string{"", "a", "b", "c", "d", "e", "f"} {
		if name != "" {
			listing.Snapshots = append(listing.Snapshots, &agentv1.ZfsSnapshot{Dataset: "tank/a", Name: name, Guid: uint64(guid), CreateTxg: uint64(guid)})
		}
	}
	listing.Snapshots = append(listing.Snapshots, &agentv1.ZfsSnapshot{Dataset: "tank/copy", Name: "y", Guid: 12, CreateTxg: 9}, &agentv1.ZfsSnapshot{Dataset: "tank/copy", Name: "x", Guid: 11, CreateTxg: 8})
	want := retention.Protection{
		Cursors: map[uint64][]retention.Cursor{1: {{Node: "n2", Job: "j1"}, {Node: "n1", Job: "j2"}}},
		Resumes: map[uint64][]string{2: {"j1"}, 3: {"j1"}, 4: {"j1"}, 5: {"j1"}, 12: {"j2"}},
	}
	if diff := cmp.Diff(want, Protection(s, "n1", listing)); diff != "" {
		t.Error(diff)
	}
	run.Decision = []byte{0xff}
	if got := Protection(s, "n2", &agentv1.ZfsListing{Snapshots: []*agentv1.ZfsSnapshot{{Dataset: "tank/b", Name: "e", Guid: 5}}}); len(got.Resumes[5]) != 1 {
		t.Errorf("on the target: %v", got)
	}
}
