package planner

import (
	"strings"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// Recovery has a VM judged that is brought back from its definition and its disks
// alone, since its node is lost: nothing is asked of that node, and no CPU is
// compared, as the guest boots anew.
type Recovery struct {
	// Starts tells whether the guest is started there, so that it takes memory.
	Starts bool
	// Disk tells what keeps a disk of the VM from being used on a node; an empty
	// code: nothing. It is asked of all but shared ones that the VM only reads.
	Disk func(node string, d *debvisorv1.VMDisk) (code, message string)
}

// LostCopy is a node that still has a copy of the VM from before it was brought
// back elsewhere.
const LostCopy = "LOST_COPY"

// recovered reads a VM that is brought back: what is left of it has no state, and
// nothing is copied.
func (w *World) recovered(m *mover) {
	g, how := m.guest, m.request.Recovery
	m.takes, m.copies, m.notLive = how.Starts, false, nil
	shared := m.disks[:0:0]
	for _, d := range m.disks {
		if readShared(d.VMDisk) {
			shared = append(shared, d)
		}
	}
	m.disks = shared
	var o objections
	w.unmoved(m, &o)
	if devices := m.domain.GetHostDevices(); len(devices) > 0 {
		o.no(HostDevice, "VM %s uses devices of its host: %s", g.name(), few(devices, 3, ", "))
	}
	m.reasons = o.reasons
}

// readShared tells whether a disk is a file or device of storage that several
// nodes have mounted and that the VM only reads.
func readShared(d *debvisorv1.VMDisk) bool {
	return d.GetReadOnly() && d.GetShared() && d.GetType() != "network"
}

// recoverable refuses a node on which a disk of the VM cannot be used.
func recoverable(_ *World, h *host, m *mover, o *objections) {
	if m.request.Recovery == nil {
		return
	}
	for _, d := range m.domain.GetDisks() {
		if d.GetSource() == "" || readShared(d) {
			continue
		}
		if code, message := m.request.Recovery.Disk(h.id, d); code != "" {
			o.no(code, "%s", message)
		}
	}
}

// lost refuses a node that has a copy of the VM from before a failover, until
// that is destroyed and fenced no more.
func lost(w *World, h *host, m *mover, o *objections) {
	if len(w.snapshot.LostCopies) == 0 {
		return
	}
	c, ok := w.snapshot.LostCopies[m.guest.uuid()+"/"+h.id]
	if ok && c.Value.GetState() != storev1.LostCopyState_LOST_COPY_STATE_GONE {
		o.no(LostCopy, "the copy of VM %s that the node had when it was lost has not been destroyed yet (see hvctl failover list)", m.guest.name())
	}
}

// recovering takes in an unfinished failover whose VM is not its target's yet.
func (w *World) recovering(op *storev1.Operation) {
	f := op.GetFailover()
	g, target := w.guests[f.GetVmUuid()], w.byID[f.GetTarget()]
	if f == nil || task.OpEnded(op.GetState()) || g == nil || target == nil || g.at == target {
		return
	}
	c := claim{guest: g, target: target}
	if f.GetStart() {
		c.memory = Need(g.memory)
	}
	w.claims[op.GetId()] = c
	w.hold(c)
}

// unmoved gives what keeps a VM from being touched at all.
func (w *World) unmoved(m *mover, o *objections) {
	g, r := m.guest, m.request
	if conflict := g.record.GetConflictNodes(); len(conflict) > 0 || g.state == debvisorv1.VMState_VM_STATE_CONFLICT {
		o.no(VMConflict, "VM %s is in conflict: more than one node reports it running (%s); destroy the copy that should not be",
			g.name(), strings.Join(conflict, ", "))
	}
	switch holder, held := w.snapshot.Within(r.Tenant).Holder("vm/" + g.uuid()); {
	case !held || holder != "" && holder == r.Operation:
	case holder == "":
		o.no(VMInUse, "VM %s is in use", g.name())
	default:
		o.no(VMInUse, "VM %s is in use by operation %s", g.name(), holder)
	}
	if node := g.record.GetNode(); r.Source != "" && r.Source != node {
		o.no(WrongSource, "VM %s is on %s and not on %s", g.name(), node, r.Source)
	}
}
