package inventory

import (
	"bytes"
	"reflect"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// settleTime is how long two reports that contradict each other, or a VM that
// nobody reports, are waited upon: the nodes' reports do not arrive together.
const settleTime = 3 * time.Second

// confirmTime is how much later than a contradiction a node must have been
// heard, still without taking its word back, for the contradiction to count.
const confirmTime = 2 * time.Second

// vmChange is what is to become of one VM's record.
type vmChange struct {
	vm      *storev1.VM // nil: deleted
	uuid    string
	require []store.Condition
	orders  []*storev1.Operation // that go with it
	was     *storev1.VM          // what is kept of one that is deleted
	back    bool                 // it was gone, and is kept as such no longer
	note    string               // for the log; empty: nothing worth it
	alarm   bool
}

// placer decides, for one look at all that is known; callers hold the
// inventory's mu for as long as they use it.
type placer struct {
	snapshot *cluster.Snapshot
	nodes    map[string]*node
	ids      []string // of nodes, sorted
	// told are, by UUID, the nodes that have told of a VM, sorted, but for those
	// whose copy is lost (see cluster.Snapshot.HasLost); nil: not gathered yet. To ask every node of every VM takes half a minute with 1,000
	// of the ones and 50,000 of the others.
	told  map[string][]string
	now   time.Time
	since map[string]time.Time // when a doubt was first seen
	taken map[string]time.Time // when libvirt's autostart was last taken over; nil: not asked yet
}

// holds tells whether a condition has held for the settle time; call it with
// false when it does not hold.
func (p *placer) holds(what, uuid string, condition bool) bool {
	key := what + "/" + uuid
	if !condition {
		delete(p.since, key)
		return false
	}
	first, ok := p.since[key]
	if !ok {
		p.since[key] = p.now
		return false
	}
	return p.now.Sub(first) >= settleTime
}

// tellers are the nodes that have told of a VM, sorted.
func (p *placer) tellers(uuid string) []string {
	if p.told == nil {
		p.told = map[string][]string{}
		for _, id := range p.ids {
			for told := range p.nodes[id].domains {
				if !p.snapshot.HasLost(told, id) {
					p.told[told] = append(p.told[told], id)
				}
			}
		}
	}
	return p.told[uuid]
}

// concerned are the nodes that have told of a VM or are in conflict over it.
func (p *placer) concerned(uuid string, standing []string) []string {
	tellers := p.tellers(uuid)
	if len(standing) == 0 {
		return tellers
	}
	all := slices.Concat(tellers, slices.DeleteFunc(slices.Clone(standing), func(id string) bool { return p.nodes[id] == nil }))
	slices.Sort(all)
	return slices.Compact(all)
}

// decide tells what is to become of a VM's record; nil: nothing.
func (p *placer) decide(uuid string) *vmChange {
	entry, exists := p.snapshot.VMs[uuid]
	if !exists {
		return p.create(uuid)
	}
	was := entry.Value
	if p.settled(uuid, was) {
		return nil
	}
	next := proto.CloneOf(was)
	c := &vmChange{vm: next, uuid: uuid, require: []store.Condition{store.Unchanged(store.VMKey(uuid), entry.ModRevision)}}
	next.ConflictNodes = p.conflict(uuid, was.GetConflictNodes())
	switch {
	case len(next.ConflictNodes) > 0 && len(was.GetConflictNodes()) == 0:
		c.note, c.alarm = "CONFLICT: more than one node reports this VM running; operations on it are refused", true
	case len(next.ConflictNodes) == 0 && len(was.GetConflictNodes()) > 0:
		c.note = "conflict over: one node at most reports this VM running"
	}
	if _, inUse := p.snapshot.InUse["vm/"+uuid]; !inUse {
		if len(next.ConflictNodes) == 0 && !p.place(uuid, next, c) {
			c.vm = nil
		}
		if c.vm != nil {
			p.describe(uuid, next)
			c.orders = p.takeAutostart(uuid, next)
		} else {
			c.was = leftOf(was, p.now)
		}
		c.require = append(c.require, store.Absent(store.InUseKey("vm/"+uuid)))
	}
	if c.vm != nil && len(c.orders) == 0 && proto.Equal(was, next) {
		return nil
	}
	return c
}

// settled tells of most VMs at a glance that their records are as they should be:
// the node that they belong to tells what they say, and no other has them.
func (p *placer) settled(uuid string, was *storev1.VM) bool {
	tellers := p.tellers(uuid)
	if len(was.GetConflictNodes()) > 0 || len(tellers) != 1 || tellers[0] != was.GetNode() {
		return false
	}
	d, ok := p.claim(was.GetNode(), uuid)
	if !ok || p.nodes[was.GetNode()].libvirtDown || d.GetAutostart() || !bytes.Equal(d.encoded, was.GetDomain()) {
		return false
	}
	if len(p.since) > 0 {
		p.holds("gone", uuid, false)
		p.holds("conflict", uuid, false)
	}
	return true
}

// create makes the record of a VM that appeared; nil: none is due.
func (p *placer) create(uuid string) *vmChange {
	if _, inUse := p.snapshot.InUse["vm/"+uuid]; inUse {
		return nil
	}
	holder := p.holder(uuid)
	if holder == "" {
		return nil
	}
	vm := &storev1.VM{Uuid: uuid, Node: holder, Generation: 1}
	c := &vmChange{vm: vm, uuid: uuid, note: "VM appeared"}
	gone, back := p.snapshot.GoneVMs[uuid]
	if back {
		c.note, c.back = "VM appeared again: what was set for it counts again", true
		vm.Generation, vm.Policy, vm.Autostart = gone.Value.GetGeneration()+1, gone.Value.GetPolicy(), gone.Value.GetAutostart()
	}
	p.describe(uuid, vm)
	c.orders = p.takeAutostart(uuid, vm)
	c.require = []store.Condition{
		store.Absent(store.VMKey(uuid)), store.Absent(store.InUseKey("vm/" + uuid)),
		store.Unchanged(store.GoneVMKey(uuid), gone.ModRevision),
	}
	return c
}

// place moves the placement after a VM that moved without us; false: the VM is
// gone from everywhere.
func (p *placer) place(uuid string, next *storev1.VM, c *vmChange) bool {
	home := p.nodes[next.GetNode()]
	if home == nil || !home.known || home.libvirtDown || !home.reachable() {
		p.holds("gone", uuid, false)
		return true // nothing is known of its node now
	}
	if d, has := home.domains[uuid]; has {
		p.holds("gone", uuid, false)
		p.follow(uuid, d, next, c)
		return true
	}
	if holder := p.holder(uuid); holder != "" {
		p.holds("gone", uuid, false)
		if p.runsOn(uuid) > 1 {
			return true // a conflict in the making
		}
		c.note = "VM adopted: it is gone from its node and present on another"
		next.Node = holder
		next.Generation++
		return true
	}
	gone := p.holds("gone", uuid, !p.mayBeAnywhere(uuid) && !unreported(next) && !p.snapshot.Recovering())
	if gone {
		p.holds("gone", uuid, false)
		c.note = "VM gone: no node has it any more"
	}
	return !gone
}

// unreported tells of a VM that was brought back to a node which has not told of it
// yet: only its record knows of it then.
func unreported(vm *storev1.VM) bool {
	var d agentv1.Domain
	return proto.Unmarshal(vm.GetDomain(), &d) == nil && len(vm.GetDomain()) > 0 && d.GetState() == debvisorv1.VMState_VM_STATE_UNSPECIFIED
}

func (p *placer) mayBeAnywhere(uuid string) bool {
	for _, n := range p.nodes {
		if n.mayHold(uuid) {
			return true
		}
	}
	return false
}

// holder is the reachable node that has the VM, one where it runs first; a
// copy that is still being received does not count.
func (p *placer) holder(uuid string) string {
	found := ""
	for _, id := range p.tellers(uuid) {
		d, ok := p.claim(id, uuid)
		switch {
		case !ok || d.GetState() == debvisorv1.VMState_VM_STATE_INCOMING:
		case d.GetState() == debvisorv1.VMState_VM_STATE_RUNNING:
			return id
		case found == "":
			found = id
		}
	}
	return found
}

// runsOn is how many reachable nodes report the VM running.
func (p *placer) runsOn(uuid string) (nodes int) {
	for _, id := range p.tellers(uuid) {
		if d, ok := p.claim(id, uuid); ok && d.GetState() == debvisorv1.VMState_VM_STATE_RUNNING {
			nodes++
		}
	}
	return nodes
}

// claim is the domain as a reachable node reports it.
func (p *placer) claim(id, uuid string) (domain, bool) {
	n := p.nodes[id]
	if !n.known || !n.reachable() {
		return domain{}, false
	}
	d, ok := n.domains[uuid]
	return d, ok
}

// conflict lists the nodes that report the VM running, when more than one has
// for the settle time. A conflict that stands ends only when a node itself
// takes its word back: not because it is not heard, nor with a new leader.
func (p *placer) conflict(uuid string, standing []string) []string {
	var nodes []string
	for _, id := range p.concerned(uuid, standing) {
		d, ok := p.claim(id, uuid)
		runs := ok && d.GetState() == debvisorv1.VMState_VM_STATE_RUNNING
		stands := slices.Contains(standing, id)
		if silent := p.silent(id); runs && !silent || stands && (runs || silent) {
			nodes = append(nodes, id)
		}
	}
	if len(standing) > 0 && len(nodes) > 1 {
		return nodes
	}
	first := p.since["conflict/"+uuid]
	if !p.holds("conflict", uuid, len(standing) == 0 && len(nodes) > 1) {
		return nil
	}
	for _, id := range nodes {
		if p.nodes[id].heard.Before(first.Add(confirmTime)) {
			return nil // its word may be from before the other's
		}
	}
	p.holds("conflict", uuid, false)
	return nodes
}

// silent tells whether a node cannot take its word about its VMs back now.
func (p *placer) silent(id string) bool {
	n := p.nodes[id]
	return !n.known || !n.reachable() || n.libvirtDown
}

// maxDomainBytes bounds what is taken over of one VM: a guest with a hundred
// disks has some ten kilobytes. One agent that tells more must not keep etcd
// from taking what all others tell.
const maxDomainBytes = 256 << 10

// describe takes over what the placement's node reports.
func (p *placer) describe(uuid string, vm *storev1.VM) {
	n := p.nodes[vm.GetNode()]
	if n == nil || !n.known {
		return
	}
	if d, ok := n.domains[uuid]; ok && len(d.encoded) <= maxDomainBytes && !bytes.Equal(d.encoded, vm.GetDomain()) {
		vm.Name, vm.Domain = d.GetName(), d.encoded
	}
}

// vmsDiffer tells whether the snapshots' VMs or the resources in use differ:
// collections that did not change are shared.
func vmsDiffer(a, b *cluster.Snapshot) bool {
	return reflect.ValueOf(a.VMs).Pointer() != reflect.ValueOf(b.VMs).Pointer() ||
		reflect.ValueOf(a.InUse).Pointer() != reflect.ValueOf(b.InUse).Pointer()
}
