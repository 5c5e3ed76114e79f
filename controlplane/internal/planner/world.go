package planner

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// World is a snapshot made ready for planning: any number of plans can be made
// of it, one after another. It is for one goroutine.
type World struct {
	snapshot *cluster.Snapshot
	advice   advice
	// hosts are in order of their ids, list in order of UUIDs.
	hosts  []*host
	byID   map[string]*host
	list   []*guest
	guests map[string]*guest
	byName map[string][]*guest
	// byPath are the VMs with a disk there that is their node's own; nil: nobody
	// has asked yet.
	byPath map[string][]*guest
	// apart and together are the VMs of each group.
	apart    map[group][]member
	together map[group][]*guest
	// claims are what unfinished migrations will still take, by operation.
	claims map[string]claim
	// claimed is bytes of file systems, by volume.key.
	claimed map[string]uint64
	links   *links
}

// claim is what a migration will still take of its target.
type claim struct {
	guest  *guest
	target *host
	memory uint64
	disks  []demand
}

// NewWorld reads a snapshot once for any number of plans. Facts may be nil: then
// CPUs are not judged.
func NewWorld(s *cluster.Snapshot, facts Facts) *World {
	w := &World{
		snapshot: s, advice: newAdvice(facts),
		byID: make(map[string]*host, len(s.Nodes)), guests: make(map[string]*guest, len(s.VMs)),
		byName: make(map[string][]*guest, len(s.VMs)), apart: map[group][]member{}, together: map[group][]*guest{},
		claims: map[string]claim{}, claimed: map[string]uint64{},
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		h := newHost(s.Nodes[id].Value, s.Statuses[id].Value)
		w.hosts = append(w.hosts, h)
		w.byID[id] = h
	}
	for _, id := range slices.Sorted(maps.Keys(s.VMs)) {
		w.add(s.VMs[id].Value)
	}
	for _, h := range w.hosts {
		for _, id := range h.status.GetDomains() {
			if g := w.guests[id]; g != nil && g.at != h {
				g.seen = append(g.seen, h)
			}
		}
		var placed uint64
		for _, g := range h.guests {
			if g.active() {
				placed += g.memory
			} else {
				h.dormant += Need(g.memory)
			}
		}
		h.load = int64(placed)
		h.measure(placed)
	}
	for _, entry := range s.ActiveOperations() {
		w.claim(entry.Value)
		w.starting(entry.Value)
		w.recovering(entry.Value)
	}
	return w
}

func (w *World) add(record *storev1.VM) {
	g := newGuest(record)
	w.list = append(w.list, g)
	w.guests[g.uuid()] = g
	w.byName[g.name()] = append(w.byName[g.name()], g)
	if g.at = w.byID[record.GetNode()]; g.at != nil {
		g.at.guests = append(g.at.guests, g)
	}
	w.enter(g)
}

// claim takes in an unfinished migration whose VM has not arrived: once it has,
// the node's own figures hold what it takes.
func (w *World) claim(op *storev1.Operation) {
	m := op.GetMigrate()
	g, target := w.guests[m.GetVmUuid()], w.byID[m.GetTarget()]
	if g == nil || target == nil || g.at == target {
		return
	}
	c := claim{guest: g, target: target}
	if g.active() || m.GetWasRunning() {
		c.memory = Need(g.memory)
	}
	for _, d := range w.incoming(g, m) {
		if d.GetZfsDataset() != "" {
			c.disks = need(c.disks, w.zfs(target).room(d.GetZfsDataset()), withSlack(d.GetCapacityBytes()))
			continue
		}
		c.disks = need(c.disks, target.volume(d.GetPath()), withSlack(d.GetCapacityBytes()))
	}
	w.claims[op.GetId()] = c
	w.hold(c)
}

