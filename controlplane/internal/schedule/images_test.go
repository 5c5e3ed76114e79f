package schedule

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// cephWorld is node a with tank/x and the Ceph cluster f, whose pool is vms. VM "web"
// runs on it with two images and tank/x as its disks, "idle" is shut off and has one.
func cephWorld(t *testing.T, change func(d *cluster.Draft)) *cluster.Snapshot {
	t.Helper()
	d := world(t, "a has tank/x tank/y").Draft()
	d.Ceph.Put("a", &storev1.NodeCeph{Node: "a", Inventory: encode(t, &agentv1.CephInventory{Fsid: "f", Pools: []*agentv1.CephPool{{Name: "vms"}}})}, 2)
	vm := func(id string, state debvisorv1.VMState, disks ...string) {
		domain := &agentv1.Domain{State: state}
		for _, disk := range disks {
			one := &debvisorv1.VMDisk{Type: "network", StorageId: "rbd:vms", Source: disk}
			if strings.HasPrefix(disk, "tank") {
				one = &debvisorv1.VMDisk{ZfsDataset: disk}
			}
			domain.Disks = append(domain.Disks, one)
		}
		d.VMs.Put(id, &storev1.VM{Uuid: id, Name: id, Node: "a", Domain: encode(t, domain)}, 2)
	}
	vm("web", debvisorv1.VMState_VM_STATE_RUNNING, "vms/w1", "vms/ns/w2", "tank/x")
	vm("idle", debvisorv1.VMState_VM_STATE_SHUTOFF, "vms/idle")
	if change != nil {
		change(d)
	}
	return d.Snapshot(9)
}

func imageRefs(names ...string) []*debvisorv1.DatasetRef {
	var all []*debvisorv1.DatasetRef
	for _, name := range names {
		all = append(all, &debvisorv1.DatasetRef{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: "vms", Name: name})
	}
	return all
}

// due gives the operations that a policy begins that is due, in words.
func due(t *testing.T, s *cluster.Snapshot, spec *debvisorv1.RetentionPolicySpec) (*step, string) {
	t.Helper()
	spec.Schedule, spec.Rules = "every 10m", &debvisorv1.RetentionPolicy{KeepLast: 1}
	record := retentionRecord(t, spec, &storev1.StoragePolicyRun{LastDue: ago(10 * 60e9)})
	st, _ := decide(viewOf(s, noon), retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{Value: record, ModRevision: 8}))
	if st == nil {
		t.Fatal("nothing is begun")
	}
	seen := map[string]bool{}
	var words []string
	for _, op := range st.ops {
		take, r := op.GetTakeSnapshots(), op.GetRemoveSnapshots()
		names := slices.Concat(take.GetDatasets(), r.GetDatasets())
		for _, b := range slices.Concat(take.GetImages(), r.GetImages()) {
			id := &agentv1.RbdImageID{}
			if err := proto.Unmarshal(b, id); err != nil {
				t.Fatal(err)
			}
			names = append(names, cluster.RBDPath(id))
		}
		slices.Sort(names)
		text := op.GetKind() + " " + strings.Join(names, "+")
		if take.GetVmName() != "" {
			text += " of " + take.GetVmName()
		}
		words = append(words, text)
		for _, resource := range op.GetResources() {
			if seen[resource] {
				t.Errorf("%s is taken twice in one transaction", resource)
			}
			seen[resource] = true
		}
	}
	slices.Sort(words)
	return st, strings.Join(words, ", ")
}

