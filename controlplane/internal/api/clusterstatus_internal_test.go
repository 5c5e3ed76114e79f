package api

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// TestStatus: what is wrong is said, and what is not is not.
func TestStatus(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	said := func(name string, age time.Duration, ready, learner bool) *storev1.ReplicaStatus {
		return &storev1.ReplicaStatus{
			Name: name, At: timestamppb.New(now.Add(-age)), Ready: ready, Learner: learner, Reasons: []string{"the disk is full"},
			CertificateExpiresAt: timestamppb.New(now.Add(20 * 24 * time.Hour)),
		}
	}
	fresh := &storev1.BackupNote{At: timestamppb.New(now.Add(-time.Hour))}
	for _, c := range []struct {
		name     string
		replicas []*storev1.ReplicaStatus
		backup   *storev1.BackupNote
		restore  *storev1.Restore
		leader   string
		mayFail  uint32
		problems []string // a word of each, in their order
	}{
		{"all is well", []*storev1.ReplicaStatus{said("r1", 0, true, false), said("r2", 9*time.Second, true, false), said("r3", 0, true, false)}, fresh, nil, "r1", 1, nil},
		{"one alone", []*storev1.ReplicaStatus{said("r1", 0, true, false)}, fresh, nil, "r1", 0, nil},
		{"one is silent", []*storev1.ReplicaStatus{said("r1", 0, true, false), said("r2", 31*time.Second, true, false), said("r3", 0, true, false)}, fresh, nil, "r1", 0, []string{"r2 is not ready: it has not been heard for 31s", "no replica may fail"}},
		{"one is not ready", []*storev1.ReplicaStatus{said("r1", 0, true, false), said("r2", 0, false, false), said("r3", 0, true, false)}, fresh, nil, "r1", 0, []string{"the disk is full", "no replica may fail"}},
		{"one is joining", []*storev1.ReplicaStatus{said("r1", 0, true, false), said("r2", 0, true, true)}, fresh, nil, "r1", 0, []string{"no replica may fail"}},
		{"nobody leads", []*storev1.ReplicaStatus{said("r1", 0, true, false)}, fresh, nil, "", 0, []string{"no replica leads"}},
		{"no backup", []*storev1.ReplicaStatus{said("r1", 0, true, false)}, nil, nil, "r1", 0, []string{"no backup was ever taken"}},
		{"an old backup", []*storev1.ReplicaStatus{said("r1", 0, true, false)}, &storev1.BackupNote{At: timestamppb.New(now.Add(-200 * time.Hour))}, nil, "r1", 0, []string{"200h"}},
		{"restored", []*storev1.ReplicaStatus{said("r1", 0, true, false)}, fresh, &storev1.Restore{Epoch: 7}, "r1", 0, []string{"confirms epoch 7"}},
		{"restored and confirmed", []*storev1.ReplicaStatus{said("r1", 0, true, false)}, fresh, &storev1.Restore{Epoch: 7, ConfirmedAt: timestamppb.New(now)}, "r1", 0, []string{"n1 have not been heard since"}},
	} {
		d := cluster.Empty().Draft()
		d.Nodes.Put("n1", &storev1.Node{Id: "n1"}, 1)
		known := &debvisorv1.Cluster{Leader: c.leader}
		for _, r := range c.replicas {
			d.ReplicaStatuses.Put(r.GetName(), r, 1)
			known.Replicas = append(known.Replicas, &debvisorv1.Replica{Name: r.GetName(), Version: "1"})
		}
		if c.leader != "" {
			d.PutCandidate("e", &storev1.Leader{Name: c.leader}, 1)
		}
		d.SetLastBackup(c.backup, 1)
		d.SetRestore(c.restore, 1)
		silence := func(name string) (time.Duration, bool) {
			said, ever := d.Snapshot(2).ReplicaStatuses[name]
			return now.Sub(said.Value.GetAt().AsTime()), ever
		}
		status := statusOf(d.Snapshot(2), known, silence, now)
		if status.GetMayFail() != c.mayFail || len(status.GetProblems()) != len(c.problems) {
			t.Errorf("%s: %d may fail, want %d; problems %q, want %q", c.name, status.GetMayFail(), c.mayFail, status.GetProblems(), c.problems)
			continue
		}
		for i, want := range c.problems {
			if !strings.Contains(status.GetProblems()[i], want) {
				t.Errorf("%s: problem %d is %q, want %q", c.name, i, status.GetProblems()[i], want)
			}
		}
	}
}
