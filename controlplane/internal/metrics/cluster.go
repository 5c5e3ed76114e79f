package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/obs"
)

// View is where the snapshot comes from (store.View).
type View interface {
	Current() *cluster.Snapshot
	Age() (age time.Duration, ok bool)
}

// Cluster tells what the snapshot says.
type Cluster struct {
	View View
	// Now is the clock; nil: the wall's.
	Now func() time.Time

	// kinds are words of our code.
	kinds obs.Words
}

var (
	ageDesc      = obs.Desc("snapshot_age_seconds", "For how long the replica's snapshot has not been known to hold everything; absent before there is one.")
	revisionDesc = obs.Desc("snapshot_revision", "etcd's revision of the replica's snapshot.")
	recordsDesc  = obs.Desc("records", "Records in the replica's snapshot, by collection.", "collection")
	leaderDesc   = obs.Desc("leader_known", "1 while the replica knows of a leader, else 0.")
	termDesc     = obs.Desc("leader_term", "The create revision of the leader's election key: grows with each leader of an epoch.")
	epochDesc    = obs.Desc("cluster_epoch", "The cluster's epoch: grows with each restore from a backup.")
	livenessDesc = obs.Desc("node_liveness", "1 for the liveness that a node has, 0 for the others.", "node", "liveness")
	cordonDesc   = obs.Desc("node_cordoned", "1 while a node takes no VMs, else 0.", "node")
	libvirtDesc  = obs.Desc("node_libvirt_up", "1 while a node's agent reaches its libvirt, else 0.", "node")
	conflictDesc = obs.Desc("vm_conflicts", "VMs that more than one node reports running.")
	lostDesc     = obs.Desc("lost_copies", "Copies of VMs that were brought back elsewhere, on nodes that have not destroyed them yet.")
	backupDesc   = obs.Desc("last_backup_timestamp_seconds", "When the last whole backup was taken; 0: never.")
	restoreDesc  = obs.Desc("restore_unconfirmed", "1 while a restore from a backup waits for the operator's word, else 0.")
	expiryDesc   = obs.Desc("certificates_soonest_expiry_timestamp_seconds",
		"When the first of the certificates ends that count for their holders, by the kind of the holders; absent where there is none.", "holder")
)

// livenesses are the values of the label.
var livenesses = map[storev1.NodeLiveness]string{
	storev1.NodeLiveness_NODE_LIVENESS_ONLINE:      "online",
	storev1.NodeLiveness_NODE_LIVENESS_SUSPECT:     "suspect",
	storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE: "unreachable",
}

// Describe tells nothing: which nodes there are changes.
func (c *Cluster) Describe(chan<- *prometheus.Desc) {}

// Collect tells what the snapshot says.
func (c *Cluster) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	s := c.View.Current()
	age, ok := c.View.Age()
	if !ok {
		return // an empty snapshot says nothing
	}
	out <- gauge(ageDesc, age.Seconds())
	out <- gauge(revisionDesc, float64(s.Revision))
	out <- gauge(epochDesc, float64(s.Epoch))
	out <- gauge(leaderDesc, one(s.Leader != nil))
	if s.Leader != nil {
		out <- gauge(termDesc, float64(s.Leader.Term.Revision))
	}
	for collection, n := range map[string]int{
		"nodes": len(s.Nodes), "vms": len(s.VMs), "operations": len(s.Operations), "tasks": len(s.Tasks), "plans": len(s.Plans),
		"replications": len(s.Replications), "principals": len(s.Principals), "apikeys": len(s.APIKeys), "replicas": len(s.Replicas),
		"jointokens": len(s.JoinTokens), "certificates": len(s.Certificates), "revoked": len(s.Revoked),
	} {
		out <- gauge(recordsDesc, float64(n), collection)
	}
	nodes(s, out)
	vms(s, out)
	work(s, now, &c.kinds, out)
	replications(s, now, out)
	certificates(s, now, out)
	out <- gauge(backupDesc, seconds(s.LastBackup.Value.GetAt()))
	out <- gauge(restoreDesc, one(s.Restore.Value != nil && s.Restore.Value.GetConfirmedAt() == nil))
}

func nodes(s *cluster.Snapshot, out chan<- prometheus.Metric) {
	for id, node := range s.Nodes {
		status := s.Statuses[id].Value
		for liveness, word := range livenesses {
			out <- gauge(livenessDesc, one(status.GetLiveness() == liveness), id, word)
		}
		out <- gauge(cordonDesc, one(node.Value.GetCordoned()), id)
		out <- gauge(libvirtDesc, one(!status.GetLibvirtDown()), id)
	}
}

func vms(s *cluster.Snapshot, out chan<- prometheus.Metric) {
	conflicts := 0
	for _, vm := range s.VMs {
		if len(vm.Value.GetConflictNodes()) > 0 {
			conflicts++
		}
	}
	out <- gauge(conflictDesc, float64(conflicts))
	lost := 0
	for _, c := range s.LostCopies {
		if c.Value.GetState() != storev1.LostCopyState_LOST_COPY_STATE_GONE {
			lost++
		}
	}
	out <- gauge(lostDesc, float64(lost))
}

// certificates tells which ends first, of those that count: the latest that each
// holder has and that is not revoked. Others were renewed. One of an agent counts
// after its end as well: its node is there, and cannot be reached with it.
func certificates(s *cluster.Snapshot, now time.Time, out chan<- prometheus.Metric) {
	type holder struct {
		kind uint32
		name string
	}
	latest := map[holder]time.Time{}
	for serial, c := range s.Certificates {
		ends := c.Value.GetExpiresAt().AsTime()
		over := now.After(ends) && c.Value.GetHolder() != uint32(debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT)
		if _, revoked := s.Revoked[serial]; revoked || over || removed(s, c.Value) {
			continue
		}
		of := holder{c.Value.GetHolder(), c.Value.GetName()}
		if ends.After(latest[of]) {
			latest[of] = ends
		}
	}
	soonest := map[uint32]time.Time{}
	for of, ends := range latest {
		if first, ok := soonest[of.kind]; !ok || ends.Before(first) {
			soonest[of.kind] = ends
		}
	}
	for kind, ends := range soonest {
		out <- gauge(expiryDesc, float64(ends.Unix()), holderWord(kind))
	}
}

// removed tells whether a certificate is of a node that is there no more.
func removed(s *cluster.Snapshot, c *storev1.Certificate) bool {
	_, there := s.Nodes[c.GetName()]
	return c.GetHolder() == uint32(debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT) && !there
}

// holderWord is the name of a kind of holder, such as "agent".
func holderWord(kind uint32) string {
	name, ok := debvisorv1.CertificateHolder_name[int32(kind)] //nolint:gosec // numbers of an enum
	if !ok {
		return obs.Other
	}
	return strings.ToLower(strings.TrimPrefix(name, "CERTIFICATE_HOLDER_"))
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// seconds is a moment as Prometheus has it; 0: none.
func seconds(at *timestamppb.Timestamp) float64 {
	if at == nil {
		return 0
	}
	return float64(at.AsTime().UnixMilli()) / 1000
}
