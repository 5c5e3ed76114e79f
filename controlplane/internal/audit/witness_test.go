package audit

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// heard keeps what it is told.
type heard []string

func (h *heard) Add(e *Event) bool {
	*h = append(*h, strings.TrimSpace(e.Principal+" "+e.Method+" "+e.Args+" "+e.Operation+" "+e.Code+" "+e.Reason))
	return true
}

func TestWitness(t *testing.T) {
	var h heard
	w := &Witness{Log: &h, seen: map[string]bool{}, ended: map[string]bool{}, liveness: map[string]storev1.NodeLiveness{}, copies: map[string]storev1.LostCopyState{}}
	record := func(change func(d *cluster.Draft)) func(*cluster.Snapshot) *cluster.Snapshot {
		return func(s *cluster.Snapshot) *cluster.Snapshot {
			d := s.Draft()
			change(d)
			return d.Snapshot(s.Revision + 1)
		}
	}
	s := cluster.Empty()
	for i, step := range []struct {
		change func(d *cluster.Draft)
		want   []string
	}{
		{func(d *cluster.Draft) {
			d.Statuses.Put("a", &storev1.NodeStatus{Id: "a", Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE}, 1)
		}, nil},
		{func(d *cluster.Draft) {
			d.Statuses.Put("a", &storev1.NodeStatus{Id: "a", Liveness: storev1.NodeLiveness_NODE_LIVENESS_UNREACHABLE}, 1)
			d.Operations.Put("op-1", &storev1.Operation{
				Id: "op-1", Kind: "vm.start", State: task.OpPending, Principal: "system",
				Detail: &storev1.Operation_Power{Power: &storev1.Power{VmName: "web", Node: "a"}},
			}, 1)
			d.Operations.Put("op-2", &storev1.Operation{Id: "op-2", Kind: "migrate", State: task.OpPending, Principal: "ada"}, 1)
			d.Operations.Put("op-3", &storev1.Operation{
				Id: "op-3", Kind: "migrate", State: task.OpPending, Principal: "ada", Parent: "op-0",
				Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmName: "db", Source: "a", Target: "b"}},
			}, 1)
		}, []string{
			"system:inventory vm.start vm=web node=a op-1  ordered by the cluster itself",
			"system:drain migrate vm=db source=a target=b op-3  a move of op-0, which ada began",
			"system:inventory node-liveness node=a   node a was online and is unreachable",
		}},
		{func(*cluster.Draft) {}, nil},
		{func(d *cluster.Draft) { // what has begun, or is over, when it is seen first
			d.Operations.Delete("op-1")
			d.Operations.Put("op-4", &storev1.Operation{
				Id: "op-4", Kind: "vm.autostart", State: task.OpSucceeded, Principal: "system",
				Detail: &storev1.Operation_Power{Power: &storev1.Power{VmName: "web", Node: "a"}},
			}, 1)
			d.Operations.Put("op-5", &storev1.Operation{
				Id: "op-5", Kind: "migrate", State: task.OpRunning, Principal: "ada", Parent: "op-0",
				Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmName: "db2", Source: "a", Target: "b"}},
			}, 1)
		}, []string{
			"system:inventory vm.autostart vm=web node=a op-4  ordered by the cluster itself",
			"system:drain migrate vm=db2 source=a target=b op-5  a move of op-0, which ada began",
		}},
		{func(d *cluster.Draft) { // ends are told, whoever asked
			began := timestamppb.New(time.Unix(1000, 0))
			d.Operations.Put("op-2", &storev1.Operation{
				Id: "op-2", Kind: "migrate", State: task.OpFailed, Principal: "ada", ErrorCode: "MIGRATION_FAILED",
				CreatedAt: began, EndedAt: timestamppb.New(time.Unix(1002, 0)),
				Detail: &storev1.Operation_Migrate{Migrate: &storev1.Migrate{VmName: "web", Source: "a", Target: "b"}},
			}, 1)
			d.Operations.Put("op-6", &storev1.Operation{
				Id: "op-6", Kind: "node.cordon", State: task.OpSucceeded, Principal: "ada", CreatedAt: began, EndedAt: began,
			}, 1)
		}, []string{"system:migrate migrate vm=web source=a target=b op-2 FAILED the end of what ada asked for"}},
		{func(*cluster.Draft) {}, nil},
		{func(d *cluster.Draft) { // what a policy's time begins, and what a caller does
			d.Operations.Put("op-7", &storev1.Operation{
				Id: "op-7", Kind: "snapshot.prune", State: task.OpPending, Principal: "ada", Method: "/debvisor.v1.StorageService/SetRetentionPolicy",
				Detail: &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{Node: "a", Datasets: []string{"tank/x"}}},
			}, 1)
			d.Operations.Put("op-8", &storev1.Operation{
				Id: "op-8", Kind: "replication.run", State: task.OpPending, Principal: "ada", Method: "/debvisor.v1.StorageService/SetReplicationPolicy",
				Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{JobId: "j", Source: "a", Dataset: "tank/x", Target: "b", TargetDataset: "back/x"}},
			}, 1)
			d.Operations.Put("op-9", &storev1.Operation{
				Id: "op-9", Kind: "replication.run", State: task.OpPending, Principal: "ada", Method: "/debvisor.v1.StorageService/RunZfsReplication",
				Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{JobId: "j"}},
			}, 1)
			d.Operations.Put("op-10", &storev1.Operation{
				Id: "op-10", Kind: "replication.delete", State: task.OpPending, Principal: "ada", Method: "/debvisor.v1.StorageService/SetReplicationPolicy",
				Detail: &storev1.Operation_Replicate{Replicate: &storev1.Replicate{JobId: "j"}},
			}, 1)
		}, []string{
			"system:schedule snapshot.prune node=a datasets=tank/x op-7  a policy's time has come; ada made it so",
			"system:schedule replication.run job=j source=a:tank/x target=b:back/x op-8  a policy's time has come; ada made it so",
		}},
		{func(d *cluster.Draft) { // what becomes of images
			began, ended := timestamppb.New(time.Unix(1000, 0)), timestamppb.New(time.Unix(1002, 0))
			image := encoded(t, &agentv1.RbdImageID{Pool: "vms", Namespace: "ns", Name: "web"})
			d.Operations.Put("op-11", &storev1.Operation{
				Id: "op-11", Kind: "image.flatten", State: task.OpPending, Principal: "system:storage", Detail: &storev1.Operation_ChangeImage{ChangeImage: &storev1.ChangeImage{Image: image}},
			}, 1)
			d.Operations.Put("op-12", &storev1.Operation{
				Id: "op-12", Kind: "image.clone", State: task.OpSucceeded, Principal: "ada", CreatedAt: began, EndedAt: ended, Detail: &storev1.Operation_CloneImage{CloneImage: &storev1.CloneImage{
					Image: image, Template: encoded(t, &agentv1.RbdSnapshotID{Image: &agentv1.RbdImageID{Pool: "vms", Name: "base"}, Name: "t"}),
				}},
			}, 1)
			d.Operations.Put("op-13", &storev1.Operation{
				Id: "op-13", Kind: "snapshot.create", State: task.OpSucceeded, Principal: "ada", CreatedAt: began, EndedAt: ended,
				Detail: &storev1.Operation_TakeSnapshots{TakeSnapshots: &storev1.TakeSnapshots{Images: [][]byte{image}, Name: "dv-1"}},
			}, 1)
			d.Operations.Put("op-14", &storev1.Operation{
				Id: "op-14", Kind: "snapshot.prune", State: task.OpSucceeded, Principal: "ada", CreatedAt: began, EndedAt: ended,
				Detail: &storev1.Operation_RemoveSnapshots{RemoveSnapshots: &storev1.RemoveSnapshots{Fsid: "f", Images: [][]byte{image}}},
			}, 1)
		}, []string{
			"system:storage image.flatten image=vms/ns/web op-11  a clone that is deep is flattened in the background",
			"system:storage image.clone template=vms/base@t image=vms/ns/web op-12 SUCCEEDED",
			"system:storage snapshot.create images=vms/ns/web name=dv-1 op-13 SUCCEEDED",
			"system:storage snapshot.prune images=vms/ns/web op-14 SUCCEEDED",
		}},
		{func(d *cluster.Draft) { // a VM is brought back
			d.Operations.Put("op-15", &storev1.Operation{
				Id: "op-15", Kind: "failover", State: task.OpSucceeded, Principal: "ada", CreatedAt: timestamppb.New(time.Unix(1000, 0)), EndedAt: timestamppb.New(time.Unix(1004, 0)),
				Detail: &storev1.Operation_Failover{Failover: &storev1.Failover{VmName: "db", Source: "a", Target: "b", NodeIsOff: true, DataAgeSeconds: 90}},
			}, 1)
			d.LostCopies.Put("u/a", &storev1.LostCopy{
				VmName: "db", Node: "a", BroughtBackOn: "b", Operation: "op-15", State: storev1.LostCopyState_LOST_COPY_STATE_AWAITED, Proof: []string{"a is off, by the word of ada"},
			}, 1)
		}, []string{
			"system:failover failover vm=db source=a target=b node_is_off=true data_age=90s op-15 SUCCEEDED the end of what ada asked for",
			"system:failover lost-copy vm=db node=a brought_back_on=b op-15  the copy of db that a has lost is awaited: a is off, by the word of ada",
		}},
		{func(d *cluster.Draft) {
			d.LostCopies.Put("u/a", &storev1.LostCopy{VmName: "db", Node: "a", BroughtBackOn: "b", Operation: "op-15", State: storev1.LostCopyState_LOST_COPY_STATE_GONE}, 1)
		}, []string{"system:failover lost-copy vm=db node=a brought_back_on=b op-15  the copy of db that a has lost is gone"}},
		{func(d *cluster.Draft) { d.LostCopies.Delete("u/a") }, nil},
	} {
		s, h = record(step.change)(s), nil
		w.look(s, i == 0)
		if len(h) != len(step.want) {
			t.Errorf("step %d: %q", i, h)
		}
		for _, want := range step.want {
			if !strings.Contains(strings.Join(h, "\n"), want) {
				t.Errorf("step %d: %q, want %q", i, h, want)
			}
		}
	}
}

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
