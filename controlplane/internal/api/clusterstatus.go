package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

const (
	// replicaSilence is the silence after which a replica is not ready.
	replicaSilence = 30 * time.Second
	// expirySoon is how long before its end a replica's certificate is a problem:
	// replicas renew theirs long before.
	expirySoon = 48 * time.Hour
	// backupOld is the age at which the last backup is a problem.
	backupOld = 7 * 24 * time.Hour
)

// GetClusterStatus answers how the control plane is, as the records have it.
func (s *clusterService) GetClusterStatus(ctx context.Context, _ *debvisorv1.Empty) (*debvisorv1.ClusterStatus, error) {
	known, err := s.GetCluster(ctx, nil)
	if err != nil {
		return nil, err
	}
	snapshot := s.view.Current()
	return statusOf(snapshot, known, s.silence, time.Now()), nil
}

// silence is for how long a replica has said nothing, as far as this one knows.
func (s *clusterService) silence(name string) (silence time.Duration, ever bool) {
	if s.members == nil {
		return 0, false
	}
	return s.members.Silence(name)
}

// statusOf tells how the control plane is. It is pure. Silence is for how long a
// replica has said nothing.
func statusOf(s *cluster.Snapshot, known *debvisorv1.Cluster, silence func(name string) (time.Duration, bool), now time.Time) *debvisorv1.ClusterStatus {
	answer := &debvisorv1.ClusterStatus{Cluster: known, Schema: store.SchemaVersion, Restore: restoreStatus(s)}
	if note := s.LastBackup.Value; note != nil {
		answer.LastBackupAt = timestamp(note.GetAt())
	}
	for _, status := range s.Statuses {
		switch status.Value.GetLiveness() {
		case storev1.NodeLiveness_NODE_LIVENESS_ONLINE:
			answer.NodesOnline++
		case storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:
			answer.NodesSuspect++
		case storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE:
			answer.NodesUnreachable++
		}
	}
	for _, r := range known.GetReplicas() {
		silent, _ := silence(r.GetName())
		answer.Replicas = append(answer.Replicas, replicaStatus(r, s.ReplicaStatuses[r.GetName()].Value, known.GetLeader(), silent))
	}
	answer.MayFail = mayFail(answer.GetReplicas())
	answer.Problems = problems(s, answer, now)
	return answer
}

func replicaStatus(r *debvisorv1.Replica, said *storev1.ReplicaStatus, leader string, silent time.Duration) *debvisorv1.ReplicaStatus {
	status := &debvisorv1.ReplicaStatus{Replica: r, Leader: r.GetName() == leader}
	if said == nil {
		status.Reasons = []string{"it has never said how it is: it was not started since it joined, or runs a version that does not say"}
		return status
	}
	status.ReportedAt, status.Ready, status.Reasons = timestamp(said.GetAt()), said.GetReady(), said.GetReasons()
	if silent >= replicaSilence {
		status.Ready = false
		status.Reasons = []string{fmt.Sprintf("it has not been heard for %s", silent.Truncate(time.Second))}
	}
	status.EtcdMember, status.Learner = said.GetEtcdMember(), said.GetLearner()
	status.EtcdDbBytes, status.EtcdRaftIndex = said.GetEtcdDbBytes(), said.GetEtcdRaftIndex()
	status.CertificateExpiresAt = timestamp(said.GetCertificateExpiresAt())
	status.TrustedCas, status.SigningCa = said.GetTrustedCas(), said.GetSigningCa()
	return status
}

// mayFail is how many replicas may fail before those that are left are no
// majority: replicas that are not ready have failed already.
func mayFail(replicas []*debvisorv1.ReplicaStatus) uint32 {
	voters, ready := 0, 0
	for _, r := range replicas {
		if r.GetLearner() {
			continue
		}
		voters++
		if r.GetReady() {
			ready++
		}
	}
	return uint32(max(0, ready-(voters/2+1)))
}

