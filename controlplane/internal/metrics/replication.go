package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
)

var (
	jobsDesc = obs.Desc("replication_jobs", "Replication jobs, by the nodes that they are between.", "source", "target")
	lagDesc  = obs.Desc("replication_lag_seconds",
		"The age of the newest data on the target, of the job that is furthest behind, by the nodes.", "source", "target")
	lagBytesDesc = obs.Desc("replication_lag_bytes",
		"Bytes written on the source since the newest data on the target, of all jobs, as last looked at, by the nodes.", "source", "target")
	rpoDesc    = obs.Desc("replication_rpo_missed", "Replication jobs whose RPO is missed, by the nodes.", "source", "target")
	failedDesc = obs.Desc("replication_failing", "Replication jobs whose last run failed, by the nodes.", "source", "target")
)

// pair is two nodes. Jobs are summed up by them: a job's name may be its
// owner's choice.
type pair struct{ source, target string }

// standing is how the jobs between two nodes stand.
type standing struct {
	jobs, missed, failing int
	lag                   time.Duration
	bytes                 uint64
}

// replications tells how far copies are behind.
func replications(s *cluster.Snapshot, now time.Time, out chan<- prometheus.Metric) {
	all := map[pair]*standing{}
	for _, entry := range s.Replications {
		job := entry.Value
		of := pair{nodeWord(s, job.GetSource()), nodeWord(s, job.GetTarget())}
		if all[of] == nil {
			all[of] = &standing{}
		}
		all[of].take(job, now)
	}
	for of, st := range all {
		out <- gauge(jobsDesc, float64(st.jobs), of.source, of.target)
		out <- gauge(lagDesc, st.lag.Seconds(), of.source, of.target)
		out <- gauge(lagBytesDesc, float64(st.bytes), of.source, of.target)
		out <- gauge(rpoDesc, float64(st.missed), of.source, of.target)
		out <- gauge(failedDesc, float64(st.failing), of.source, of.target)
	}
}

func (st *standing) take(job *storev1.ReplicationJob, now time.Time) {
	st.jobs++
	st.bytes += job.GetLagBytes()
	if job.GetRpoMissedSince() != nil {
		st.missed++
	}
	if job.GetLastErrorCode() != "" {
		st.failing++
	}
	// A job that has sent nothing yet lags since it was made.
	since := job.GetCreatedAt()
	for _, known := range []*timestamppb.Timestamp{job.GetLastSuccess(), job.GetCursorCreated()} {
		if known != nil {
			since = known
		}
	}
	st.lag = max(st.lag, now.Sub(since.AsTime()))
}

// nodeWord is a node's id if there is such a node: ids are the operator's.
func nodeWord(s *cluster.Snapshot, id string) string {
	if _, ok := s.Nodes[id]; ok {
		return id
	}
	return obs.Other
}