// starting takes in that a VM which is off is being started on its node: after a
// boot all that belong there are, and the node's memory is free only until then.
func (w *World) starting(op *storev1.Operation) {
	g := w.guests[op.GetPower().GetVmUuid()]
	if op.GetPower().GetAction() != int32(agentv1.PowerAction_POWER_ACTION_START) || g == nil || g.at == nil || !g.off() {
		return
	}
	g.at.reserved += Need(g.memory)
}

// incoming gives the files and ZFS volumes that a migration makes: as its tasks
// were told or, before they are, as they will be.
func (w *World) incoming(g *guest, m *storev1.Migrate) []*agentv1.DiskTransfer {
	var files []*agentv1.DiskTransfer
	for _, b := range m.GetDisks() {
		t := &agentv1.DiskTransfer{}
		if proto.Unmarshal(b, t) != nil || t.GetAction() == agentv1.DiskAction_DISK_ACTION_SHARED {
			continue
		}
		if t.GetZfsDataset() != "" && !t.GetVolumeReserved() {
			t.CapacityBytes = w.referenced(g, t.GetZfsDataset())
		}
		if t.GetType() == "file" || t.GetZfsDataset() != "" {
			files = append(files, t)
		}
	}
	if len(m.GetDisks()) > 0 {
		return files
	}
	for _, d := range w.disks(g) {
		if d.volume {
			files = append(files, &agentv1.DiskTransfer{ZfsDataset: d.GetZfsDataset(), CapacityBytes: d.volumeRoom()})
		}
	}
	for _, d := range g.domain().GetDisks() {
		if d.GetType() == "file" && d.GetSource() != "" && !d.GetShared() {
			files = append(files, &agentv1.DiskTransfer{Path: d.GetSource(), CapacityBytes: disk{VMDisk: d}.room()})
		}
	}
	return files
}

// hold counts a claim in; release counts it out.
func (w *World) hold(c claim) {
	c.guest.coming = append(c.guest.coming, c.target)
	c.target.reserved += c.memory
	for _, d := range c.disks {
		w.claimed[d.volume.key] += d.bytes
	}
	if c.guest.active() {
		w.shift(c.guest.memory, c.guest.at, c.target)
	}
}

func (w *World) release(c claim) {
	at := slices.Index(c.guest.coming, c.target)
	c.guest.coming = slices.Delete(c.guest.coming, at, at+1)
	c.target.reserved -= c.memory
	for _, d := range c.disks {
		w.claimed[d.volume.key] -= d.bytes
	}
	if c.guest.active() {
		w.shift(c.guest.memory, c.target, c.guest.at)
	}
}

// shift takes a VM's memory from where it ended up so far to elsewhere.
func (w *World) shift(memory uint64, from, to *host) {
	if from != nil {
		from.load -= int64(memory)
	}
	if to != nil {
		to.load += int64(memory)
	}
}

// move lets a VM be on another node, as after a move; the function undoes it.
// Moves are undone in reverse order.
func (w *World) move(m *mover, to *host) (undo func()) {
	from, g := m.guest.at, m.guest
	demands := w.room(m, to)
	apply := func(sign uint64) {
		if m.takes {
			to.reserved += sign * Need(g.memory)
		} else {
			to.dormant += sign * Need(g.memory)
		}
		if m.copies {
			for _, d := range demands {
				w.claimed[d.volume.key] += sign * d.bytes
			}
		}
	}
	g.at = to
	apply(1)
	if g.active() {
		w.shift(g.memory, from, to)
	}
	return func() {
		g.at = from
		apply(^uint64(0)) // times -1
		if g.active() {
			w.shift(g.memory, to, from)
		}
	}
}

// imbalance is the standard deviation of the share of memory that VMs take, of
// the nodes for which take is true.
func (w *World) imbalance(take func(*host) bool) float64 {
	var shares []float64
	for _, h := range w.hosts {
		if take(h) {
			shares = append(shares, h.share())
		}
	}
	return deviation(shares)
}

// balanced tells whether a node takes part in the balance of load: it can take
// VMs.
func balanced(h *host) bool { return h.known && h.online() && !h.node.GetCordoned() }
