package schedule

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// noon is when tests look; their policies were last changed an hour before.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ref reads "node:pool/name", or "pool/name" of node a.
func ref(text string) *debvisorv1.DatasetRef {
	node, path, named := strings.Cut(text, ":")
	if !named {
		node, path = "a", text
	}
	pool, name, _ := strings.Cut(path, "/")
	return &debvisorv1.DatasetRef{
		Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: pool, Name: name, Node: &debvisorv1.NodeRef{NodeId: &debvisorv1.NodeId{Id: node}},
	}
}

func refs(text string) []*debvisorv1.DatasetRef {
	var all []*debvisorv1.DatasetRef
	for one := range strings.FieldsSeq(text) {
		all = append(all, ref(one))
	}
	return all
}

// world makes a cluster of facts, comma-separated:
//
//	NODE has DATASETS…          what it reported; "!" behind one: it is a copy
//	NODE silent                 it reported nothing
//	NODE half                   it did not report all
//	use RESOURCE OPERATION      the operation holds it
//	op ID STATE NODE DATASETS…  an operation that takes snapshots
//	job ID SOURCE DATASET TARGET DATASET FLAGS…   of the policy p, unless they
//	                            say "other"; "deleting", "asis", "red": its tenant
func world(t testing.TB, text string) *cluster.Snapshot {
	t.Helper()
	d := cluster.Empty().Draft()
	inventory := map[string]*agentv1.ZfsInventory{}
	node := func(id string) *agentv1.ZfsInventory {
		d.Nodes.Put(id, &storev1.Node{Id: id}, 2)
		if inventory[id] == nil {
			inventory[id] = &agentv1.ZfsInventory{}
		}
		return inventory[id]
	}
	for fact := range strings.SplitSeq(text, ",") {
		w := strings.Fields(fact)
		switch {
		case len(w) == 0:
		case w[0] == "use":
			d.InUse.Put(w[1], w[2], 3)
		case w[0] == "op":
			state := storev1.OperationState(storev1.OperationState_value["OPERATION_STATE_"+strings.ToUpper(w[2])])
			d.Operations.Put(w[1], &storev1.Operation{
				Id: w[1], Kind: TakeKind, State: state, ErrorCode: map[bool]string{true: "POOL_FULL"}[state == task.OpFailed], Tenant: "red",
				Detail: &storev1.Operation_TakeSnapshots{TakeSnapshots: &storev1.TakeSnapshots{Node: w[3], Datasets: w[4:]}},
			}, 4)
		case w[0] == "job":
			job := &storev1.ReplicationJob{
				Id: w[1], Source: w[2], Dataset: w[3], Target: w[4], TargetDataset: w[5], Policy: "p", Deleting: slices.Contains(w, "deleting"),
			}
			if slices.Contains(w, "other") {
				job.Policy = "other"
			}
			if slices.Contains(w, "red") {
				job.Tenant = "red"
			}
			if slices.Contains(w, "asis") {
				job.Options = encode(t, &debvisorv1.ReplicationOptions{NoSnapshot: true})
			}
			d.Replications.Put(w[1], job, 5)
		case w[1] == "has":
			for _, name := range w[2:] {
				one := &agentv1.ZfsDataset{Name: strings.TrimSuffix(name, "!"), Guid: 77}
				if strings.HasSuffix(name, "!") {
					one.ReplicationJob = "j0"
				}
				node(w[0]).Datasets = append(node(w[0]).Datasets, one)
			}
		case w[1] == "silent":
			node(w[0])
			inventory[w[0]] = nil
		case w[1] == "half":
			node(w[0]).Truncated = true
		default:
			t.Fatalf("what is %q?", fact)
		}
	}
	for id, i := range inventory {
		if i != nil {
			d.ZFS.Put(id, &storev1.NodeZFS{Node: id, Inventory: encode(t, i)}, 2)
		}
	}
	return d.Snapshot(9)
}