// problems are what is wrong, the worst first.
func problems(s *cluster.Snapshot, status *debvisorv1.ClusterStatus, now time.Time) []string {
	var list []string
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if s.Leader == nil {
		say("no replica leads: nothing is moved, started or taken until one does")
	}
	if waited := s.Unheard(); s.Unconfirmed() {
		say("the cluster was restored from a backup, and agents refuse it until an operator confirms epoch %d: hvctl cluster restore confirm", s.Restore.Value.GetEpoch())
	} else if len(waited) > 0 {
		say("%s", cluster.MayRun(waited))
	}
	for _, r := range status.GetReplicas() {
		if !r.GetReady() {
			say("replica %s is not ready: %s", r.GetReplica().GetName(), strings.Join(r.GetReasons(), "; "))
		}
	}
	if len(status.GetReplicas()) > 1 && status.GetMayFail() == 0 {
		say("no replica may fail: without one more the cluster stops")
	}
	if n := len(conflicts(s)); n > 0 {
		say("%d VMs are reported running by more than one node: %s", n, strings.Join(conflicts(s)[:min(n, 10)], ", "))
	}
	if status.GetNodesUnreachable() > 0 {
		say("%d nodes are unreachable", status.GetNodesUnreachable())
	}
	for _, r := range status.GetReplicas() {
		if at := r.GetCertificateExpiresAt(); at != nil && time.Unix(at.GetSeconds(), 0).Before(now.Add(expirySoon)) && r.GetReady() && longLived(s, r) {
			say("a certificate of replica %s ends %s", r.GetReplica().GetName(), time.Unix(at.GetSeconds(), 0).UTC().Format(time.RFC3339))
		}
	}
	for i, e := range pki.EndingSoon(s, now) {
		if i == endingTold {
			say("more certificates end soon: hvctl cert list --expires-within 14d")
			break
		}
		if e.Kind != pki.Replica { // they are told of above
			say("%s", e)
		}
	}
	for _, v := range mixed(status.GetReplicas()) {
		say("%s", v)
	}
	switch at := s.LastBackup.Value.GetAt(); {
	case at == nil:
		say("no backup was ever taken: hvctl cluster backup")
	case now.Sub(at.AsTime()) > backupOld:
		say("the last backup was taken %s ago: hvctl cluster backup", now.Sub(at.AsTime()).Truncate(time.Hour))
	}
	return list
}

// endingTold is how many certificates that end soon are told of one by one.
const endingTold = 10

// longLived tells whether a replica's certificate was issued for so long that its
// end is a surprise.
func longLived(s *cluster.Snapshot, r *debvisorv1.ReplicaStatus) bool {
	for _, c := range s.Certificates {
		if c.Value.GetName() == r.GetReplica().GetName() && c.Value.GetExpiresAt().GetSeconds() == r.GetCertificateExpiresAt().GetSeconds() {
			return c.Value.GetExpiresAt().AsTime().Sub(c.Value.GetIssuedAt().AsTime()) > 2*expirySoon
		}
	}
	return true
}

// conflicts are the VMs that more than one node reports running, by name.
func conflicts(s *cluster.Snapshot) []string {
	var names []string
	for _, vm := range s.VMs {
		if len(vm.Value.GetConflictNodes()) > 0 {
			names = append(names, vm.Value.GetName())
		}
	}
	slices.Sort(names)
	return names
}

// mixed tells of replicas that run different versions.
func mixed(replicas []*debvisorv1.ReplicaStatus) []string {
	by := map[string][]string{}
	for _, r := range replicas {
		by[r.GetReplica().GetVersion()] = append(by[r.GetReplica().GetVersion()], r.GetReplica().GetName())
	}
	if len(by) < 2 {
		return nil
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(by)) {
		parts = append(parts, strings.Join(by[v], ", ")+" "+v)
	}
	return []string{"replicas run different versions (" + strings.Join(parts, "; ") + "): end the upgrade"}
}

// restoreStatus tells how far the return from a backup is; nil: the cluster was
// never restored.
func restoreStatus(s *cluster.Snapshot) *debvisorv1.RestoreStatus {
	r := s.Restore.Value
	if r == nil {
		return nil
	}
	return &debvisorv1.RestoreStatus{
		Epoch: r.GetEpoch(), RestoredAt: timestamp(r.GetRestoredAt()), BackupAt: timestamp(r.GetBackupAt()), BackupRevision: r.GetBackupRevision(),
		ConfirmedAt: timestamp(r.GetConfirmedAt()), ConfirmedBy: r.GetConfirmedBy(), ReconciledAt: timestamp(r.GetReconciledAt()),
		WaitingFor: s.Unheard(), Differences: r.GetDifferences(),
	}
}
