package planner

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// defaultParallel is how many migrations a node takes part in at once, each
// way, where its limits say nothing.
const defaultParallel = 2

// host is a node in the world of a plan. Sizes are bytes.
type host struct {
	id     string
	node   *storev1.Node
	status *storev1.NodeStatus
	caps   *debvisorv1.NodeCapabilities
	// known tells whether its capacity is.
	known bool
	cpus  uint32
	total uint64
	// free is what its kernel could give without swapping when it was last
	// asked, and not more than what is left when every running VM uses all it
	// may: those that the node reported, or those placed there since, whichever
	// are more. What leaves it during a plan does not count: how much that
	// frees shows only once it has left.
	free uint64
	// reserved is what is still to be taken of free: by unfinished migrations
	// and by what the plan at hand moves there.
	reserved uint64
	// dormant is what its VMs that are shut off would take.
	dormant uint64
	// load is the memory of the active VMs that end up there, with what moves.
	load int64
	// idle is the share of its CPUs that is idle, 0 to 1.
	idle float64
	// volumes are its file systems, the longest mount point first.
	volumes []*volume
	// pools is its ZFS; nil: nobody has asked yet.
	pools *pools
	// ceph is its Ceph; nil: nobody has asked yet.
	ceph   *agentv1.CephInventory
	guests []*guest
}

// volume is a file system of a node.
type volume struct {
	*debvisorv1.FileSystem
	// key is the same for two nodes only where they share its room.
	key string
}

func newHost(node *storev1.Node, status *storev1.NodeStatus) *host {
	h := &host{id: node.GetId(), node: node, status: status, caps: &debvisorv1.NodeCapabilities{}, idle: 0.5}
	if b := status.GetCapabilities(); len(b) > 0 {
		if caps := (&debvisorv1.NodeCapabilities{}); proto.Unmarshal(b, caps) == nil {
			h.caps = caps
		}
	}
	var health debvisorv1.Health
	if err := proto.Unmarshal(status.GetHealth(), &health); err == nil && health.GetNodeId() != nil {
		h.idle = 1 - min(max(health.GetCpuLoad(), 0), 1)
	}
	return h
}

// measure takes over the node's capacity, once the guests that are placed there
// are known; placed is the memory of the active ones.
func (h *host) measure(placed uint64) {
	var capacity debvisorv1.NodeCapacity
	if err := proto.Unmarshal(h.status.GetCapacity(), &capacity); err != nil || capacity.GetMemoryBytes() == 0 {
		return
	}
	h.known, h.cpus, h.total = true, capacity.GetCpus(), capacity.GetMemoryBytes()
	taken := max(capacity.GetMemoryVmsBytes(), placed)
	h.free = min(capacity.GetMemoryAvailableBytes(), h.total-min(h.total, taken))
	for _, fs := range capacity.GetFileSystems() {
		key := fs.GetStorageId()
		if key == "" {
			key = h.id + ":" + fs.GetMountPoint()
		}
		h.volumes = append(h.volumes, &volume{fs, key})
	}
	slices.SortStableFunc(h.volumes, func(a, b *volume) int {
		return cmp.Compare(len(b.GetMountPoint()), len(a.GetMountPoint()))
	})
}

// volume gives the file system that holds a path; nil: none that was reported.
func (h *host) volume(path string) *volume {
	for _, v := range h.volumes {
		if under(path, v.GetMountPoint()) {
			return v
		}
	}
	return nil
}

// under tells whether a path is in a directory.
func under(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return ok && dir != "" && (rest == "" || rest[0] == '/')
}

// parallel is how many migrations it takes part in at once, each way.
func (h *host) parallel() int {
	if n := h.node.GetParallelMigrations(); n > 0 {
		return int(n)
	}
	return defaultParallel
}

// online tells whether its agent is heard and libvirt there answers.
func (h *host) online() bool {
	return h.status.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_ONLINE && !h.status.GetLibvirtDown()
}

// share is the part of its memory that its VMs take.
func (h *host) share() float64 { return float64(h.load) / float64(h.total) }