// viewOf is that world at a time, in which tank/red… is the tenant red's.
func viewOf(s *cluster.Snapshot, now time.Time) *view {
	return &view{snapshot: s, now: now, inventories: newInventories(s), owner: func(_, _, name string) string {
		if strings.HasPrefix(name, "red") {
			return "red"
		}
		return ""
	}}
}

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(-d)) }

func retentionRecord(t testing.TB, spec *debvisorv1.RetentionPolicySpec, run *storev1.StoragePolicyRun) *storev1.RetentionPolicy {
	spec.Name, spec.Rules = "p", &debvisorv1.RetentionPolicy{KeepLast: 3}
	return &storev1.RetentionPolicy{Name: "p", Spec: encode(t, spec), ChangedAt: ago(time.Hour), ChangedBy: "alice", Run: run}
}

func replicationRecord(t testing.TB, run *storev1.StoragePolicyRun) *storev1.ReplicationPolicy {
	spec := &debvisorv1.ReplicationPolicySpec{Name: "p", Schedule: "*/10 * * * *"}
	return &storev1.ReplicationPolicy{Name: "p", Spec: encode(t, spec), ChangedAt: ago(time.Hour), ChangedBy: "alice", Run: run}
}

// told writes what a step begins, one operation a line.
func told(s *step) []string {
	var lines []string
	if s == nil {
		return lines
	}
	for _, op := range s.ops {
		line := op.GetKind()
		switch {
		case op.GetTakeSnapshots() != nil:
			line += fmt.Sprintf(" %s %v %s", op.GetTakeSnapshots().GetNode(), op.GetTakeSnapshots().GetDatasets(), op.GetTakeSnapshots().GetLabel())
		case op.GetRemoveSnapshots() != nil:
			line += fmt.Sprintf(" %s %v", op.GetRemoveSnapshots().GetNode(), op.GetRemoveSnapshots().GetDatasets())
			if op.GetRemoveSnapshots().GetRecursive() {
				line += " recursive"
			}
		case op.GetReplicate() != nil:
			r := op.GetReplicate()
			line += fmt.Sprintf(" %s %s to %s %s", r.GetSource(), r.GetDataset(), r.GetTarget(), r.GetTargetDataset())
			if r.GetSnapshot() == "" {
				line += " as it is"
			}
		}
		if op.GetTenant() != "" {
			line += " of tenant " + op.GetTenant()
		}
		lines = append(lines, line)
	}
	if s.run.GetLastSkip() != "" {
		lines = append(lines, s.run.GetLastSkip())
	}
	return lines
}

