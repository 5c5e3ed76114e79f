package storage

import (
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const pair = "running,phase send,task 1 replicate-receive "

func TestRuns(t *testing.T) {
	for facts, want := range map[string]string{
		"":         "begin",
		"cancel":   "cancelled CANCELLED",
		"nojob":    "fail JOB_NOT_FOUND",
		"deleting": "fail JOB_DELETING",
		"down b":   "note waiting for the agent of b, which is not heard",
		"nozfs a":  "note waiting for ZFS of a, which does not answer: no module",
		"nonode b": "fail NODE_NOT_FOUND",
		"other 1":  "begin",
		"other 2":  "note waiting for its turn: 2 replications leave a already, as many as may at once",
		// The limit is each node's own, one for either direction.
		"arriving 1":                   "begin",
		"other 2,down c":               "begin",
		"arriving 2,down c":            "begin",
		"arriving 2":                   "note waiting for its turn: 2 replications arrive on b already, as many as may at once",
		"arriving 1,other 1":           "begin",
		"other 2,limit a 3":            "begin",
		"arriving 1,limit b 1":         "note waiting for its turn: 1 replications arrive on b already, as many as may at once",
		"arriving 2,limit a 3":         "note waiting for its turn: 2 replications arrive on b already, as many as may at once",
		"arriving 2,limit b 3,other 1": "begin",
		"running":                      "fail BROKEN_RECORD",

		"running,phase snapshot":                                                    "task 1/zfs-snapshot",
		"running,phase snapshot,cancel":                                             "cancelled CANCELLED",
		"running,phase snapshot,down b":                                             "note waiting for the agent of b, which is not heard",
		"running,phase snapshot,task 1 zfs-snapshot running":                        "note taking a snapshot on a",
		"running,phase snapshot,task 1 zfs-snapshot running,cancel":                 "cancel-task 1/zfs-snapshot",
		"running,phase snapshot,task 1 zfs-snapshot succeeded":                      "snapshot-taken",
		"running,phase snapshot,task 1 zfs-snapshot failed NO_SPACE":                "fail NO_SPACE",
		"running,phase snapshot,task 1 zfs-snapshot failed INTERRUPTED,interrupted": "again 2 snapshot in 3s",
		"running,phase snapshot,attempt 2,pause":                                    "note waiting to try again (attempt 2): it broke",

		"running,phase plan":                       "note asking a and b what they have ask",
		"running,phase plan,cancel":                "cancelled CANCELLED",
		"running,phase plan,nojob":                 "fail JOB_NOT_FOUND",
		"running,phase plan,down a":                "note waiting for the agent of a, which is not heard",
		"running,phase plan,error NO_SESSION":      "note asking a and b what they have: no answer: NO_SESSION",
		"running,phase plan,error ZFS_ERROR":       "note asking a and b what they have: no answer: ZFS_ERROR",
		"running,phase plan,error ZFS_ERROR again": "fail ZFS_ERROR",
		"running,phase plan,answer old":            "ask",
		"running,phase plan,answer new":            "receive 1/replicate-receive",
		"running,phase plan,answer new,cancel":     "cancelled CANCELLED",
		"running,phase plan,answer nothing":        "succeed cursor 3",
		"running,phase plan,answer unmarked":       "receive 1/replicate-receive",
		"running,phase plan,answer diverged":       "fail REPLICATION_DIVERGED",

		"running,phase receive,task 1 replicate-receive assigned":                                    "note preparing b",
		"running,phase receive,task 1 replicate-receive assigned,down b":                             "note preparing b: waiting for the agent of b, which is not heard",
		"running,phase receive,task 1 replicate-receive assigned,cancel":                             "cancel-task 1/replicate-receive",
		"running,phase receive,task 1 replicate-receive running,asked,cancel":                        "note cancelling",
		"running,phase receive,task 1 replicate-receive running,address":                             "send 1/replicate-send",
		"running,phase receive,task 1 replicate-receive running,address,cancel":                      "cancel-task 1/replicate-receive",
		"running,phase receive,task 1 replicate-receive failed TARGET_CHANGED":                       "again 2 snapshot in 2s",
		"running,phase receive,nosnapshot,task 1 replicate-receive failed STREAM_FAILED,interrupted": "again 2 plan in 3s",
		"running,phase receive,task 1 replicate-receive failed STREAM_REFUSED":                       "fail STREAM_REFUSED",
		"running,phase receive,task 1 replicate-receive cancelled CANCELLED,cancel":                  "cancelled CANCELLED",
		"running,phase receive": "fail BROKEN_RECORD",

		pair + "running,task 1 replicate-send running":                                                                         "note sending",
		pair + "running,task 1 replicate-send running,down a":                                                                  "note sending: waiting for the agent of a, which is not heard",
		pair + "running,task 1 replicate-send running,cancel":                                                                  "cancel-task 1/replicate-receive",
		pair + "running,asked,task 1 replicate-send running,cancel":                                                            "cancel-task 1/replicate-send",
		pair + "running,asked,task 1 replicate-send running,asked,cancel":                                                      "note cancelling",
		pair + "failed NO_SPACE,task 1 replicate-send running":                                                                 "cancel-task 1/replicate-send",
		pair + "running,task 1 replicate-send failed INTERRUPTED,interrupted":                                                  "cancel-task 1/replicate-receive",
		pair + "succeeded,task 1 replicate-send running":                                                                       "note sending",
		pair + "succeeded,task 1 replicate-send succeeded,cursor s2 2":                                                         "succeed cursor 2",
		pair + "succeeded,task 1 replicate-send succeeded,cursor s2 2,cancel":                                                  "succeed cursor 2",
		pair + "succeeded,nosnapshot,more,task 1 replicate-send succeeded,cursor s2 2":                                         "again 2 plan in 0s cursor 2",
		pair + "succeeded,more,task 1 replicate-send succeeded,cursor s2 2,cancel":                                             "cancelled CANCELLED cursor 2",
		pair + "cancelled CANCELLED,task 1 replicate-send cancelled CANCELLED,cancel":                                          "cancelled CANCELLED",
		pair + "failed NO_SPACE,task 1 replicate-send cancelled CANCELLED":                                                     "fail NO_SPACE",
		pair + "cancelled CANCELLED,task 1 replicate-send failed INTERRUPTED,interrupted,nosnapshot":                           "again 2 plan in 3s",
		pair + "succeeded,task 1 replicate-send failed INTERRUPTED,interrupted,nosnapshot":                                     "again 2 plan in 3s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot":                         "again 2 plan in 2s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 2":                "again 2 plan in 8s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 5":                "fail STREAM_BROKEN",
		pair + "failed STREAM_BROKEN,interrupted,bytes 20000000,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 5": "again 2 plan in 2s",
		pair + "failed STREAM_BROKEN,interrupted,task 1 replicate-send cancelled CANCELLED,cursor s2 2,nosnapshot,broken 5":    "again 2 plan in 2s cursor 2",
		pair + "failed INTERRUPTED,interrupted,task 1 replicate-send cancelled CANCELLED,nosnapshot,broken 5":                  "again 2 plan in 3s",
		pair + "failed DESTINATION_MODIFIED,task 1 replicate-send cancelled CANCELLED,nosnapshot":                              "again 2 plan in 2s",
		pair + "running,task 1 replicate-send running,nonode b":                                                                "node-gone 1/replicate-receive",
		pair + "running,task 1 replicate-send running,off a":                                                                   "node-gone 1/replicate-send",
		pair + "failed NODE_GONE,task 1 replicate-send running":                                                                "cancel-task 1/replicate-send",
		pair + "failed NODE_GONE,task 1 replicate-send cancelled CANCELLED":                                                    "fail NODE_GONE",
		pair + "running,task 1 replicate-send running,unfit":                                                                   "cancel-task 1/replicate-receive",
		pair + "cancelled CANCELLED,task 1 replicate-send cancelled CANCELLED,unfit":                                           "fail CHANGE_TOO_LARGE",
		"running,phase plan,answer new,unfit":                                                                                  "fail CHANGE_TOO_LARGE",
		pair + "running,task 1 replicate-send running,nojob":                                                                   "cancel-task 1/replicate-receive",
	} {
		check(t, KindRun, facts, want)
	}
}

// TestWhatARunSays: what the agents are told, and what the job comes to.
func TestWhatARunSays(t *testing.T) {
	s := check(t, KindRun, "running,phase plan,answer new", "receive 1/replicate-receive")
	var spec agentv1.TaskSpec
	if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
		t.Fatal(err)
	}
	r := spec.GetReplicateReceive()
	if len(r.GetSteps()) != 2 || r.GetTargetGuid() != 2000 || r.GetCursor().GetGuid() != 1 || r.GetRight().GetSourceGuid() != 1000 ||
		r.GetRight().GetId() != "r1" || r.GetRight().GetSendTaskId() != "op-1/1/replicate-send" || r.GetRight().GetTargetDataset() != "backup/vm" ||
		s.task.GetNode() != "b" || s.task.GetResource() != "zfs-copy/backup/vm" || s.op.GetReplicate().GetToCreated().GetSeconds() != noon.Unix()-97 {
		t.Errorf("the target is told %v; %v", r, s.op)
	}
	if mib := r.GetNodeBandwidthMib(); mib != 40 {
		t.Errorf("all that arrives on the target may take %d MiB/s", mib)
	}
	s = check(t, KindRun, "running,phase receive,task 1 replicate-receive running,address", "send 1/replicate-send")
	if err := proto.Unmarshal(s.task.GetSpec(), &spec); err != nil {
		t.Fatal(err)
	}
	if send := spec.GetReplicateSend(); send.GetTargetAddress() != "b:7500" || send.GetRight().GetId() != "r0" || !send.GetRaw() || send.GetBandwidthMib() != 7 || send.GetNodeBandwidthMib() != 30 ||
		send.GetCursor().GetName() != "s1" || send.GetCursor().GetDataset() != "tank/vm" || len(send.GetSteps()) != 1 || s.task.GetNode() != "a" {
		t.Errorf("the source is told %v", send)
	}
	s = check(t, KindRun, pair+"succeeded,bytes 40,task 1 replicate-send succeeded,cursor s2 2,bytes 42", "succeed cursor 2")
	if j := s.job; j.GetCursorName() != "s2" || j.GetCursorCreated().GetSeconds() != noon.Unix()-5 || j.GetBytesTotal() != 142 || j.GetLastBytes() != 42 ||
		j.GetLastDurationMs() != 2000 || j.GetLastSuccess() == nil || j.GetLastOperation() != opID || len(j.GetDecision()) == 0 || j.GetLagBytes() != 0 {
		t.Errorf("the job comes to %v", j)
	}
	s = check(t, KindRun, pair+"failed NO_SPACE,task 1 replicate-send cancelled CANCELLED", "fail NO_SPACE")
	if j := s.job; j.GetLastErrorCode() != "NO_SPACE" || j.GetLastSuccess() != nil || j.GetLagBytes() != 50 || j.GetCursorGuid() != 1 {
		t.Errorf("after a failure the job is %v", j)
	}
	_, q := decide3(t, "running,phase plan,confirmed,last DESTINATION_MODIFIED")
	if q == nil || !q.more.Modified || q.more.Confirmed != "plan-1" || q.job.GetId() != jobID {
		t.Errorf("it asks %+v", q)
	}
}

func decide3(t *testing.T, facts string) (*step, *question) {
	t.Helper()
	snapshot, entry, at := records(t, KindRun, facts)
	return decide(snapshot, entry, at)
}
