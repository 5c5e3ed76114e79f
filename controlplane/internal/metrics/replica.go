package metrics

import (
	"crypto/x509"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/obs"
)

// Sessions are agents' sessions, where this replica leads (dispatch.Dispatch).
type Sessions interface {
	Sessions() (open int, leads bool)
}

// Silences are for how long nodes have not been heard, where this replica leads
// (inventory.Inventory).
type Silences interface {
	Silences(now time.Time) map[string]time.Duration
}

// AuditLog is the replica's (audit.Log).
type AuditLog interface {
	Stats(now time.Time) audit.Stats
}

// Replica tells how this replica is.
type Replica struct {
	View     View
	Audit    AuditLog
	Sessions Sessions
	Silences Silences
	// Counted gives how many names each limiter counts, by a word for it.
	Counted map[string]func() int
	// Certificates gives certificates of this replica's own, by a word for each.
	Certificates map[string]func() *x509.Certificate
	// Unready gives the words of the checks by which the replica is not ready.
	Unready func() []string
	// Reloads tells how often the configuration was read anew and taken, and
	// refused, and whether the last one was refused.
	Reloads func() (taken, refused int64, broken bool)

	// words are the checks'.
	words obs.Words
}

var (
	linesDesc    = obs.Desc("audit_lines_total", "Lines of this replica's audit log that are on disk, of all time.")
	auditLagDesc = obs.Desc("audit_lag_seconds", "The age of the oldest event that is not known to be on disk.")
	waitingDesc  = obs.Desc("audit_waiting_bytes", "Events of the audit log that are in memory only.")
	lostEvents   = obs.Desc("audit_lost_events_total", "Events that the audit log had no room for.")
	auditFailed  = obs.Desc("audit_write_failures_total", "How often the audit log's disk failed or did not answer.")
	degradedDesc = obs.Desc("audit_degraded", "1 while syslog takes the audit log's lines in place of its file, else 0.")
	refusingDesc = obs.Desc("audit_refusing_changes", "1 while changes are refused since the audit log cannot be written, else 0.")
	namesDesc    = obs.Desc("limiter_names", "Names that a limiter counts at the moment.", "limiter")
	sessionsDesc = obs.Desc("agent_sessions", "Agents' sessions; on the leader only.")
	leadsDesc    = obs.Desc("leading", "1 while this replica leads, else 0.")
	silenceDesc  = obs.Desc("node_heartbeat_age_seconds", "For how long a node's agent has not been heard; on the leader only.", "node")
	ownExpiry    = obs.Desc("certificate_expiry_timestamp_seconds", "When a certificate of this replica's ends.", "certificate")
	readyDesc    = obs.Desc("ready", "1 while this replica is ready, else 0.")
	unreadyDesc  = obs.Desc("unready", "1 for each check by which this replica is not ready; absent for the others.", "check")
	reloadsDesc  = obs.Desc("config_reloads_total", "How often the configuration was read anew at SIGHUP, by outcome: applied or refused.", "outcome")
	brokenDesc   = obs.Desc("config_last_reload_successful", "0 if the configuration was refused when it was last read anew, else 1.")
)

// Describe describes.
func (r *Replica) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		linesDesc, auditLagDesc, waitingDesc, lostEvents, auditFailed, degradedDesc, refusingDesc, namesDesc, sessionsDesc, leadsDesc,
		silenceDesc, ownExpiry, readyDesc, unreadyDesc, reloadsDesc, brokenDesc,
	} {
		out <- d
	}
}

// Collect tells how the replica is.
func (r *Replica) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	r.audit(now, out)
	for limiter, names := range r.Counted {
		out <- gauge(namesDesc, float64(names()), limiter)
	}
	for word, leaf := range r.Certificates {
		if c := leaf(); c != nil {
			out <- gauge(ownExpiry, float64(c.NotAfter.Unix()), word)
		}
	}
	open, leads := r.Sessions.Sessions()
	out <- gauge(leadsDesc, one(leads))
	if leads {
		out <- gauge(sessionsDesc, float64(open))
	}
	r.silences(r.View.Current(), now, out)
	failing := map[string]bool{}
	for _, check := range r.Unready() {
		failing[r.words.Word(check)] = true
	}
	out <- gauge(readyDesc, one(len(failing) == 0))
	for check := range failing {
		out <- gauge(unreadyDesc, 1, check)
	}
	taken, refused, broken := r.Reloads()
	out <- counter(reloadsDesc, float64(taken), "applied")
	out <- counter(reloadsDesc, float64(refused), "refused")
	out <- gauge(brokenDesc, one(!broken))
}

func (r *Replica) audit(now time.Time, out chan<- prometheus.Metric) {
	s := r.Audit.Stats(now)
	out <- counter(linesDesc, float64(s.Lines))
	out <- gauge(auditLagDesc, s.Lag.Seconds())
	out <- gauge(waitingDesc, float64(s.Waiting))
	out <- counter(lostEvents, float64(s.Lost))
	out <- counter(auditFailed, float64(s.Failures))
	out <- gauge(degradedDesc, one(s.Degraded))
	out <- gauge(refusingDesc, one(s.Refusing))
}

// silences tells of nodes that there still are.
func (r *Replica) silences(s *cluster.Snapshot, now time.Time, out chan<- prometheus.Metric) {
	for node, silence := range r.Silences.Silences(now) {
		if _, there := s.Nodes[node]; there {
			out <- gauge(silenceDesc, silence.Seconds(), node)
		}
	}
}
