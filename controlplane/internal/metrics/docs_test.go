package metrics

import (
	"context"
	"crypto/x509"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/api"
	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// still is a view that nothing changes.
type still struct{ *cluster.Snapshot }

func (s still) Current() *cluster.Snapshot { return s.Snapshot }
func (s still) Age() (time.Duration, bool) { return time.Second, true }

// leading is what only a leader has.
type leading struct{ nodes map[string]time.Duration }

func (l leading) Sessions() (int, bool)                       { return len(l.nodes), l.nodes != nil }
func (l leading) Silences(time.Time) map[string]time.Duration { return l.nodes }
func (leading) Stats(time.Time) audit.Stats                   { return audit.Stats{Lines: 3, Lag: time.Second} }

// rig is a replica's metrics.
type rig struct {
	registry obs.Registry
	calls    *Calls
	endings  *Endings
	etcd     *Etcd
}

const known = "/debvisor.v1.VMService/ListVMs"

// measured registers all that there is, over a snapshot.
func measured(t *testing.T, s *cluster.Snapshot, nodes map[string]time.Duration, unready ...string) *rig {
	t.Helper()
	r := &rig{registry: obs.NewRegistry("test"), calls: NewCalls([]string{known}), endings: NewEndings(), etcd: NewEtcd()}
	lead := leading{nodes}
	r.registry.MustRegister(r.calls, r.endings, r.etcd, &Cluster{View: still{s}, Now: func() time.Time { return noon }}, &Replica{
		View: still{s}, Audit: lead, Sessions: lead, Silences: lead, Counted: map[string]func() int{"principals": func() int { return 2 }},
		Certificates: map[string]func() *x509.Certificate{"callers": func() *x509.Certificate { return &x509.Certificate{NotAfter: noon} }},
		Unready:      func() []string { return unready },
		Reloads:      func() (int64, int64, bool) { return 2, 1, true },
	})
	return r
}

func (r *rig) gather(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*dto.MetricFamily{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), obs.Namespace) {
			all[f.GetName()] = f
		}
	}
	return all
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(-d)) }

// busy is a snapshot in which there is some of everything.
func busy(t *testing.T) *cluster.Snapshot {
	t.Helper()
	d := cluster.Empty().Draft()
	for _, node := range []string{"hv1", "hv2"} {
		d.Nodes.Put(node, &storev1.Node{Id: node}, 1)
	}
	d.Statuses.Put("hv1", &storev1.NodeStatus{Id: "hv1", Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE}, 1)
	d.Statuses.Put("hv2", &storev1.NodeStatus{Id: "hv2", Liveness: storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE, LibvirtDown: true}, 1)
	d.VMs.Put("u1", &storev1.VM{Uuid: "u1", ConflictNodes: []string{"hv1", "hv2"}}, 1)
	d.LostCopies.Put("u1/hv2", &storev1.LostCopy{State: storev1.LostCopyState_LOST_COPY_STATE_AWAITED}, 1)
	d.Operations.Put("o1", &storev1.Operation{Id: "o1", Kind: "migrate", State: task.OpRunning, CreatedAt: ago(time.Minute)}, 1)
	d.Operations.Put("o2", &storev1.Operation{Id: "o2", Kind: "migrate", State: task.OpPending, CreatedAt: ago(time.Hour)}, 1)
	d.Tasks.Put("t1", newTask(t, "t1", task.Running), 1)
	d.Replications.Put("web", &storev1.ReplicationJob{
		Id: "web", Source: "hv1", Target: "hv2", CreatedAt: ago(time.Hour), CursorCreated: ago(5 * time.Minute), LagBytes: 7,
	}, 1)
	d.Replications.Put("db", &storev1.ReplicationJob{
		Id: "db", Source: "hv1", Target: "hv2", CreatedAt: ago(10 * time.Minute), LagBytes: 5, LastErrorCode: "X", RpoMissedSince: ago(time.Second),
	}, 1)
	d.Replications.Put("old", &storev1.ReplicationJob{Id: "old", Source: "hv1", Target: "gone", CreatedAt: ago(time.Hour)}, 1)
	for serial, c := range map[string]*storev1.Certificate{
		"1": {Holder: agent, Name: "hv1", ExpiresAt: ago(-time.Hour)},
		"2": {Holder: agent, Name: "hv1", ExpiresAt: ago(-48 * time.Hour)}, // the renewed one counts
		"3": {Holder: agent, Name: "hv2", ExpiresAt: ago(2 * time.Hour)},   // nobody renewed it
		"4": {Holder: agent, Name: "gone", ExpiresAt: ago(-time.Minute)},
		"5": {Holder: principal, Name: "p", ExpiresAt: ago(-time.Minute)}, // revoked
		"6": {Holder: principal, Name: "p", ExpiresAt: ago(time.Minute)},
		"7": {Holder: principal, Name: "q", ExpiresAt: ago(-5 * time.Hour)},
	} {
		d.Certificates.Put(serial, c, 1)
	}
	d.Revoked.Put("5", "", 1)
	d.PutCandidate("k", &storev1.Leader{Name: "r1"}, 9)
	d.SetLastBackup(&storev1.BackupNote{At: ago(time.Hour)}, 1)
	return d.Snapshot(12)
}