func TestPoliciesOnImages(t *testing.T) {
	prefer, demand := debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION, debvisorv1.Consistency_CONSISTENCY_APPLICATION
	mixed := append(imageRefs("w1", "ns/w2", "idle"), refs("tank/x tank/y")...)
	for _, c := range []struct {
		what string
		spec *debvisorv1.RetentionPolicySpec
		want string
		skip string
	}{
		{"only pruned", &debvisorv1.RetentionPolicySpec{Datasets: imageRefs("w1", "ns/w2")}, "snapshot.prune vms/ns/w2, snapshot.prune vms/w1", ""},
		{"each alone", &debvisorv1.RetentionPolicySpec{Datasets: imageRefs("w1", "ns/w2"), SnapshotLabel: "auto"}, "snapshot.create vms/ns/w2, snapshot.create vms/w1", ""},
		{
			"a guest's together", &debvisorv1.RetentionPolicySpec{Datasets: imageRefs("w1", "ns/w2", "idle", "none"), SnapshotLabel: "auto", Consistency: demand},
			"snapshot.create vms/idle, snapshot.create vms/none, snapshot.create vms/ns/w2+vms/w1 of web", "",
		},
		{
			"of two storages, if it can be", &debvisorv1.RetentionPolicySpec{Datasets: mixed, SnapshotLabel: "auto", Consistency: prefer},
			"snapshot.create tank/x+tank/y, snapshot.create vms/idle, snapshot.create vms/ns/w2+vms/w1 of web", "",
		},
		{
			"of two storages, demanded", &debvisorv1.RetentionPolicySpec{Datasets: mixed, SnapshotLabel: "auto", Consistency: demand},
			"snapshot.create tank/y, snapshot.create vms/idle, snapshot.create vms/ns/w2+vms/w1 of web", "tank/x of a: its guest is frozen",
		},
		{
			"on ZFS alone", &debvisorv1.RetentionPolicySpec{Datasets: refs("tank/x tank/y"), SnapshotLabel: "auto", Consistency: demand},
			"snapshot.create tank/x of web, snapshot.create tank/y", "",
		},
		{
			"a pool that nobody has", &debvisorv1.RetentionPolicySpec{Datasets: []*debvisorv1.DatasetRef{{Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: "gone", Name: "x"}}},
			"", "rbd:gone/x: no node has reported",
		},
	} {
		st, got := due(t, cephWorld(t, nil), c.spec)
		if got != c.want || c.skip == "" != (st.run.GetSkipped() == 0) || !strings.Contains(st.run.GetLastSkip(), c.skip) {
			t.Errorf("%s: %s (%s); want %s", c.what, got, st.run.GetLastSkip(), c.want)
		}
	}
	busy := cephWorld(t, func(d *cluster.Draft) { d.InUse.Put("vm/web", "op-move", 3) })
	st, got := due(t, busy, &debvisorv1.RetentionPolicySpec{Datasets: imageRefs("w1", "idle"), SnapshotLabel: "auto", Consistency: prefer})
	if got != "snapshot.create vms/idle" || !strings.Contains(st.run.GetLastSkip(), "op-move") {
		t.Errorf("while it moves: %s (%s)", got, st.run.GetLastSkip())
	}
}

func TestImagesArePrunedAfterSnapshots(t *testing.T) {
	s := cephWorld(t, nil)
	st, _ := due(t, s, &debvisorv1.RetentionPolicySpec{Datasets: imageRefs("w1"), SnapshotLabel: "auto"})
	taken := proto.CloneOf(st.ops[0])
	taken.State, taken.Tenant = task.OpSucceeded, "red"
	after := cephWorld(t, func(d *cluster.Draft) { d.Operations.Put(taken.GetId(), taken, 4) })
	record := retentionRecord(t, &debvisorv1.RetentionPolicySpec{
		Datasets: imageRefs("w1"), SnapshotLabel: "auto", Schedule: "every 10m", Rules: &debvisorv1.RetentionPolicy{KeepLast: 1},
	}, st.run)
	next, _ := decide(viewOf(after, noon.Add(1e9)), retentionPolicy(cluster.Entry[*storev1.RetentionPolicy]{Value: record, ModRevision: 8}))
	if next == nil || len(next.ops) != 1 {
		t.Fatalf("%v", next)
	}
	r := next.ops[0].GetRemoveSnapshots()
	if r.GetFsid() != "f" || len(r.GetImages()) != 1 || len(r.GetRetention()) == 0 || next.ops[0].GetTenant() != "red" || fmt.Sprint(next.ops[0].GetResources()) != "[rbd/f/vms//w1]" {
		t.Errorf("%v", next.ops[0])
	}
}
