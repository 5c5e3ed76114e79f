package planner

import (
	"slices"
	"strings"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// The methods, for short.
const (
	none     = debvisorv1.MoveMethod_MOVE_METHOD_UNSPECIFIED
	live     = debvisorv1.MoveMethod_MOVE_METHOD_LIVE
	liveCopy = debvisorv1.MoveMethod_MOVE_METHOD_LIVE_COPY
	offline  = debvisorv1.MoveMethod_MOVE_METHOD_OFFLINE
)

// mover is a VM that is to move, with all of its own that nodes are judged on.
type mover struct {
	request Request
	guest   *guest
	domain  *agentv1.Domain
	advice  advice
	// takes tells whether it takes memory on the target: it is active, or will
	// be started at the end.
	takes bool
	// disks are those that hold anything; copies tells whether any is copied.
	disks     []disk
	copies    bool
	rivals    []rival
	friends   []*guest
	notLive   []Reason
	reasons   []Reason
	questions []Question
}

// mover reads all of a VM.
func (w *World) mover(g *guest, r Request) *mover {
	m := &mover{request: r, guest: g, domain: g.domain(), advice: w.advice, rivals: w.rivals(g), friends: w.friends(g)}
	if r.Facts != nil {
		m.advice = newAdvice(r.Facts)
	}
	m.takes = g.active() || (r.Operation != "" && w.snapshot.Operations[r.Operation].Value.GetMigrate().GetWasRunning())
	m.disks = w.disks(g)
	for _, d := range m.disks {
		m.copies = m.copies || d.copied
	}
	if r.Recovery != nil {
		w.recovered(m)
		return m
	}
	if g.active() {
		m.notLive = whyNotLive(m)
	}
	m.reasons = against(w, m)
	return m
}

// sees names a VM, unless the caller may not know of it.
func (m *mover) sees(other *guest) string {
	if m.request.Tenant != "" && other.policy.GetTenant() != m.request.Tenant {
		return "another VM"
	}
	return "VM " + other.name() + " (UUID " + other.uuid() + ")"
}

// whyNotLive gives the reasons for which a VM that is active cannot go on while
// it moves, wherever to.
func whyNotLive(m *mover) []Reason {
	var o objections
	for _, d := range m.disks {
		if cache, unsafe := d.unsafeCache(); unsafe {
			o.no(DiskCache, "disk %s of VM %s has cache mode %s: on shared %s %s this may lose writes; with cache none or directsync the VM can move live",
				d.GetTarget(), m.guest.name(), cache, d.GetType(), d.GetSource())
		}
	}
	if dirs := m.domain.GetSharedDirectories(); len(dirs) > 0 {
		o.no(SharedDirectory, "VM %s uses directories of its host (%s): QEMU moves no such guest live", m.guest.name(), strings.Join(dirs, ", "))
	}
	return o.reasons
}

// against gives the reasons that keep a VM where it is, whatever the target.
func against(w *World, m *mover) []Reason {
	g := m.guest
	var o objections
	w.unmoved(m, &o)
	switch g.state {
	case debvisorv1.VMState_VM_STATE_RUNNING, debvisorv1.VMState_VM_STATE_PAUSED, debvisorv1.VMState_VM_STATE_CONFLICT,
		debvisorv1.VMState_VM_STATE_SHUTOFF, debvisorv1.VMState_VM_STATE_CRASHED:
	default:
		o.no(VMNotRunning, "VM %s is %s; only a VM that runs, is paused or is shut off can be moved", g.name(), stateWord(g.state))
	}
	if n := m.domain.GetSnapshots(); n > 0 {
		o.no(Snapshots, "VM %s has %d snapshots in libvirt's keeping, and libvirt moves no VM that has any", g.name(), n)
	}
	if devices := m.domain.GetHostDevices(); len(devices) > 0 {
		o.no(HostDevice, "VM %s uses devices of its host: %s", g.name(), strings.Join(devices, ", "))
	}
	for _, d := range m.disks {
		m.fixed(d, &o)
	}
	m.modes(&o)
	fromSource(w, m, &o)
	return o.reasons
}

// fixed tells what keeps a local disk, and so the VM, where it is.
func (m *mover) fixed(d disk, o *objections) {
	if !d.copied {
		return
	}
	if why := d.whyNotCopyable(); why != "" {
		o.no(DiskNotCopyable, "disk %s of VM %s (%s) is on storage of its node only and %s", d.GetTarget(), m.guest.name(), d.GetSource(), why)
	}
	// Also of one that the plan at hand moves away: it may not be gone in time.
	at := slices.IndexFunc(d.users, func(g *guest) bool {
		return g.on(m.guest.at) || g.record.GetNode() == m.guest.record.GetNode()
	})
	if at >= 0 && !d.GetReadOnly() {
		other := d.users[at]
		o.no(DiskNotCopyable, "disk %s of VM %s (%s) is on storage of its node only, and %s uses it too",
			d.GetTarget(), m.guest.name(), d.GetSource(), m.sees(other))
	}
}

// modes tells what speaks against the ways in which the VM could move.
func (m *mover) modes(o *objections) {
	name, active := m.guest.name(), m.guest.active()
	var why []string
	for _, reason := range m.notLive {
		why = append(why, reason.Message)
	}
	switch cannot := active && len(m.notLive) > 0; {
	case cannot && !m.request.AllowDowntime:
		o.no(NotLive, "VM %s runs and cannot move live, and nobody allowed its downtime: %s", name, strings.Join(why, "; "))
	case cannot && !m.domain.GetPersistent():
		o.no(VMTransient, "VM %s cannot move live, and as it is transient nothing would be left of it once it is shut down: %s", name, strings.Join(why, "; "))
	}
	pause := m.request.Options.GetOnDeadline() == debvisorv1.DeadlineAction_DEADLINE_ACTION_PAUSE
	if pause && active && !m.guest.policy.GetMayPause() {
		o.no(PauseNotAllowed, "the policy of VM %s does not allow it to be paused when a deadline passes (may_pause)", name)
	}
}

// fromSource tells whether the node that has the VM can give it away.
func fromSource(w *World, m *mover, o *objections) {
	id := m.guest.record.GetNode()
	source := w.snapshot.Statuses[id].Value
	if heard := source.GetLiveness(); heard != storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		o.no(SourceNotHeard, "the agent of %s, where VM %s is, is not heard (%s)", id, m.guest.name(), livenessWord(heard))
	}
	if source.GetLibvirtDown() {
		o.no(SourceLibvirt, "libvirt on %s, where VM %s is, does not answer", id, m.guest.name())
	}
}

// method is how the VM would move to a node; none, with a reason, where it
// cannot. Where the source's node decides alone, that is against the VM already.
func (m *mover) method(h *host, o *objections) debvisorv1.MoveMethod {
	switch {
	case m.guest.off() || m.request.Recovery != nil:
		return offline
	case len(m.notLive) > 0 && (!m.request.AllowDowntime || !m.domain.GetPersistent()):
		return none
	case len(m.notLive) > 0:
		return offline
	}
	if at := m.guest.at; at != nil && older(h.caps.GetQemuVersion(), at.caps.GetQemuVersion()) {
		if m.request.AllowDowntime && m.domain.GetPersistent() {
			return offline
		}
		o.no(QEMUOlder, "QEMU there is %s, older than the %s that VM %s runs in: it can only move there shut down",
			h.caps.GetQemuVersion(), at.caps.GetQemuVersion(), m.guest.name())
		return none
	}
	if m.copies {
		return liveCopy
	}
	return live
}
