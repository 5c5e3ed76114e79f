package planner

import (
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// model says by rules of its own, written down a second time and with none of
// the planner's code, what is allowed in a cluster. It reads records only.
type model struct {
	nodes  map[string]*node
	vms    map[string]*vm
	facts  comparisons
	taken  map[string]uint64 // of a node's memory: promised
	filled map[string]uint64 // of a storage: promised
}

type node struct {
	rec      *storev1.Node
	status   *storev1.NodeStatus
	capacity debvisorv1.NodeCapacity
	caps     debvisorv1.NodeCapabilities
	load     float64
	free     uint64
}

type vm struct {
	rec    *storev1.VM
	dom    agentv1.Domain
	policy debvisorv1.VMPolicy
	home   string
	also   map[string]bool // may be there any moment
	busy   bool
}

func (v *vm) off() bool {
	return v.dom.GetState() == debvisorv1.VMState_VM_STATE_SHUTOFF || v.dom.GetState() == debvisorv1.VMState_VM_STATE_CRASHED
}

func (v *vm) on(node string) bool { return v.home == node || v.also[node] }

func decode(t testing.TB, b []byte, m proto.Message) {
	t.Helper()
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
}

func newModel(t testing.TB, s *cluster.Snapshot, facts comparisons) *model {
	t.Helper()
	m := &model{nodes: map[string]*node{}, vms: map[string]*vm{}, facts: facts, taken: map[string]uint64{}, filled: map[string]uint64{}}
	for id, e := range s.Nodes {
		n := &node{rec: e.Value, status: s.Statuses[id].Value, load: 0.5}
		decode(t, n.status.GetCapacity(), &n.capacity)
		decode(t, n.status.GetCapabilities(), &n.caps)
		var health debvisorv1.Health
		decode(t, n.status.GetHealth(), &health)
		if health.GetNodeId() != nil {
			n.load = health.GetCpuLoad()
		}
		m.nodes[id] = n
	}
	running := map[string]uint64{}
	for id, e := range s.VMs {
		v := &vm{rec: e.Value, home: e.Value.GetNode(), also: map[string]bool{}}
		decode(t, e.Value.GetDomain(), &v.dom)
		decode(t, e.Value.GetPolicy(), &v.policy)
		_, v.busy = s.InUse["vm/"+id]
		m.vms[id] = v
		if !v.off() {
			running[v.home] += v.dom.GetMemoryBytes()
		}
	}
	for id, n := range m.nodes {
		total, used := n.capacity.GetMemoryBytes(), max(running[id], n.capacity.GetMemoryVmsBytes())
		if used < total {
			n.free = min(total-used, n.capacity.GetMemoryAvailableBytes())
		}
	}
	for _, e := range s.ActiveOperations() {
		move := e.Value.GetMigrate()
		if v := m.vms[move.GetVmUuid()]; v.home != move.GetTarget() {
			m.depart(v, move.GetTarget(), move.GetWasRunning())
		}
	}
	return m
}

// depart lets a VM be on its way; arrive lets it be there, and nowhere else.
func (m *model) depart(v *vm, to string, ran bool) {
	v.also[to] = true
	if !v.off() || ran {
		m.taken[to] += takes(v)
	}
	for id, bytes := range m.copies(v, to) {
		m.filled[id] += bytes
	}
}

func (m *model) arrive(v *vm, to string) {
	delete(v.also, to)
	v.home = to
}

func takes(v *vm) uint64 {
	overhead := v.dom.GetMemoryBytes() / 32
	if overhead < 256<<20 {
		overhead = 256 << 20
	}
	return v.dom.GetMemoryBytes() + overhead
}

// storage gives the file system that holds a path: that of its nearest parent.
func (n *node) storage(path string) *debvisorv1.FileSystem {
	for dir := path; ; dir = filepath.Dir(dir) {
		for _, fs := range n.capacity.GetFileSystems() {
			if fs.GetMountPoint() == dir {
				return fs
			}
		}
		if dir == "/" {
			return nil
		}
	}
}

func local(d *debvisorv1.VMDisk) bool { return !d.GetShared() && d.GetType() != "network" }

// copies is what the copied files of a VM take on a node, by storage.
func (m *model) copies(v *vm, to string) map[string]uint64 {
	need := map[string]uint64{}
	for _, d := range v.dom.GetDisks() {
		if !local(d) || d.GetType() != "file" {
			continue
		}
		bytes := d.GetCapacityBytes()
		if d.GetReadOnly() && d.GetAllocatedBytes() > 0 {
			bytes = d.GetAllocatedBytes()
		}
		if fs := m.nodes[to].storage(d.GetSource()); fs != nil {
			need[fs.GetStorageId()] += bytes + bytes/20
		}
	}
	return need
}

// stays tells what keeps a VM from moving at all; live whether it may go on
// while it moves.
func (m *model) stays(v *vm, downtime bool) (why string, live bool) {
	home := m.nodes[v.home]
	live = !v.off() && len(v.dom.GetSharedDirectories()) == 0
	for _, d := range v.dom.GetDisks() {
		if !local(d) && d.GetType() != "network" && !d.GetReadOnly() && d.GetCache() != "none" && d.GetCache() != "directsync" {
			live = false
		}
		if !local(d) {
			continue
		}
		if d.GetFormat() != "raw" && d.GetFormat() != "qcow2" || d.GetBackingFile() != "" || d.GetShareable() && !d.GetReadOnly() {
			return "a disk cannot be copied", live
		}
		for _, other := range m.vms {
			if other != v && other.on(v.home) && uses(other, d.GetSource()) && !d.GetReadOnly() {
				return "a disk is another's too", live
			}
		}
	}
	switch state := v.dom.GetState(); {
	case len(v.rec.GetConflictNodes()) > 0:
		return "conflict", live
	case v.busy:
		return "in use", live
	case state != debvisorv1.VMState_VM_STATE_RUNNING && state != debvisorv1.VMState_VM_STATE_PAUSED && !v.off():
		return "state", live
	case v.dom.GetSnapshots() > 0, len(v.dom.GetHostDevices()) > 0:
		return "snapshots or devices", live
	case home.status.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_ONLINE, home.status.GetLibvirtDown():
		return "source", live
	case !v.off() && !live && (!downtime || !v.dom.GetPersistent()):
		return "not live", live
	}
	return "", live
}

func uses(v *vm, path string) bool {
	return slices.ContainsFunc(v.dom.GetDisks(), func(d *debvisorv1.VMDisk) bool { return local(d) && d.GetSource() == path })
}

// refuses tells what speaks against a VM on a node, as things are; empty:
// nothing. Offline tells whether it would have to be shut down, or is.
func (m *model) refuses(v *vm, to string, downtime bool) (why string, offline bool) {
	n := m.nodes[to]
	_, live := m.stays(v, downtime)
	offline = !live
	switch {
	case v.home == to:
		return "there", offline
	case n.status.GetLiveness() != storev1.NodeLiveness_NODE_LIVENESS_ONLINE, n.status.GetLibvirtDown(), n.rec.GetCordoned():
		return "node", offline
	case n.capacity.GetMemoryBytes() == 0:
		return "capacity", offline
	case !v.off() && takes(v)+m.taken[to] > n.free, v.off() && takes(v) > n.capacity.GetMemoryBytes():
		return "memory", offline
	case n.capacity.GetCpus() > 0 && v.dom.GetVcpus() > n.capacity.GetCpus():
		return "CPUs", offline
	case v.dom.GetMachineType() != "" && !slices.Contains(n.caps.GetMachineTypes(), v.dom.GetMachineType()):
		return "machine type", offline
	case slices.Contains(n.status.GetDomains(), v.rec.GetUuid()):
		return "UUID", offline
	}
	there, here := version(n), version(m.nodes[v.home])
	if live && there > 0 && here > there {
		if offline = true; !downtime || !v.dom.GetPersistent() {
			return "QEMU", offline
		}
	}
	if hash := v.dom.GetCpuHash(); hash != "" && m.facts[hash+"/"+n.caps.GetCpuHash()] != "yes" {
		return "CPU", offline
	}
	for _, nic := range v.dom.GetInterfaces() {
		if !slices.Contains(n.caps.GetNetworks(), nic.GetSource()) {
			return "network", offline
		}
	}
	for _, dir := range v.dom.GetSharedDirectories() {
		here, there := m.nodes[v.home].storage(dir), n.storage(dir)
		if here == nil || there == nil || !here.GetShared() || here.GetStorageId() != there.GetStorageId() {
			return "directory", offline
		}
	}
	return cmpOr(m.crowded(v, to), m.noDisks(v, to)), offline
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// version is a number for a node's release of QEMU; 0: unknown.
func version(n *node) int {
	var major, minor int
	if found, _ := fmt.Sscanf(n.caps.GetQemuVersion(), "%d.%d", &major, &minor); found < 2 {
		return 0
	}
	return major*1000 + minor
}

// crowded tells of VMs that must not be near.
func (m *model) crowded(v *vm, to string) string {
	for _, other := range m.vms {
		if other == v {
			continue
		}
		if other.rec.GetName() == v.rec.GetName() && other.on(to) {
			return "name"
		}
		for id := range m.nodes {
			if other.on(id) && m.tooNear(v, other, to, id) {
				return "anti-affinity with " + other.rec.GetUuid()
			}
		}
	}
	return ""
}

func (m *model) tooNear(v, other *vm, a, b string) bool {
	if v.policy.GetTenant() != other.policy.GetTenant() {
		return false
	}
	x, y := m.nodes[a].rec, m.nodes[b].rec
	zones := x.GetZone() != "" && y.GetZone() != "" && x.GetZone() != y.GetZone()
	racks := zones || x.GetRack() != "" && y.GetRack() != "" && x.GetRack() != y.GetRack()
	for _, mine := range v.policy.GetAntiAffinity() {
		for _, theirs := range other.policy.GetAntiAffinity() {
			if mine.GetGroup() != theirs.GetGroup() {
				continue
			}
			switch max(mine.GetLevel(), theirs.GetLevel()) {
			case debvisorv1.SpreadLevel_SPREAD_LEVEL_ZONE:
				if a == b || !zones {
					return true
				}
			case debvisorv1.SpreadLevel_SPREAD_LEVEL_RACK:
				if a == b || !racks {
					return true
				}
			default:
				if a == b {
					return true
				}
			}
		}
	}
	return false
}

// noDisks tells of disks that are not in reach, or have no room.
func (m *model) noDisks(v *vm, to string) string {
	n := m.nodes[to]
	for _, d := range v.dom.GetDisks() {
		fs := n.storage(d.GetSource())
		switch {
		case d.GetType() == "network":
		case d.GetShared() && (fs == nil || fs.GetStorageId() != d.GetStorageId()):
			return "disk not in reach"
		case local(d):
			for _, other := range m.vms {
				if other != v && other.on(to) && uses(other, d.GetSource()) {
					return "path taken"
				}
			}
		}
	}
	for id, need := range m.copies(v, to) {
		for _, fs := range n.capacity.GetFileSystems() {
			if fs.GetStorageId() == id && fs.GetAvailableBytes() < need+m.filled[id] {
				return "disk space"
			}
		}
	}
	return ""
}

// score is the documented one: 50 for memory, 15 for idle CPUs, 15 for friends,
// 12 for distance to rivals, 8 for disk space.
func (m *model) score(v *vm, to string) float64 {
	n := m.nodes[to]
	left := float64(n.free) - float64(m.taken[to]) - float64(takes(v))
	var friends, near, rivals, far float64
	for _, other := range m.vms {
		if other == v {
			continue
		}
		if other.off() && other.home == to {
			left -= float64(takes(other))
		}
		if other.policy.GetTenant() != v.policy.GetTenant() {
			continue
		}
		for _, g := range v.policy.GetAffinityGroups() {
			if slices.Contains(other.policy.GetAffinityGroups(), g) {
				if friends++; other.on(to) {
					near++
				}
			}
		}
		seen := map[string]bool{}
		for _, g := range v.policy.GetAntiAffinity() {
			if seen[g.GetGroup()] {
				continue
			}
			seen[g.GetGroup()] = true
			if !slices.ContainsFunc(other.policy.GetAntiAffinity(), func(o *debvisorv1.AntiAffinity) bool { return o.GetGroup() == g.GetGroup() }) {
				continue
			}
			for id := range m.nodes {
				if other.on(id) {
					rivals, far = rivals+1, far+m.distance(to, id)
				}
			}
		}
	}
	total := 50*math.Max(left, 0)/float64(n.capacity.GetMemoryBytes()) + 15*(1-n.load)
	total += 15*ratio(near, friends) + 12*ratio(far, rivals)
	least := 1.
	for id, need := range m.copies(v, to) {
		for _, fs := range n.capacity.GetFileSystems() {
			if fs.GetStorageId() == id && fs.GetTotalBytes() > 0 {
				least = math.Min(least, math.Max(0, float64(fs.GetAvailableBytes())-float64(need+m.filled[id]))/float64(fs.GetTotalBytes()))
			}
		}
	}
	return total + 8*least
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 1
	}
	return a / b
}

func (m *model) distance(a, b string) float64 {
	x, y := m.nodes[a].rec, m.nodes[b].rec
	zones := x.GetZone() != "" && y.GetZone() != "" && x.GetZone() != y.GetZone()
	racks := x.GetRack() != "" && y.GetRack() != "" && x.GetRack() != y.GetRack()
	switch {
	case a == b:
		return 0
	case zones:
		return 1
	case racks:
		return 2. / 3
	}
	return 1. / 3
}

// follow goes through a plan wave by wave: each move must be allowed while all
// others of its wave are anywhere between their beginning and their end.
func (m *model) follow(t testing.TB, moves []Move, downtime bool, parallel int) {
	t.Helper()
	waves := map[int][]Move{}
	for i, move := range moves {
		waves[move.Wave] = append(waves[move.Wave], move)
		if i > 0 && move.Wave < moves[i-1].Wave {
			t.Errorf("move %d is of wave %d, after one of wave %d", i, move.Wave, moves[i-1].Wave)
		}
	}
	for _, wave := range slices.Sorted(maps.Keys(waves)) {
		from, to := map[string]int{}, map[string]int{}
		for _, move := range waves[wave] {
			v := m.vms[move.VM]
			if v.home != move.Source {
				t.Errorf("wave %d: %s is on %s and not on %s", wave, move.VM, v.home, move.Source)
			}
			if why, _ := m.stays(v, downtime); why != "" {
				t.Errorf("wave %d: %s moves in spite of: %s", wave, move.VM, why)
			}
			why, offline := m.refuses(v, move.Target, downtime)
			if why != "" {
				t.Errorf("wave %d: %s moves to %s in spite of: %s", wave, move.VM, move.Target, why)
			}
			if offline != (move.Method == debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE) {
				t.Errorf("%s moves to %s by %v", move.VM, move.Target, move.Method)
			}
			m.depart(v, move.Target, false)
			from[move.Source]++
			to[move.Target]++
		}
		for id, n := range m.nodes {
			limit := int(n.rec.GetParallelMigrations())
			if limit == 0 {
				limit = 2
			}
			if parallel > 0 {
				limit = min(limit, parallel)
			}
			if from[id] > limit || to[id] > limit {
				t.Errorf("wave %d: %d from and %d to %s, %d are allowed", wave, from[id], to[id], id, limit)
			}
		}
		for _, move := range waves[wave] {
			m.arrive(m.vms[move.VM], move.Target)
		}
	}
}

// imbalance is the standard deviation of the shares of memory that running VMs
// take where they end up, of the nodes that can take VMs.
func (m *model) imbalance(only []string) float64 {
	var shares []float64
	for id, n := range m.nodes {
		if !m.balanced(id, only) {
			continue
		}
		var used uint64
		for _, v := range m.vms {
			if !v.off() && (v.also[id] || v.home == id && len(v.also) == 0) {
				used += v.dom.GetMemoryBytes()
			}
		}
		shares = append(shares, float64(used)/float64(n.capacity.GetMemoryBytes()))
	}
	slices.Sort(shares)
	var mean, sum float64
	for _, s := range shares {
		mean += s / float64(len(shares))
	}
	for _, s := range shares {
		sum += (s - mean) * (s - mean) / float64(len(shares))
	}
	return math.Sqrt(sum)
}

func (m *model) balanced(id string, only []string) bool {
	n := m.nodes[id]
	return n.status.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_ONLINE && !n.status.GetLibvirtDown() && !n.rec.GetCordoned() &&
		n.capacity.GetMemoryBytes() > 0 && (len(only) == 0 || slices.Contains(only, id))
}

// key names the places of all VMs.
func (m *model) key() string {
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(m.vms)) {
		b.WriteString(m.vms[id].home + " ")
	}
	return b.String()
}
