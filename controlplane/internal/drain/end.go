package drain

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/planner"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// grace is how long at least what our own daemons keep a move from may take
	// to pass: a restart, a report that is due, an answer.
	grace = time.Minute
	// forever is for what ends by itself, however long that takes.
	forever = time.Duration(math.MaxInt64)
	// mostTold is how many VMs an error names; the operation has them all.
	mostTold = 20
	// mostToldOf is how much of each, bytes.
	mostToldOf = 600
)

// The codes with which operations fail.
const (
	codeBlocked    = "EVACUATION_BLOCKED"
	codeNotBack    = "RESTORE_BLOCKED"
	codeStopped    = "PLAN_STOPPED"
	codeUncordoned = "NODE_UNCORDONED"
)

// conclude ends the operation where nothing is left to do, with no move at work.
func (d *drain) conclude() {
	var here []*storev1.Move // what keeps the operation from having done all
	waits := false
	for _, m := range d.e.GetMoves() {
		switch m.GetState() {
		case waiting:
			waits = true
		case blocked, failed:
			here = append(here, m)
		}
	}
	switch {
	case waits:
		d.e.BlockedSince = nil
		d.note()
		return
	case len(here) > 0 && !d.patient(here):
		d.note()
		return
	case len(here) > 0 && d.given():
		d.stop(codeStopped, "what is left is not allowed: "+tellMoves(here, mostTold))
	case d.op.GetKind() == Evacuate:
		d.concludeEvacuation(here)
	case len(here) > 0:
		d.fail(codeNotBack, fmt.Sprintf("%s takes VMs again, but %d could not be brought back: %s",
			d.e.GetNode(), len(here), tellMoves(here, mostTold)), about(here))
	default:
		d.succeed()
	}
}

// patient tells whether all that keeps the moves was waited for long enough. It
// is not before they have been planned in this very look.
func (d *drain) patient(here []*storev1.Move) bool {
	if d.e.GetBlockedSince() == nil {
		d.e.BlockedSince = timestamppb.New(d.now)
	}
	waited := d.now.Sub(d.e.GetBlockedSince().AsTime())
	for _, m := range here {
		if m.GetState() != blocked {
			continue
		}
		if !d.planned {
			return false
		}
		result := d.plan(m)
		if waited < d.patience(m, &result) {
			return false
		}
	}
	return true
}

// patience is how long what is in the way of a move is waited for: the longest
// that all against the VM and all against some node are worth.
func (d *drain) patience(m *storev1.Move, result *planner.Result) time.Duration {
	all := func(reasons []planner.Reason) time.Duration {
		least := forever
		for _, r := range reasons {
			least = min(least, d.worth(r.Code))
		}
		return least
	}
	if result.Allowed {
		return d.asked() // others were planned to take its room
	}
	best := time.Duration(0)
	for _, v := range result.Nodes {
		if v.Node != result.Source && (m.GetTarget() == "" || v.Node == m.GetTarget()) {
			best = max(best, all(v.Reasons))
		}
	}
	return min(all(result.Reasons), best)
}

// asked is how long the caller wants what may pass to be waited for. Given
// moves rest on each other, so that what one frees must have time to be seen.
func (d *drain) asked() time.Duration {
	asked := time.Duration(d.e.GetWaitBlockedSeconds()) * time.Second
	if d.given() {
		return max(asked, grace)
	}
	return asked
}

// worth is how long one reason is waited for.
func (d *drain) worth(code string) time.Duration {
	switch code {
	case planner.SourceNotHeard, planner.SourceLibvirt, planner.VMInUse:
		return forever
	case planner.NodeNotHeard, planner.NodeLibvirt, planner.UUIDClash, planner.CapacityUnknown, planner.CPUNotCompared:
		return max(d.asked(), grace)
	case planner.Memory, planner.DiskSpace, planner.NodeCordoned, planner.AntiAffinity, planner.NameClash, planner.VMNotRunning:
		return d.asked()
	}
	return 0
}

// concludeEvacuation ends an evacuation: well when nothing runs on the node any
// more, or when the plan that it carries out has been carried out.
func (d *drain) concludeEvacuation(here []*storev1.Move) {
	var running []*storev1.Move
	for _, m := range here {
		if !d.isOff(m.GetVmUuid()) {
			running = append(running, m)
		}
	}
	if len(running) > 0 {
		d.fail(codeBlocked, fmt.Sprintf("%d of %d VMs could not be moved off %s, which stays cordoned: %s",
			len(running), len(d.e.GetMoves()), d.e.GetNode(), tellMoves(running, mostTold)), about(running))
		return
	}
	against := planner.AgainstReboot(d.snapshot, d.e.GetNode())
	switch {
	case len(against) == 0:
		d.e.SafeToReboot = true
		d.succeed()
	case d.given():
		d.succeed()
	case passes(against):
		d.e.BlockedSince = nil
		d.op.Step = "waiting: " + texts(against)
		if d.op.GetStep() != d.entry.Value.GetStep() || d.significant() {
			d.write(stepNote, d.op.GetStep())
		}
	default:
		d.fail(codeBlocked, fmt.Sprintf("all VMs of %s were moved, but it is not safe to reboot: %s", d.e.GetNode(), texts(against)), nil)
	}
}

// passes tells whether all that speaks against a reboot ends by itself.
func passes(against []planner.Reason) bool {
	for _, r := range against {
		switch r.Code {
		case planner.VMArriving, planner.NodeNotHeard, planner.NodeLibvirt:
		default:
			return false
		}
	}
	return true
}

// isOff tells whether a VM is known to be shut off, so that it keeps no host
// from being rebooted.
func (d *drain) isOff(uuid string) bool {
	domain := &agentv1.Domain{}
	if err := proto.Unmarshal(d.snapshot.VMs[uuid].Value.GetDomain(), domain); err != nil {
		return false
	}
	return domain.GetState() == debvisorv1.VMState_VM_STATE_SHUTOFF
}

// succeed ends the operation well.
func (d *drain) succeed() {
	_, p := d.progress()
	p.Percent = 100
	d.setProgress(p)
	log := d.tally()
	if d.e.GetSafeToReboot() {
		log += "; " + d.e.GetNode() + " is safe to reboot"
	}
	d.finish(task.OpSucceeded, log)
}

// stop ends an operation that may not begin what is left.
func (d *drain) stop(code, why string) {
	var left []*storev1.Move
	for _, m := range d.e.GetMoves() {
		switch m.GetState() {
		case waiting:
			m.Message = "not begun"
		case blocked, failed:
			left = append(left, m)
		}
	}
	d.fail(code, fmt.Sprintf("stopped, since %s; %s", why, d.tally()), about(left))
}

// cancelled ends an operation as its caller asked.
func (d *drain) cancelled() {
	text := "cancelled as asked, before anything was begun"
	if d.op.GetState() == task.OpRunning {
		text = "cancelled as asked; " + d.tally()
		if d.op.GetKind() == Evacuate {
			text += fmt.Sprintf("; %s stays cordoned, and evacuating it again goes on from here", d.e.GetNode())
		}
	}
	d.op.ErrorCode, d.op.ErrorMessage = "CANCELLED", text
	d.finish(task.OpCancelled, text)
}

// about is the context of an error about VMs: each with its reason, by UUID.
func about(moves []*storev1.Move) map[string]string {
	context := map[string]string{"blocked": fmt.Sprint(len(moves))}
	for _, m := range moves[:min(len(moves), mostTold)] {
		context["vm/"+m.GetVmUuid()] = clip(name(m)+": "+m.GetMessage(), mostToldOf)
	}
	return context
}
