package cluster_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// apply makes changes written in a small notation, all in one draft:
//
//	vm u1 web n1          VM u1, named web, placed on n1
//	vm u1 web n1 acme     the same, of the tenant acme
//	op op-1 running       operation op-1
//	op op-1 running acme  the same, of the tenant acme
//	task t1 op-1 n1 running
//	- vm u1               the record is gone
func apply(t *testing.T, from *cluster.Snapshot, changes string) *cluster.Snapshot {
	t.Helper()
	d := from.Draft()
	revision := from.Revision
	for line := range strings.SplitSeq(changes, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		revision++
		switch f[0] {
		case "-":
			drop(d, f[1], f[2])
		case "vm":
			d.VMs.Put(f[1], &storev1.VM{Uuid: f[1], Name: f[2], Node: f[3], Policy: policyOf(t, f[4:])}, revision)
		case "op":
			d.Operations.Put(f[1], &storev1.Operation{Id: f[1], State: opState(f[2]), Tenant: strings.Join(f[3:], "")}, revision)
		case "task":
			d.Tasks.Put(f[1], &storev1.Task{Id: f[1], OperationId: f[2], Node: f[3], State: task.Recorded(taskState(f[4]))}, revision)
		case "node":
			d.Nodes.Put(f[1], &storev1.Node{Id: f[1]}, revision)
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	return d.Snapshot(revision)
}

// policyOf is the policy of a VM of a tenant; nothing for none.
func policyOf(t *testing.T, tenant []string) []byte {
	t.Helper()
	if len(tenant) == 0 {
		return nil
	}
	b, err := proto.Marshal(&debvisorv1.VMPolicy{Tenant: tenant[0], Priority: 7})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func drop(d *cluster.Draft, kind, id string) {
	switch kind {
	case "vm":
		d.VMs.Delete(id)
	case "op":
		d.Operations.Delete(id)
	case "task":
		d.Tasks.Delete(id)
	case "node":
		d.Nodes.Delete(id)
	}
}

func opState(s string) task.OpState {
	return map[string]task.OpState{"pending": task.OpPending, "running": task.OpRunning, "succeeded": task.OpSucceeded}[s]
}

func taskState(s string) task.State {
	return map[string]task.State{"assigned": task.Assigned, "running": task.Running, "failed": task.Failed}[s]
}

// derived is what a snapshot's indexes say, in words.
func derived(s *cluster.Snapshot) map[string]string {
	out := map[string]string{}
	say := func(key string, ids []string) {
		if len(ids) > 0 {
			out[key] = strings.Join(ids, " ")
		}
	}
	for _, name := range []string{"web", "db", "u1"} {
		say("named "+name, s.FindVM(name))
	}
	for _, n := range []string{"n1", "n2"} {
		say("vms on "+n, ids(s.VMsOn(n)))
		say("tasks on "+n, ids(s.TasksOn(n)))
		say("open on "+n, ids(s.OpenTasksOn(n)))
	}
	for _, op := range []string{"op-1", "op-2"} {
		say("tasks of "+op, ids(s.TasksOf(op)))
	}
	say("active", ids(s.ActiveOperations()))
	for _, tenant := range []string{"acme", "globex"} {
		scope := s.Within(tenant)
		say(tenant+"'s VMs", ids(slices.Collect(scope.VMs())))
		say(tenant+"'s web", scope.FindVM("web"))
		say(tenant+"'s on n1", ids(scope.VMsOn("n1")))
		say(tenant+"'s operations", ids(slices.Collect(scope.Operations())))
	}
	return out
}

func ids[T any](entries []cluster.Entry[T]) []string {
	list := make([]string, len(entries))
	for i, e := range entries {
		switch v := any(e.Value).(type) {
		case *storev1.VM:
			list[i] = v.GetUuid()
		case *storev1.Task:
			list[i] = v.GetId()
		case *storev1.Operation:
			list[i] = v.GetId()
		}
	}
	return list
}

func TestIndexes(t *testing.T) {
	first := `
		vm u2 web n1
		vm u1 web n2
		vm u3 u1 n1
		op op-2 running
		op op-1 pending
		op op-0 succeeded
		task t2 op-1 n1 running
		task t1 op-1 n2 failed
		task t3 op-2 n1 assigned`
	cases := []struct {
		name, then string
		want       map[string]string
	}{
		{"as listed", "", map[string]string{
			"named web": "u1 u2", "named u1": "u1", "vms on n1": "u2 u3", "vms on n2": "u1",
			"tasks of op-1": "t1 t2", "tasks of op-2": "t3", "tasks on n1": "t2 t3", "tasks on n2": "t1",
			"open on n1": "t2 t3", "active": "op-1 op-2",
		}},
		{"a VM moves and is renamed", "vm u2 db n2", map[string]string{
			"named web": "u1", "named db": "u2", "named u1": "u1", "vms on n1": "u3", "vms on n2": "u1 u2",
			"tasks of op-1": "t1 t2", "tasks of op-2": "t3", "tasks on n1": "t2 t3", "tasks on n2": "t1",
			"open on n1": "t2 t3", "active": "op-1 op-2",
		}},
		{"things end", "op op-1 succeeded \n task t2 op-1 n1 failed \n op op-2 running", map[string]string{
			"named web": "u1 u2", "named u1": "u1", "vms on n1": "u2 u3", "vms on n2": "u1",
			"tasks of op-1": "t1 t2", "tasks of op-2": "t3", "tasks on n1": "t2 t3", "tasks on n2": "t1",
			"open on n1": "t3", "active": "op-2",
		}},
		{"things go", "- vm u1 \n - vm u2 \n - op op-2 \n - task t1 \n - task t2 \n - task t9 \n - node n9", map[string]string{
			"named u1": "u3", "vms on n1": "u3", "tasks of op-2": "t3", "tasks on n1": "t3", "open on n1": "t3", "active": "op-1",
		}},
		{"there and gone again", "vm u9 db n1 \n - vm u9 \n op op-9 running \n - op op-9", map[string]string{
			"named web": "u1 u2", "named u1": "u1", "vms on n1": "u2 u3", "vms on n2": "u1",
			"tasks of op-1": "t1 t2", "tasks of op-2": "t3", "tasks on n1": "t2 t3", "tasks on n2": "t1",
			"open on n1": "t2 t3", "active": "op-1 op-2",
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			base := apply(t, cluster.Empty(), first)
			before := derived(base)
			got := derived(apply(t, base, c.then))
			if !maps.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			if after := derived(base); !maps.Equal(before, after) {
				t.Errorf("the older snapshot changed from %v to %v", before, after)
			}
		})
	}
}

// A walk through random changes must say the same as a snapshot made at once,
// and leave every snapshot on the way as it was.
func TestEveryWayToASnapshotGivesTheSame(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	one := func() string {
		id := random.IntN(6)
		tenant := []string{"", "", " acme", " globex"}[random.IntN(4)]
		switch random.IntN(6) {
		case 0:
			return fmt.Sprintf("vm u%d %s n%d%s", id, []string{"web", "db"}[random.IntN(2)], 1+random.IntN(2), tenant)
		case 1:
			return fmt.Sprintf("op op-%d %s%s", id, []string{"pending", "running", "succeeded"}[random.IntN(3)], tenant)
		case 2, 3:
			return fmt.Sprintf("task t%d op-%d n%d %s", id, 1+random.IntN(2), 1+random.IntN(2), []string{"assigned", "running", "failed"}[random.IntN(3)])
		default:
			return fmt.Sprintf("- %s", []string{"vm u", "op op-", "task t"}[random.IntN(3)]) + fmt.Sprint(id)
		}
	}
	type step struct {
		snapshot *cluster.Snapshot
		said     map[string]string
	}
	var history []string
	var steps []step
	now := cluster.Empty()
	for range 300 {
		batch := make([]string, 1+random.IntN(4))
		for i := range batch {
			batch[i] = one()
		}
		history = append(history, batch...)
		now = apply(t, now, strings.Join(batch, "\n"))
		steps = append(steps, step{now, derived(now)})
	}
	atOnce := apply(t, cluster.Empty(), strings.Join(history, "\n"))
	if got, want := derived(now), derived(atOnce); !maps.Equal(got, want) || !reflect.DeepEqual(now.Tasks, atOnce.Tasks) {
		t.Errorf("step by step %v\nat once      %v", got, want)
	}
	for i, s := range steps {
		if got := derived(s.snapshot); !maps.Equal(got, s.said) {
			t.Fatalf("snapshot %d changed from %v to %v", i, s.said, got)
		}
	}
}

func TestOnlyWhatChangesIsCopied(t *testing.T) {
	base := apply(t, cluster.Empty(), "vm u1 web n1 \n node n1 \n op op-1 running \n task t1 op-1 n1 running")
	next := apply(t, base, "task t2 op-1 n1 assigned \n - vm u7")
	same := func(a, b any) bool { return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() }
	if !same(base.VMs, next.VMs) || !same(base.Nodes, next.Nodes) || !same(base.Operations, next.Operations) {
		t.Error("an untouched collection was copied")
	}
	if same(base.Tasks, next.Tasks) || len(base.Tasks) != 1 || len(next.Tasks) != 2 {
		t.Error("the touched collection was not copied")
	}
	if next.Revision != base.Revision+2 || next.Tasks["t2"].ModRevision != base.Revision+1 {
		t.Errorf("revision %d, the task's %d", next.Revision, next.Tasks["t2"].ModRevision)
	}
}

func TestTheOldestCandidateLeads(t *testing.T) {
	d := cluster.Empty().Draft()
	d.SetEpoch(2)
	d.PutCandidate("b", &storev1.Leader{Name: "r2", CallersAddress: "c", AgentsAddress: "a"}, 20)
	d.PutCandidate("a", &storev1.Leader{Name: "r1"}, 30)
	both := d.Snapshot(40)
	want := cluster.Leader{Name: "r2", CallersAddress: "c", AgentsAddress: "a", Term: task.Term{Epoch: 2, Revision: 20}}
	if both.Leader == nil || *both.Leader != want {
		t.Fatalf("got %+v, want %+v", both.Leader, want)
	}
	d = both.Draft()
	d.DeleteCandidate("b")
	if next := d.Snapshot(41); next.Leader == nil || next.Leader.Name != "r1" || !want.Term.Less(next.Leader.Term) {
		t.Errorf("the second does not follow: %+v", next.Leader)
	}
	d = both.Draft()
	d.DeleteCandidate("b")
	d.DeleteCandidate("a")
	if none := d.Snapshot(42); none.Leader != nil || both.Leader == nil {
		t.Errorf("%+v leads without a candidate", none.Leader)
	}
}

func TestFindVM(t *testing.T) {
	s := apply(t, cluster.Empty(), "vm u1 web n1 \n vm u2 web n2")
	found := s.FindVM("web")
	if !slices.Equal(found, []string{"u1", "u2"}) || s.FindVM("none") != nil {
		t.Errorf("got %v", found)
	}
	found[0] = "changed by the caller"
	if s.FindVM("web")[0] != "u1" {
		t.Error("a caller can change the index")
	}
}

func BenchmarkOneTaskAmongTwentyThousand(b *testing.B) {
	d := cluster.Empty().Draft()
	for i := range 20_000 {
		id := fmt.Sprintf("op-%05d/1/migrate-send", i)
		d.Tasks.Put(id, &storev1.Task{Id: id, OperationId: id[:8], Node: fmt.Sprint("n", i%100)}, 1)
	}
	s := d.Snapshot(1)
	for b.Loop() {
		d := s.Draft()
		d.Tasks.Put("op-00001/1/migrate-send", &storev1.Task{OperationId: "op-00001", Node: "n1", State: storev1.TaskState_TASK_STATE_FAILED}, 2)
		s = d.Snapshot(2)
	}
}