func TestWhatARetentionPolicyBegins(t *testing.T) {
	const at = "2026-11-22T12:00:00Z: "
	long := "tank/" + strings.Repeat("x", 240)
	for _, c := range []struct {
		name, world string
		spec        *debvisorv1.RetentionPolicySpec
		want        []string
	}{
		{
			"pruning, one operation a node and tenant", "a has tank/x tank/y tank/red1 tank/red2,b has pool/z",
			&debvisorv1.RetentionPolicySpec{Datasets: refs("tank/red2 tank/y a:tank/x tank/red1 b:pool/z")},
			[]string{"snapshot.prune a [tank/red1 tank/red2] of tenant red", "snapshot.prune a [tank/x tank/y]", "snapshot.prune b [pool/z]"},
		},
		{
			"with what is below, which may be another's", "a has tank/red tank/red/1", &debvisorv1.RetentionPolicySpec{Datasets: refs("tank/red"), Recursive: true},
			[]string{"snapshot.prune a [tank/red] recursive"},
		},
		{
			"snapshots first, one operation a pool; of copies none, which are pruned at once", "a has tank/x tank/x/1 tank/x/2! tank/xy pool/z",
			&debvisorv1.RetentionPolicySpec{Datasets: refs("tank/x pool/z"), Recursive: true, SnapshotLabel: "hourly"},
			[]string{"snapshot.create a [pool/z] hourly", "snapshot.create a [tank/x tank/x/1] hourly", "snapshot.prune a [tank/x/2]"},
		},
		{
			"what is in use is left out", "a has tank/x tank/y,use zfs/a/tank/x op-7", &debvisorv1.RetentionPolicySpec{Datasets: refs("tank/x tank/y")},
			[]string{"snapshot.prune a [tank/y]", at + "tank/x of a is in use by operation op-7"},
		},
		{
			"a copy that is named", "a has tank/x,b has tank/x!", &debvisorv1.RetentionPolicySpec{Datasets: refs("b:tank/x"), SnapshotLabel: "l"},
			[]string{"snapshot.prune b [tank/x]"},
		},
		{
			"what is nowhere, or no dataset", "a has tank/x",
			&debvisorv1.RetentionPolicySpec{Datasets: refs("tank/x tank/no d:tank/x tank/..")},
			[]string{"snapshot.prune a [tank/x]", at + "tank/.. of a: " +
				`dataset.name: ".." is not accepted; expected parts of letters, digits and "-", "_", ".", ":", none of them empty, "." or ".." or with a "-" first` +
				"; tank/no of a: there is no such dataset; tank/x of d: there is no such node"},
		},
		{
			"a node that has not told, or not all, is believed to have it", "c silent,e half", &debvisorv1.RetentionPolicySpec{Datasets: refs("c:tank/x e:tank/x")},
			[]string{"snapshot.prune c [tank/x]", "snapshot.prune e [tank/x]"},
		},
		{
			"names too long for snapshots' names", "a has tank/x " + long, &debvisorv1.RetentionPolicySpec{Datasets: refs("tank/x " + long), SnapshotLabel: "l"},
			[]string{"snapshot.create a [tank/x] l", at + long + " of a: its name is too long for snapshots of it"},
		},
		{"twice is once", "a has tank/x", &debvisorv1.RetentionPolicySpec{Datasets: refs("tank/x a:tank/x")}, []string{"snapshot.prune a [tank/x]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Schedule = "every 1h"
			s, _ := decide(viewOf(world(t, c.world), noon), retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{
				Value: retentionRecord(t, c.spec, &storev1.StoragePolicyRun{LastDue: ago(time.Hour), LastOperations: []string{"op-old"}}), ModRevision: 8,
			}))
			if diff := cmp.Diff(c.want, told(s)); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			check(t, s)
		})
	}
}

// check is what holds of every step that begins a run.
func check(t *testing.T, s *step) {
	t.Helper()
	fired, skipped := uint64(0), uint64(0)
	if len(s.ops) > 0 {
		fired = 1
	}
	if s.run.GetLastSkip() != "" {
		skipped = 1
	}
	if !s.run.GetLastDue().AsTime().Equal(noon) || s.run.GetFired() != fired || s.run.GetSkipped() != skipped || len(s.run.GetLastOperations()) != len(s.ops) {
		t.Errorf("the record says %v", s.run)
	}
	names := map[string]bool{}
	for _, op := range s.ops {
		if op.GetState() != task.OpPending || op.GetPrincipal() != "alice" || len(op.GetResources()) == 0 || names[op.GetId()] {
			t.Errorf("it begins %v", op)
		}
		names[op.GetId()] = true
		if take := op.GetTakeSnapshots(); take != nil && (!cluster.OurSnapshotName(take.GetName()) || !slices.Contains(s.run.GetAwaited(), op.GetId())) {
			t.Errorf("it takes %s; awaited are %v", take.GetName(), s.run.GetAwaited())
		}
		if r := op.GetReplicate(); r.GetSnapshot() != "" && !cluster.OurSnapshotName(r.GetSnapshot()) {
			t.Errorf("it takes %s", r.GetSnapshot())
		}
	}
}

