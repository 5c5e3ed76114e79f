package metrics

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func lint(g prometheus.Gatherer) ([]promlint.Problem, error) {
	families, err := g.Gather()
	if err != nil {
		return nil, err
	}
	return promlint.NewWithMetricFamilies(families).Lint()
}

// values gives a family's samples by their labels' values.
func values(f *dto.MetricFamily) map[string]float64 {
	all := map[string]float64{}
	for _, m := range f.GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetValue())
		}
		v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		all[strings.Join(labels, " ")] = v
	}
	return all
}

func check(t *testing.T, all map[string]*dto.MetricFamily, name string, want map[string]float64) {
	t.Helper()
	if diff := cmp.Diff(want, values(all["debvisor_"+name])); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestWhatTheSnapshotSays(t *testing.T) {
	all := everything(t).gather(t)
	for name, want := range map[string]map[string]float64{
		"leader_known": {"": 1}, "leader_term": {"": 9}, "snapshot_revision": {"": 12}, "vm_conflicts": {"": 1}, "lost_copies": {"": 1},
		"node_liveness": {
			"online hv1": 1, "suspect hv1": 0, "unreachable hv1": 0, "online hv2": 0, "suspect hv2": 0, "unreachable hv2": 1,
		},
		"node_libvirt_up":              {"hv1": 1, "hv2": 0},
		"operations":                   {"migrate running": 1, "migrate pending": 1},
		"operation_oldest_age_seconds": {"migrate": 3600},
		"tasks":                        {"migrate_send running": 1},
		// Of the two jobs the one that has sent nothing lags since it was made.
		"replication_lag_seconds": {"hv1 hv2": 600, "hv1 other": 3600},
		"replication_lag_bytes":   {"hv1 hv2": 12, "hv1 other": 0},
		"replication_rpo_missed":  {"hv1 hv2": 1, "hv1 other": 0},
		"replication_failing":     {"hv1 hv2": 1, "hv1 other": 0},
		"replication_jobs":        {"hv1 hv2": 2, "hv1 other": 1},
		"certificates_soonest_expiry_timestamp_seconds": {
			"agent": float64(noon.Add(-2 * time.Hour).Unix()), "principal": float64(noon.Add(5 * time.Hour).Unix()),
		},
		"last_backup_timestamp_seconds": {"": float64(noon.Add(-time.Hour).Unix())},
		"node_heartbeat_age_seconds":    {"hv1": 1},
		"unready":                       {"leader": 1},
	} {
		check(t, all, name, want)
	}
}

func TestWhatOnlyALeaderKnows(t *testing.T) {
	all := measured(t, busy(t), nil).gather(t)
	check(t, all, "leading", map[string]float64{"": 0})
	check(t, all, "ready", map[string]float64{"": 1})
	for _, name := range []string{"agent_sessions", "node_heartbeat_age_seconds", "unready"} {
		if f := all["debvisor_"+name]; f != nil {
			t.Errorf("a replica that does not lead tells %v", f)
		}
	}
}

func TestCallsAreCounted(t *testing.T) {
	r := measured(t, cluster.Empty(), nil)
	for range 3 {
		r.calls.Authenticated(api.CertificateCredential, "")
		r.calls.Ended(known, false, false, errdefs.Internal, 2*time.Millisecond)
	}
	r.calls.Ended(known, false, true, errdefs.NotFound, time.Millisecond)
	r.calls.Limited(true)
	// Whatever callers make up is one series.
	for i := range 1000 {
		r.calls.Ended(fmt.Sprintf("/made.up/Method%d", i), false, true, errdefs.Unimplemented, 0)
	}
	r.calls.StreamBegins(known)
	all := r.gather(t)
	check(t, all, "rpc_calls_total", map[string]float64{"OK " + known: 3, "NOT_FOUND " + known: 1, "UNIMPLEMENTED unknown": 1000})
	check(t, all, "rpc_duration_seconds", map[string]float64{known: 4, "unknown": 1000})
	check(t, all, "rpc_streams", map[string]float64{known: 1})
	check(t, all, "authentications_total", map[string]float64{"certificate": 3, "api_key": 0, "jwt": 0})
	check(t, all, "rate_limited_total", map[string]float64{"principal": 1, "address": 0})
	r.calls.Ended(known, true, false, errdefs.Internal, time.Hour)
	if f := r.gather(t)["debvisor_rpc_streams"]; f != nil {
		t.Errorf("a stream that has ended is open: %v", f)
	}
}

func TestEndings(t *testing.T) {
	r := measured(t, cluster.Empty(), nil)
	r.endings.Take(cluster.Endings{Operations: []*storev1.Operation{
		migrated(task.OpSucceeded), migrated(task.OpFailed), migrated(task.OpFailed),
		{Kind: "a name\nthat is none", State: task.OpSucceeded},
		{Kind: "replication.run", State: task.OpFailed, Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{Bytes: 5}}},
	}})
	all := r.gather(t)
	check(t, all, "operations_ended_total", map[string]float64{
		"migrate succeeded": 1, "migrate failed": 2, "other succeeded": 1, "replication.run failed": 1,
	})
	check(t, all, "migration_bytes", map[string]float64{"": 1})
	check(t, all, "migration_downtime_seconds", map[string]float64{"": 1})
	check(t, all, "replication_sent_bytes_total", map[string]float64{"": 5})
	if sum := all["debvisor_migration_downtime_seconds"].GetMetric()[0].GetHistogram().GetSampleSum(); sum != 0.04 {
		t.Errorf("a downtime of %v s", sum)
	}
}

// BenchmarkCall is what one call costs here, in the way of all of them.
func BenchmarkCall(b *testing.B) {
	c := NewCalls([]string{known})
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			c.Authenticated(api.CertificateCredential, "")
			c.Authorized("")
			c.Ended(known, false, false, errdefs.Internal, time.Millisecond)
		}
	})
}
