package planner

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	largeNodes = 1000
	largeVMs   = 50_000
)

// large is the snapshot of a cluster of 1,000 nodes and 50,000 VMs, each with
// all that real ones report: disks, interfaces, CPUs, groups, 60 machine types
// a node, 10,000 ended migrations and 100 at work.
var large = sync.OnceValues(func() (*cluster.Snapshot, comparisons) {
	var b testing.B
	r := rand.New(rand.NewPCG(3, 50))
	d, known := cluster.Empty().Draft(), comparisons{}
	domains := make([][]string, largeNodes)
	for i := range largeVMs {
		id := fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i)
		on := i % largeNodes
		domains[on] = append(domains[on], id)
		d.VMs.Put(id, largeVM(&b, r, i, id, fmt.Sprintf("node-%04d", on)), 1)
	}
	for i := range largeNodes {
		node, status := largeNode(&b, r, i)
		status.Domains = domains[i]
		d.Nodes.Put(node.GetId(), node, 1)
		d.Statuses.Put(node.GetId(), status, 1)
	}
	for i := range 10_100 {
		op := largeMove(r, i)
		d.Operations.Put(op.GetId(), op, 1)
		if op.GetState() == task.OpRunning {
			d.InUse.Put("vm/"+op.GetMigrate().GetVmUuid(), op.GetId(), 1)
		}
	}
	for guest := range 8 {
		for host := range 4 {
			known[fmt.Sprintf("guest-cpu-%d/host-cpu-%d", guest, host)] = "yes"
		}
	}
	return d.Snapshot(1), known
})

func largeVM(b testing.TB, r *rand.Rand, i int, id, node string) *storev1.VM {
	domain := &agentv1.Domain{
		Uuid: id, Name: fmt.Sprintf("vm-%05d", i), State: debvisorv1.VMState_VM_STATE_RUNNING, MemoryBytes: uint64(2+r.IntN(15)) << 30,
		Vcpus: uint32(1 + r.IntN(16)), Persistent: true, CpuHash: fmt.Sprintf("guest-cpu-%d", r.IntN(8)),
		MachineType: fmt.Sprintf("pc-q35-%d.%d", 5+r.IntN(3), r.IntN(3)), VirtType: "kvm", Arch: "x86_64", DirtyBytesPerSecond: uint64(r.IntN(50)) << 20,
	}
	for n := range 2 {
		path := fmt.Sprintf("/var/lib/libvirt/images/vm-%05d-%d.qcow2", i, n)
		domain.Disks = append(domain.Disks, &debvisorv1.VMDisk{
			Target: fmt.Sprintf("vd%c", 'a'+n), Type: "file", Source: path, Format: "qcow2", Cache: "none",
			CapacityBytes: 100 << 30, AllocatedBytes: 30 << 30, Device: "disk", StorageId: "nfs4:filer:/vms", Shared: true, Inode: uint64(i),
		})
		domain.Interfaces = append(domain.Interfaces, &debvisorv1.VMInterface{Type: "bridge", Source: fmt.Sprintf("br%d", r.IntN(4)), Mac: "52:54:00:00:00:01"})
	}
	if i%10 == 0 { // some have a disk of their node's own
		domain.Disks[1].Shared, domain.Disks[1].StorageId = false, "local:"+node
		domain.Disks[1].Source = fmt.Sprintf("/srv/vm-%05d.qcow2", i)
	}
	if i%20 == 1 {
		domain.State = debvisorv1.VMState_VM_STATE_SHUTOFF
	}
	policy := &debvisorv1.VMPolicy{Tenant: fmt.Sprintf("tenant-%d", i%50), Priority: uint32(r.IntN(4))}
	if i%2 == 0 {
		policy.AntiAffinity = []*debvisorv1.AntiAffinity{{Group: fmt.Sprintf("apart-%d", i/200), Level: debvisorv1.SpreadLevel(r.IntN(3))}}
	} else {
		policy.AffinityGroups = []string{fmt.Sprintf("together-%d", i/200)}
	}
	return &storev1.VM{Uuid: id, Name: domain.GetName(), Node: node, Generation: 1, Domain: encode(b, domain), Policy: encode(b, policy)}
}