func TestWhatAReplicationPolicyBegins(t *testing.T) {
	const at = "2026-11-22T12:00:00Z: "
	for _, c := range []struct {
		name, world string
		want        []string
	}{
		{
			"each of its jobs", "job j2 a tank/x c tank/x,job j1 a tank/red b pool/copies/red red,job j3 b pool/y c tank/y asis,job j4 a tank/z b tank/z other",
			[]string{"replication.run a tank/red to b pool/copies/red of tenant red", "replication.run a tank/x to c tank/x", "replication.run b pool/y to c tank/y as it is"},
		},
		{
			"not one that is at work, or whose copy is in use", "job j1 a tank/x b tank/x,job j2 a tank/x c tank/x,job j3 a tank/y b tank/y,use replication/j1 op-1,use zfs-copy/c/tank/x op-2",
			[]string{"replication.run a tank/y to b tank/y", at + "tank/x of a to b is in use by operation op-1; tank/x of a to c is in use by operation op-2"},
		},
		{"not one that is being deleted", "job j1 a tank/x b tank/x deleting", nil},
		{
			"a copy would part from its source", "a has tank/x!,job j1 a tank/x b tank/x",
			[]string{at + "tank/x of a to b: it is a copy itself, of replication job j0, and would part from its source by snapshots of its own"},
		},
		{"but not as it is", "a has tank/x!,job j1 a tank/x b tank/x asis", []string{"replication.run a tank/x to b tank/x as it is"}},
		{
			"two that have one copy", "job j1 a tank/x b copies/x,job j2 a tank/y b copies/x",
			[]string{"replication.run a tank/x to b copies/x", at + "tank/y of a to b is in use by operation ID"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := decide(viewOf(world(t, c.world), noon), replicationPolicy(cluster.Entry[*storev1.ReplicationPolicy]{
				Value: replicationRecord(t, &storev1.StoragePolicyRun{LastDue: ago(10 * time.Minute)}), ModRevision: 8,
			}))
			got := told(s)
			for _, op := range s.ops {
				got[len(got)-1] = strings.ReplaceAll(got[len(got)-1], op.GetId(), "ID")
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			check(t, s)
		})
	}
}

func TestWhenAPolicyIsDue(t *testing.T) {
	minute := func(n int) *timestamppb.Timestamp { return timestamppb.New(noon.Add(time.Duration(n) * time.Minute)) }
	for _, c := range []struct {
		name      string
		spec      *debvisorv1.RetentionPolicySpec
		run       *storev1.StoragePolicyRun
		changedAt *timestamppb.Timestamp
		begins    bool
		skipped   uint64
		says      string
		next      string // empty: never; "now": once this is written
	}{
		{"for the first time after it was made", &debvisorv1.RetentionPolicySpec{Schedule: "every 10m"}, nil, minute(-5), true, 0, "", "now"},
		{"not before", &debvisorv1.RetentionPolicySpec{Schedule: "every 10m"}, nil, minute(0), false, 0, "", "12:10"},
		{"not for times before it was changed", &debvisorv1.RetentionPolicySpec{Schedule: "every 10m"}, &storev1.StoragePolicyRun{LastDue: minute(-600)}, minute(-5), true, 0, "", "now"},
		{
			"once for all that was missed", &debvisorv1.RetentionPolicySpec{Schedule: "every 10m"}, &storev1.StoragePolicyRun{LastDue: minute(-60)}, minute(-90), true, 5,
			"before 2026-11-22T12:00:00Z it was due 5 times while nobody led", "now",
		},
		{"in its zone", &debvisorv1.RetentionPolicySpec{Schedule: "45 17 * * *", TimeZone: "Asia/Kathmandu"}, nil, minute(-60), true, 0, "", "now"},
		{"not now", &debvisorv1.RetentionPolicySpec{Schedule: "30 12 * * *"}, nil, minute(-60), false, 0, "", "12:30"},
		{"paused", &debvisorv1.RetentionPolicySpec{Schedule: "every 10m", Paused: true}, nil, minute(-60), false, 0, "", ""},
		{"only by request", &debvisorv1.RetentionPolicySpec{}, nil, minute(-60), false, 0, "", ""},
		{"no schedule that can be read", &debvisorv1.RetentionPolicySpec{Schedule: "often"}, nil, minute(-60), false, 0, "it cannot be carried out: schedule", ""},
		{
			"last due in a future that never was", &debvisorv1.RetentionPolicySpec{Schedule: "every 10m"}, &storev1.StoragePolicyRun{LastDue: minute(6000)}, minute(-60), false, 0,
			"a clock is or was wrong", "12:10",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Datasets = refs("tank/x")
			record := retentionRecord(t, c.spec, c.run)
			record.ChangedAt = c.changedAt
			s, next := decide(viewOf(world(t, "a has tank/x"), noon), retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{Value: record, ModRevision: 8}))
			if begins := s != nil && len(s.ops) == 1; begins != c.begins {
				t.Errorf("it begins %v", told(s))
			}
			if s != nil && (s.run.GetSkipped() != c.skipped || !strings.Contains(s.run.GetLastSkip(), c.says) || c.says == "" && s.run.GetLastSkip() != "") {
				t.Errorf("it notes %v", s.run)
			}
			if s == nil && c.says != "" {
				t.Error("it says nothing")
			}
			got := next.Format("15:04")
			switch {
			case s != nil && len(s.ops) > 0 && next.Equal(noon):
				got = "now"
			case next.After(noon.AddDate(100, 0, 0)):
				got = ""
			}
			if got != c.next {
				t.Errorf("it is looked at again at %q, want %q", got, c.next)
			}
			if s == nil || len(s.ops) > 0 {
				return
			}
			// What is told is told once.
			record.Run = s.run
			if s, _ := decide(viewOf(world(t, ""), noon), retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{Value: record, ModRevision: 9})); s != nil {
				t.Errorf("and then %v", s.run)
			}
		})
	}
}