const (
	agent     = uint32(debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT)
	principal = uint32(debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_PRINCIPAL)
)

func newTask(t *testing.T, id string, state task.State) *storev1.Task {
	t.Helper()
	return &storev1.Task{
		Id: id, Node: "hv1", State: task.Recorded(state),
		Spec: encoded(t, &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_MigrateSend{MigrateSend: &agentv1.MigrateSend{}}}),
	}
}

// everything is a replica of which every metric tells something.
func everything(t *testing.T) *rig {
	t.Helper()
	r := measured(t, busy(t), map[string]time.Duration{"hv1": time.Second, "gone": time.Hour}, "leader")
	r.calls.Authenticated(api.KeyCredential, "")
	r.calls.Authenticated(api.BearerCredential, "KEY_UNKNOWN")
	r.calls.Authorized("PERMISSION_DENIED")
	r.calls.StreamBegins(known)
	r.calls.Ended(known, false, false, errdefs.Internal, time.Millisecond)
	r.etcd.Request("Txn", time.Millisecond, true)
	r.etcd.look(t.Context(), func(context.Context) (store.MemberState, error) {
		return store.MemberState{Size: 5, Quota: 9}, nil
	}, hclog.NewNullLogger())
	r.endings.Take(cluster.Endings{
		Operations: []*storev1.Operation{migrated(task.OpSucceeded)}, Tasks: []*storev1.Task{newTask(t, "t2", task.Succeeded)},
	})
	return r
}

func migrated(state task.OpState) *storev1.Operation {
	return &storev1.Operation{
		Kind: "migrate", State: state, CreatedAt: ago(time.Minute), EndedAt: ago(0),
		Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{Bytes: 1 << 30, DowntimeMs: 40, DurationMs: 9000, WasRunning: true}},
	}
}

const docs = "../../../docs/"

// table is what docs/metrics.md has to say of the metrics.
func table(t *testing.T) string {
	t.Helper()
	all := everything(t).gather(t)
	always := measured(t, cluster.Empty().Draft().Snapshot(1), nil).gather(t)
	var b strings.Builder
	b.WriteString("| metric | type | labels | there | meaning |\n| --- | --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f, when := all[name], "always"
		if always[name] == nil {
			when = "when there is any"
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), strings.Join(labels, " "), when, f.GetHelp())
	}
	return b.String()
}

// TestDocumented compares docs/metrics.md with the metrics that there are.
func TestDocumented(t *testing.T) {
	const begin, end = "<!-- metrics: written by go test ./controlplane/internal/metrics -run TestDocumented -update -->\n", "<!-- end -->\n"
	raw, err := os.ReadFile(docs + "metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), begin)
	was, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatal("docs/metrics.md has no table")
	}
	is := table(t)
	if *update {
		if err := os.WriteFile(docs+"metrics.md", []byte(head+begin+is+end+tail), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if was != is {
		t.Errorf("docs/metrics.md is not of today: run the command that it names; expected\n%s", is)
	}
}

var ours = regexp.MustCompile(`\bdebvisor_[a-z0-9_]+`)

// TestNamesInFiles finds names of metrics that are none in the rules, their tests
// and the dashboard.
func TestNamesInFiles(t *testing.T) {
	all := everything(t).gather(t)
	for file, atLeast := range map[string]int{
		"prometheus/debvisor.rules.yml": 25, "prometheus/debvisor.rules.test.yml": 25, "prometheus/debvisor.rules.days.test.yml": 2, "grafana/debvisor.json": 30,
	} {
		raw, err := os.ReadFile(docs + file)
		if err != nil {
			t.Error(err)
			continue
		}
		found := map[string]bool{}
		for _, name := range ours.FindAllString(string(raw), -1) {
			found[name] = true
			if f := family(all, name); f == nil {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
		if len(found) < atLeast {
			t.Errorf("%s names %d metrics only", file, len(found))
		}
	}
}

// family is that of a name, which may be of a part of a histogram.
func family(all map[string]*dto.MetricFamily, name string) *dto.MetricFamily {
	if f := all[name]; f != nil {
		return f
	}
	for _, part := range []string{"_bucket", "_sum", "_count"} {
		if whole, ok := strings.CutSuffix(name, part); ok && all[whole].GetType() == dto.MetricType_HISTOGRAM {
			return all[whole]
		}
	}
	return nil
}

// TestLint checks names and units by Prometheus's own rules.
func TestLint(t *testing.T) {
	problems, err := lint(everything(t).registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, obs.Namespace) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