func largeNode(b testing.TB, r *rand.Rand, i int) (*storev1.Node, *storev1.NodeStatus) {
	id := fmt.Sprintf("node-%04d", i)
	caps := &debvisorv1.NodeCapabilities{
		Arch: "x86_64", CpuModel: "Skylake-Server-IBRS", CpuVendor: "Intel", LibvirtVersion: "9.0.0", QemuVersion: "7.2.9",
		Networks: []string{"default", "br0", "br1", "br2", "br3"}, VirtTypes: []string{"kvm", "qemu"},
		CpuHash: fmt.Sprintf("host-cpu-%d", i%4), LinkBytesPerSecond: 1250 << 20,
	}
	for major := range 10 {
		for minor := range 3 {
			caps.MachineTypes = append(caps.MachineTypes, fmt.Sprintf("pc-i440fx-%d.%d", major, minor), fmt.Sprintf("pc-q35-%d.%d", major, minor))
		}
	}
	free := uint64(100+r.IntN(600)) << 30
	capacity := &debvisorv1.NodeCapacity{
		Cpus: 128, MemoryBytes: 1 << 40, MemoryAvailableBytes: free, MemoryVmsBytes: 1<<40 - free,
		FileSystems: []*debvisorv1.FileSystem{
			{MountPoint: "/", Type: "ext4", StorageId: "local:" + id, TotalBytes: 100 << 30, AvailableBytes: 60 << 30},
			{MountPoint: "/srv", Type: "xfs", StorageId: "local:" + id + ":srv", TotalBytes: 4 << 40, AvailableBytes: uint64(1+r.IntN(3)) << 40},
			{MountPoint: "/var/lib/libvirt/images", Type: "nfs4", StorageId: "nfs4:filer:/vms", Shared: true, TotalBytes: 1 << 50, AvailableBytes: 1 << 49},
		},
	}
	node := &storev1.Node{Id: id, Rack: fmt.Sprintf("rack-%d", i/20), Zone: fmt.Sprintf("zone-%d", i/250)}
	return node, &storev1.NodeStatus{
		Id: id, Liveness: storev1.NodeLiveness_NODE_LIVENESS_ONLINE, Capabilities: encode(b, caps), Capacity: encode(b, capacity),
		Health: encode(b, &debvisorv1.Health{NodeId: &debvisorv1.NodeId{Id: id}, CpuLoad: r.Float64()}),
	}
}

func largeMove(r *rand.Rand, i int) *storev1.Operation {
	vm := 500 + r.IntN(largeVMs-500)
	m := &storev1.Migrate{
		VmUuid: fmt.Sprintf("%08x-0000-4000-8000-%012x", vm, vm), Source: fmt.Sprintf("node-%04d", vm%largeNodes),
		Target: fmt.Sprintf("node-%04d", r.IntN(largeNodes)), Method: int32(live), Bytes: 4 << 30, DurationMs: uint64(4000 + r.IntN(1000)), WasRunning: true,
	}
	op := &storev1.Operation{Id: fmt.Sprintf("op-%05d", i), Kind: "migrate", State: task.OpRunning, Detail: &storev1.Operation_Migrate{Migrate: m}}
	if i >= 100 {
		op.State, op.EndedAt = task.OpSucceeded, timestamppb.New(time.Unix(int64(1_700_000_000+i), 0))
	}
	return op
}

// The plan of emptying one node of a large cluster, from records as they are in
// a snapshot. Its figure is plan_evacuate_1000x50000_s.
func BenchmarkEvacuate1000x50000(b *testing.B) {
	s, known := large()
	moves := 0
	for b.Loop() {
		plan := NewWorld(s, known).Evacuate(EvacuationRequest{Node: "node-0007", AllowDowntime: true})
		if moves = len(plan.Moves); moves < largeVMs/largeNodes-2 || len(plan.Questions) > 0 {
			b.Fatalf("%d moves, %d blocked: %v", moves, len(plan.Blocked), plan.Blocked)
		}
	}
	b.ReportMetric(float64(moves), "moves")
}

// The same on a node none of whose VMs has a place: every node's reasons, and
// the search in vain.
func BenchmarkEvacuateInVain1000x50000(b *testing.B) {
	s, known := large()
	d := s.Draft()
	for id, e := range s.Statuses {
		status := &storev1.NodeStatus{
			Id: id, Liveness: e.Value.GetLiveness(), Capabilities: e.Value.GetCapabilities(), Domains: e.Value.GetDomains(),
			Capacity: encode(b, &debvisorv1.NodeCapacity{MemoryBytes: 1 << 40, MemoryAvailableBytes: 6 << 30}),
		}
		if id != "node-0100" && id != "node-0101" {
			status.Capacity = encode(b, &debvisorv1.NodeCapacity{MemoryBytes: 1 << 40, MemoryAvailableBytes: 1 << 30})
		}
		d.Statuses.Put(id, status, 2)
	}
	full := d.Snapshot(2)
	for b.Loop() {
		NewWorld(full, known).Evacuate(EvacuationRequest{Node: "node-0007", AllowDowntime: true})
	}
}

func BenchmarkPlan1000x50000(b *testing.B) {
	s, known := large()
	for b.Loop() {
		if result := Plan(s, Request{VM: "00000007-0000-4000-8000-000000000007", Facts: known}); !result.Allowed || len(result.Nodes) != largeNodes {
			b.Fatal(result.Refusal())
		}
	}
}

func BenchmarkRebalance1000x50000(b *testing.B) {
	s, known := large()
	for b.Loop() {
		if plan := NewWorld(s, known).Rebalance(RebalanceRequest{MaxMoves: 100}); len(plan.Moves) == 0 || plan.After >= plan.Before {
			b.Fatalf("%d moves, imbalance %g to %g", len(plan.Moves), plan.Before, plan.After)
		}
	}
}

func BenchmarkNewWorld1000x50000(b *testing.B) {
	s, known := large()
	for b.Loop() {
		NewWorld(s, known)
	}
}