func TestPruningFollowsSnapshots(t *testing.T) {
	const at = "2026-11-22T12:00:00Z: "
	for _, c := range []struct {
		name, world string
		awaited     []string
		want        []string
		left        []string
		paused      bool
	}{
		{"not yet", "op o1 running a tank/x", []string{"o1"}, nil, nil, false},
		{"all of one", "op o1 succeeded a tank/red tank/red2", []string{"o1"}, []string{"snapshot.prune a [tank/red tank/red2] of tenant red"}, nil, false},
		{"while another is at work", "op o1 succeeded a tank/x,op o2 pending b tank/x", []string{"o2", "o1"}, []string{"snapshot.prune a [tank/x] of tenant red"}, []string{"o2"}, false},
		{"not where none was taken", "op o1 failed a tank/x", []string{"o1"}, []string{at + "nothing is pruned of a: operation o1 took no snapshots (POOL_FULL)"}, nil, false},
		{"not where nobody knows", "", []string{"o1"}, []string{at + "nothing is pruned: operation o1, which took snapshots, is no longer in the records"}, nil, false},
		{"not what is in use", "op o1 succeeded a tank/x,use zfs/a/tank/x o3", []string{"o1"}, []string{at + "tank/x of a is in use by operation o3"}, nil, false},
		{"not while it is paused", "op o1 succeeded a tank/x", []string{"o1"}, nil, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := &debvisorv1.RetentionPolicySpec{Datasets: refs("tank/x"), Schedule: "every 1h", SnapshotLabel: "l", Paused: c.paused}
			p := retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{
				Value: retentionRecord(t, spec, &storev1.StoragePolicyRun{LastDue: ago(0), Awaited: c.awaited}), ModRevision: 8,
			})
			s, _ := decide(viewOf(world(t, c.world), noon), p)
			if diff := cmp.Diff(c.want, told(s)); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if s != nil && !slices.Equal(s.run.GetAwaited(), c.left) {
				t.Errorf("then awaited are %v", s.run.GetAwaited())
			}
		})
	}
}

