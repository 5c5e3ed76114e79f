package storage

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

func TestEndingJobs(t *testing.T) {
	for facts, want := range map[string]string{
		"deleting":                   "task source-1/replication-release",
		"deleting,down a":            "task target-1/replication-release",
		"deleting,down a,down b":     "note waiting for the agent of a, which is not heard; a node that is gone for good is forgotten by removing it from the cluster",
		"deleting,cancel":            "cancelled CANCELLED",
		"deleting,nonode a":          "task target-1/replication-release",
		"deleting,nonode a,nonode b": "succeed",
		"nojob":                      "succeed",
		"running,deleting,task source-1 replication-release running":                                                                    "task target-1/replication-release",
		"running,deleting,task source-1 replication-release running,task target-1 replication-release succeeded":                        "note releasing what the job keeps on a",
		"running,deleting,task source-1 replication-release running,task target-1 replication-release succeeded,cancel":                 "cancel-task source-1/replication-release",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release succeeded":                      "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release succeeded,cancel":               "succeed",
		"running,deleting,task source-1 replication-release succeeded,nonode b":                                                         "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release running,nonode b":               "node-gone target-1/replication-release",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed NODE_GONE,nonode b":      "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed NODE_OFF,off b":          "note waiting for the agent of b, which is not heard; a node that is gone for good is forgotten by removing it from the cluster",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed DATASET_NOT_FOUND":       "succeed",
		"running,deleting,task source-1 replication-release succeeded,task target-1 replication-release failed ZFS_ERROR":               "fail ZFS_ERROR",
		"running,deleting,task source-1 replication-release failed INTERRUPTED,interrupted,task target-1 replication-release succeeded": "task source-2/replication-release",
	} {
		s := check(t, KindEnd, facts, want)
		if s == nil || s.name != stepSucceed || strings.Contains(facts, "nojob") {
			continue
		}
		found := false
		for _, key := range s.change.Deletes {
			found = found || key == store.ReplicationKey(jobID)
		}
		if !found {
			t.Errorf("%s: the job stays", facts)
		}
	}
}

func TestRPO(t *testing.T) {
	options := encoded(&debvisorv1.ReplicationOptions{RpoSeconds: 600})
	at := func(minutes int) *timestamppb.Timestamp {
		return timestamppb.New(noon.Add(time.Duration(minutes) * time.Minute))
	}
	for _, c := range []struct {
		name string
		job  *storev1.ReplicationJob
		want string
	}{
		{"none", &storev1.ReplicationJob{CreatedAt: at(-100)}, ""},
		{"kept", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-9)}, ""},
		{"just kept", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-10)}, ""},
		{"missed", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-11)}, "RPO_MISSED since -1m0s"},
		{"missed still", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-11), RpoMissedSince: at(-1)}, ""},
		{"kept again", &storev1.ReplicationJob{Options: options, CursorGuid: 1, CursorCreated: at(-1), RpoMissedSince: at(-1)}, "RPO_KEPT"},
		{"not wanted any more", &storev1.ReplicationJob{CursorGuid: 1, CursorCreated: at(-100), RpoMissedSince: at(-1)}, "RPO_KEPT"},
		{"never ran, and is new", &storev1.ReplicationJob{Options: options, CreatedAt: at(-9)}, ""},
		{"never ran", &storev1.ReplicationJob{Options: options, CreatedAt: at(-30)}, "RPO_MISSED since -20m0s"},
		{"ran, nobody knows when its snapshot was taken", &storev1.ReplicationJob{Options: options, CreatedAt: at(-30), CursorGuid: 1, LastSuccess: at(-5)}, ""},
		{"being deleted", &storev1.ReplicationJob{Options: options, CreatedAt: at(-30), Deleting: true}, ""},
		{"of a hundred years and more", &storev1.ReplicationJob{Options: encoded(&debvisorv1.ReplicationOptions{RpoSeconds: 1 << 63}), CreatedAt: at(-30)}, ""},
	} {
		c.job.Id = jobID
		s := judgeRPO(cluster.Entry[*storev1.ReplicationJob]{Value: c.job, ModRevision: 4}, noon)
		got := ""
		if s != nil {
			got = s.audit.Error
			if since := s.job.GetRpoMissedSince(); since != nil {
				got += " since " + since.AsTime().Sub(noon).String()
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
