package storage

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/retention"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

func TestTakingSnapshots(t *testing.T) {
	for facts, want := range map[string]string{
		"":                                    "task 1/zfs-snapshot",
		"down a":                              "note waiting for the agent of a, which is not heard",
		"nozfs a":                             "note waiting for ZFS of a, which does not answer: no module",
		"nonode a":                            "fail NODE_NOT_FOUND",
		"cancel":                              "cancelled CANCELLED",
		"running,task 1 zfs-snapshot running": "note taking snapshots on a",
		"running,task 1 zfs-snapshot running,down a":                        "note taking snapshots on a: waiting for the agent of a, which is not heard",
		"running,cancel,task 1 zfs-snapshot running":                        "cancel-task 1/zfs-snapshot",
		"running,cancel,task 1 zfs-snapshot running,asked":                  "note cancelling",
		"running,cancel,task 1 zfs-snapshot succeeded":                      "succeed",
		"running,task 1 zfs-snapshot succeeded":                             "succeed",
		"running,cancel,task 1 zfs-snapshot cancelled CANCELLED":            "cancelled CANCELLED",
		"running,task 1 zfs-snapshot failed NO_SPACE":                       "fail NO_SPACE",
		"running,task 1 zfs-snapshot failed SNAPSHOT_EXISTS":                "fail SNAPSHOT_EXISTS",
		"running,task 1 zfs-snapshot failed INTERRUPTED,interrupted":        "task 2/zfs-snapshot",
		"running,cancel,task 1 zfs-snapshot failed INTERRUPTED,interrupted": "cancelled CANCELLED",
		"running,task 1 zfs-snapshot failed POOL_SUSPENDED,interrupted":     "task 2/zfs-snapshot",
		"running,task 1 zfs-snapshot running,nonode a":                      "node-gone 1/zfs-snapshot",
		"running,task 1 zfs-snapshot running,off a":                         "node-gone 1/zfs-snapshot",
		"running,task 1 zfs-snapshot failed NODE_OFF":                       "fail NODE_OFF",
		"running,task 1 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 2 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 3 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 4 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 5 zfs-snapshot failed POOL_SUSPENDED,interrupted,task 6 zfs-snapshot failed POOL_SUSPENDED,interrupted": "fail POOL_SUSPENDED",
	} {
		check(t, KindCreate, facts, want)
	}
	s := check(t, KindCreate, "", "task 1/zfs-snapshot")
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
		t.Fatal(err)
	}
	if c := spec.GetZfsSnapshotCreate(); c.GetName() != "dv-1" || c.GetOperation() != opID || c.GetSet() != opID || c.GetLabel() != "l" || len(c.GetDatasets()) != 2 {
		t.Errorf("it is told %v", c)
	}
}

func TestRemovingSnapshots(t *testing.T) {
	for facts, want := range map[string]string{
		"":                      "note asking a for its snapshots ask",
		"down a":                "note waiting for the agent of a, which is not heard",
		"cancel":                "cancelled CANCELLED",
		"error NO_SESSION":      "note asking a for its snapshots: no answer: NO_SESSION",
		"error ZFS_ERROR":       "note asking a for its snapshots: no answer: ZFS_ERROR",
		"error ZFS_ERROR again": "fail ZFS_ERROR",
		"answer earlier":        "note asking a for its snapshots ask",
		"listing":               "task 1/zfs-destroy",
		"listing,nojob":         "task 1/zfs-destroy",
		"listing s1 s2 s3 s4":   "succeed",
		"running,batch 1,task 1 zfs-destroy running":                        "note destroying snapshots on a, 0 so far",
		"running,batch 1,cancel,task 1 zfs-destroy running":                 "cancel-task 1/zfs-destroy",
		"running,batch 1,task 1 zfs-destroy succeeded,destroyed 2":          "batch-done",
		"running,batch 1,task 1 zfs-destroy succeeded":                      "fail INTERNAL",
		"running,batch 1,task 1 zfs-destroy failed POOL_SUSPENDED":          "batch-done",
		"running,task 1 zfs-destroy failed POOL_SUSPENDED,destroyed 1":      "fail POOL_SUSPENDED",
		"running,task 1 zfs-destroy succeeded,destroyed 2":                  "note asking a for its snapshots ask",
		"running,task 1 zfs-destroy cancelled CANCELLED,cancel,destroyed 1": "cancelled CANCELLED",
		"running,task 1 zfs-destroy failed INTERRUPTED,interrupted":         "note asking a for its snapshots ask",
		"running,batch 1": "fail BROKEN_RECORD",
	} {
		check(t, KindPrune, facts, want)
	}
	for facts, want := range map[string]string{
		"listing":       "task 1/zfs-destroy",
		"listing s1 s4": "task 1/zfs-destroy", // others' are nobody's business
		"listing s3":    "fail SNAPSHOT_NEEDED",
	} {
		check(t, KindDelete, facts, want)
	}
	for kind, want := range map[string]string{KindPrune: "[2 3 4]", KindDelete: "[2 3]"} {
		s := check(t, kind, "listing", "task 1/zfs-destroy")
		var spec agentv1.TaskSpec
		if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
			t.Fatal(err)
		}
		var guids []uint64
		for _, id := range spec.GetZfsSnapshotDestroy().GetSnapshots() {
			guids = append(guids, id.GetGuid())
		}
		// s1 is the cursor of the job, s5 the last.
		if got := fmt.Sprint(guids); got != want {
			t.Errorf("%s destroys %s, want %s", kind, got, want)
		}
	}
	s := check(t, KindPrune, "running,batch 1,task 1 zfs-destroy succeeded,destroyed 1,kept 3", "batch-done")
	if r := s.op.GetRemoveSnapshots(); r.GetRemoved() != 1 || r.GetFreedBytes() != 10 || len(r.GetKeptBecause()) != 1 || r.GetBatch() != 0 {
		t.Errorf("it counts %v", r)
	}
}

// TestWhatAnAgentKeptIsNotAskedForAgain: a pruning ends though a snapshot stays.
func TestWhatAnAgentKeptIsNotAskedForAgain(t *testing.T) {
	snapshot, entry, at := records(t, KindPrune, "running,task 1 zfs-destroy succeeded,destroyed 1,kept 2,kept 3,kept 4,listing")
	at.answer.key = opID + "/2"
	if s, q := decide(snapshot, entry, at); told(s, q) != "succeed" || s.op.GetRemoveSnapshots().GetKept() != 5 {
		t.Errorf("%s: %v", told(s, q), s.op)
	}
}

// TestADeletionIsOfGUIDs: what was made anew under a name that is to go, or has the
// guid elsewhere, is another snapshot.
func TestADeletionIsOfGUIDs(t *testing.T) {
	of := func(dataset, name string, guid uint64) retention.Snapshot {
		return retention.Snapshot{Dataset: dataset, Name: name, GUID: guid, Created: noon, Ours: true}
	}
	ids := []*agentv1.ZfsSnapshotID{{Dataset: "tank/vm", Name: "s2", Guid: 2}}
	others := []retention.Snapshot{of("tank/vm", "s2", 7), of("tank/copy", "s2", 2), of("tank/vm", "renamed", 2)}
	if going, stays, err := deletion(ids, others, retention.Protection{}, nil, noon); err != nil || len(going) != 0 || stays != 0 {
		t.Errorf("%v goes, %d stay, %v", going, stays, err)
	}
	if going, _, err := deletion(ids, append(others, of("tank/vm", "s2", 2)), retention.Protection{}, nil, noon); err != nil || len(going) != 1 || going[0].GetGuid() != 2 {
		t.Errorf("%v goes, %v", going, err)
	}
}