// TestAChangedPolicyPrunesNothingOfItsFormerDatasets: rules that were written for
// others do not fall on what a former version of the policy took snapshots of.
func TestAChangedPolicyPrunesNothingOfItsFormerDatasets(t *testing.T) {
	spec := &debvisorv1.RetentionPolicySpec{Datasets: refs("tank/y"), Schedule: "every 1h", SnapshotLabel: "l"}
	record := retentionRecord(t, spec, &storev1.StoragePolicyRun{LastDue: ago(time.Minute), Awaited: []string{"o1"}})
	record.ChangedAt = ago(0)
	p := retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{Value: record, ModRevision: 8})
	s, _ := decide(viewOf(world(t, "op o1 succeeded a tank/x"), noon), p)
	if s == nil || len(s.ops) > 0 || len(s.run.GetAwaited()) > 0 || !strings.Contains(s.run.GetLastSkip(), "the policy was changed since") {
		t.Errorf("got %v, then %v", told(s), s)
	}
}

// TestALongRunTakesSeveralTransactions: each subject is dealt with once, and no
// transaction is larger than etcd takes.
func TestALongRunTakesSeveralTransactions(t *testing.T) {
	const n = 1000
	text, jobs := "b silent,a has", ""
	var datasets []*debvisorv1.DatasetRef
	for i := range n {
		name := fmt.Sprintf("tank/%04d", i)
		text += " " + name
		jobs += fmt.Sprintf(",job j%d a %s b %s", i, name, name)
		datasets = append(datasets, ref(name))
	}
	snapshot := world(t, text+jobs)
	replication := replicationRecord(t, nil)
	retention := retentionRecord(t, &debvisorv1.RetentionPolicySpec{Schedule: "every 1h", Datasets: datasets}, nil)
	for _, c := range []struct {
		name string
		want int // resources
		now  func(run *storev1.StoragePolicyRun) *policy
	}{
		{"replication", 2 * n, func(run *storev1.StoragePolicyRun) *policy {
			replication.Run = run
			return replicationPolicy(cluster.Entry[*storev1.ReplicationPolicy]{Value: replication, ModRevision: 8})
		}},
		{"retention", n, func(run *storev1.StoragePolicyRun) *policy {
			retention.Run = run
			return retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{Value: retention, ModRevision: 8})
		}},
	} {
		begun, steps := map[string]bool{}, 0
		run := &storev1.StoragePolicyRun{LastDue: ago(10 * time.Minute)}
		for ; ; steps++ {
			s, _ := decide(viewOf(snapshot, noon.Add(time.Duration(steps)*time.Second)), c.now(run))
			if s == nil {
				break
			}
			if len(s.change.Puts) > store.MaxChangeOps || len(s.change.Require) > store.MaxChangeOps {
				t.Errorf("%s: a transaction of %d puts, %d conditions", c.name, len(s.change.Puts), len(s.change.Require))
			}
			for _, op := range s.ops {
				for _, r := range op.GetResources() {
					if begun[r] {
						t.Errorf("%s: %s twice", c.name, r)
					}
					begun[r] = true
				}
				if datasets := len(op.GetRemoveSnapshots().GetDatasets()); datasets > mostDatasets {
					t.Errorf("%s: an operation on %d datasets", c.name, datasets)
				}
			}
			run = s.run
		}
		if len(begun) != c.want || steps < 3 || run.GetFired() != 1 || run.GetReached() != "" || run.GetSkipped() != 0 || len(run.GetLastOperations()) > mostNamed {
			t.Errorf("%s: %d of %d in %d steps; it fired %d times, skipped %d (%s), reached %q", c.name, len(begun), c.want, steps, run.GetFired(), run.GetSkipped(), run.GetLastSkip(), run.GetReached())
		}
	}
}
