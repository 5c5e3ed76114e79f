package planner

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// judge gives a node's verdict as the target of a VM. Reserved is the memory
// that unfinished operations will still take there, bytes.
func judge(s *cluster.Snapshot, id string, vm guest, reserved uint64) Verdict {
	v := Verdict{Node: id}
	no := func(code, format string, args ...any) {
		v.Reasons = append(v.Reasons, Reason{code, fmt.Sprintf(format, args...)})
	}
	node, status := s.Nodes[id].Value, s.Statuses[id].Value
	if id == vm.node {
		no(AlreadyThere, "VM %s is already there", vm.name)
	}
	if live := status.GetLiveness(); live != storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		no(NodeNotHeard, "its agent is not heard (%s)", livenessWord(live))
	}
	if status.GetLibvirtDown() {
		no(NodeLibvirt, "its libvirt does not answer")
	}
	if node.GetCordoned() {
		why := node.GetCordonReason()
		if why == "" {
			why = "no reason given"
		}
		no(NodeCordoned, "it is cordoned (%s)", why)
	}
	if id != vm.node {
		clashes(s, id, vm, no)
	}
	room, known := roomOn(s, id)
	switch need := Need(vm.domain.GetMemoryBytes()); {
	case !known:
		no(CapacityUnknown, "its capacity is not known yet")
	case id == vm.node:
		v.Score = room.score(0, reserved)
	default:
		if room.free < need+reserved {
			no(Memory, "VM %s needs %s of memory (%s and %s overhead) and %s is free there, of which %s is promised to other migrations",
				vm.name, size(need), size(vm.domain.GetMemoryBytes()), size(need-vm.domain.GetMemoryBytes()), size(room.free), size(reserved))
		}
		v.Score = room.score(need, reserved)
	}
	v.Allowed = len(v.Reasons) == 0
	return v
}

// clashes tells of VMs on the node that leave no room for the VM's name or
// UUID in its libvirt.
func clashes(s *cluster.Snapshot, id string, vm guest, no func(code, format string, args ...any)) {
	for _, other := range s.VMsOn(id) {
		if other.Value.GetName() == vm.name && other.Value.GetUuid() != vm.uuid {
			no(NameClash, "another VM there is called %s (UUID %s)", vm.name, other.Value.GetUuid())
		}
	}
	if slices.Contains(s.Statuses[id].Value.GetDomains(), vm.uuid) {
		no(UUIDClash, "a domain with the VM's UUID %s is defined there already", vm.uuid)
	}
}

// room is what a node has left.
type room struct {
	// total and free are bytes of memory.
	total, free uint64
	// idle is the share of its CPUs that is idle, 0 to 1.
	idle float64
}

// roomOn reads a node's room. Free is what its kernel could give without
// swapping when it was last asked, and not more than what is left when every
// running VM uses all it may: those that the node reported, or those placed
// there since, whichever are more.
func roomOn(s *cluster.Snapshot, id string) (room, bool) {
	status := s.Statuses[id].Value
	capacity, health := &debvisorv1.NodeCapacity{}, &debvisorv1.Health{}
	if err := proto.Unmarshal(status.GetCapacity(), capacity); err != nil || capacity.GetMemoryBytes() == 0 {
		return room{}, false
	}
	r := room{total: capacity.GetMemoryBytes(), free: capacity.GetMemoryAvailableBytes(), idle: 0.5}
	taken := max(capacity.GetMemoryVmsBytes(), placed(s, id))
	r.free = min(r.free, r.total-min(r.total, taken))
	if err := proto.Unmarshal(status.GetHealth(), health); err == nil && health.GetNodeId() != nil {
		r.idle = 1 - min(max(health.GetCpuLoad(), 0), 1)
	}
	return r, true
}

// score is 0 to 100: three quarters for the share of memory that would stay
// free, one quarter for idle CPUs. So VMs spread over the nodes.
func (r room) score(need, reserved uint64) float64 {
	left := r.free - min(r.free, need+reserved)
	return 75*float64(left)/float64(r.total) + 25*r.idle
}
