package migration

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// markPrepared is in the journal once the VM was seen not to be here: what
	// is here from then on came by this migration.
	markPrepared = "prepared"
	// arriveSoon is between two looks while libvirt completes the copy: its
	// event comes a moment before its job ends.
	arriveSoon = 10 * time.Millisecond
	// arriveLate is how long after the last byte of memory the arrival of a copy
	// may be seen without the tunnel's word counting instead.
	arriveLate = 500 * time.Millisecond
	// resumeTries is how often a resume that libvirt refuses is tried, a second
	// apart.
	resumeTries = 10
	resumeAgain = time.Second
	// qemuLogs is where libvirt keeps what QEMU says.
	qemuLogs = "/var/log/libvirt/qemu"
	// lateWithin is how long libvirtd may take to start a QEMU for a migration
	// that has broken off meanwhile.
	lateWithin = 20 * time.Second
)

// receiveKind is migrate-receive: the target's half.
type receiveKind struct{ m *Migration }

// Name is the kind's.
func (receiveKind) Name() string { return "migrate-receive" }

// Do takes the VM in, or finishes what a former process of this agent began.
func (k receiveKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetMigrateReceive()
	right := spec.GetRight()
	if right.GetTargetNode() != k.m.cfg.Node {
		return failure(codeInternal, "the migration's target is %q, not this node", right.GetTargetNode())
	}
	h := k.m.begin(ctx, t, right, run, right.GetSourceNode(), spec.GetSourcePeerAddress(), right.GetSendTaskId(), unknown)
	defer h.stop()
	h.resume, h.offline, h.disks = spec.GetResume(), spec.GetOffline(), spec.GetDisks()
	r := &receiver{half: h, spec: spec}
	out := r.do(ctx)
	if out != nil {
		out.Side = h.cell.get()
	}
	return out
}

// Observe finishes what another journal may have begun: it opens no tunnel.
func (k receiveKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	return k.Do(ctx, t, run)
}

// receiver is one migrate-receive at work.
type receiver struct {
	*half
	spec *agentv1.MigrateReceive

	address string // of the tunnel
	sealed  bool   // the tunnel is closed for good
	// pending is until when the copy may still appear though the tunnel is
	// closed: libvirtd was asked for it and had not answered.
	pending time.Time
	// refusals is how much the tunnel was asked for that it did not let in.
	refusals    uint32
	refusedLast string

	fault   *agentv1.TaskOutcome
	arrived time.Time // when the copy was whole
	copied  bool      // the copy was seen while it was not whole
	tries   int
	// downtime is how long the guest stood still, as far as it was here.
	downtime time.Duration
	// taking is our own copy of disks; nil: there is none.
	taking *taking
	// intake is for the streams of the source's volumes; nil: there are none to
	// come (any more). opened: the volumes have the last of them.
	intake *intake
	opened bool
}

func (r *receiver) do(ctx context.Context) *agentv1.TaskOutcome {
	defer r.stopTaking()
	defer r.stopIntake()
	if out, ok := r.prepare(ctx); out != nil || !ok {
		return out
	}
	for {
		seen, ok := r.look(ctx)
		if !ok {
			return nil
		}
		if r.offline && seen.State == shutoff {
			if err := r.run.Mark(ctx, markDefined); err != nil {
				return nil // the agent stops: nobody is told
			}
		}
		r.openVolumes(ctx)
		seen = r.notice(seen)
		r.hearRefusals()
		out, again := r.step(ctx, seen)
		if out != nil {
			return r.finish(ctx, seen, out)
		}
		if !again && !r.await(ctx, nil, r.lookAfter(seen)) {
			return nil
		}
	}
}

// finish clears up and gives the outcome; nil when ctx ended.
func (r *receiver) finish(ctx context.Context, seen hypervisor.Sighting, out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if !r.settleDisks(ctx, seen) || !r.close(ctx) {
		return nil
	}
	if side := proto.CloneOf(r.cell.get()); out.GetErrorCode() != "" && side.GetReason() == "" {
		// So that the source does not wait for what will not come.
		side.Reason = out.GetErrorMessage()
		r.tell(side)
	}
	return out
}

// prepare makes the disks and the tunnel ready. ok is false when ctx ended.
func (r *receiver) prepare(ctx context.Context) (out *agentv1.TaskOutcome, ok bool) {
	seen, ok := r.look(ctx)
	if !ok {
		return nil, false
	}
	if !r.observe && !r.run.Marked(markPrepared) {
		if seen.State != absent {
			r.tell(&agentv1.Side{State: seen.State, Ended: true})
			return failure(codeExists, "VM %s (%s) is on the target already: %s", r.right.GetVmName(), r.right.GetVmUuid(), seen.State), true
		}
		if err := r.run.Mark(ctx, markPrepared); err != nil {
			return journalBroken(), ctx.Err() == nil
		}
	}
	r.startIntake(ctx)
	r.address = r.tunnel.Address()
	if seen.State != absent {
		return nil, true // it is here, or under way: nothing more has to come
	}
	switch {
	case r.observe, r.cancelled():
		return nil, r.seal(ctx)
	case r.address != "" && !r.tunnel.Alive():
		r.fault = broken(codeTunnel, "the target's end of the tunnel has ended")
		return nil, r.seal(ctx)
	case time.Now().Unix() >= r.right.GetExpiresAt():
		r.fault = failure(codeExpired, "the right to migrate VM %s %s", r.right.GetVmName(), worker.Lapsed(r.right.GetExpiresAt()))
		return nil, r.seal(ctx)
	}
	if err := r.makeDisks(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, false
		}
		r.log.Error("the disks could not be made ready", "error", err)
		r.fault = refused(codeDisk, err)
		return nil, r.seal(ctx)
	}
	// gofail: var receiveAfterDisksPrepared struct{}
	return nil, r.open(ctx)
}

// notice tells what was seen, and what the moments of an arrival are. What it
// gives is what was seen in the terms of this migration.
func (r *receiver) notice(seen hypervisor.Sighting) hypervisor.Sighting {
	if r.offline && seen.Fleeting && !r.final() {
		seen.State = incoming // it is to get a definition
	} else if seen.State != absent {
		r.pending = time.Time{} // what libvirtd was asked for has come
	}
	if seen.State != absent {
		r.stopTaking()
	}
	switch seen.State {
	case incoming:
		if !r.copied {
			r.copied = true
			ring(r.kick)
		}
		// gofail: var receiveWhileCopying struct{}
	case paused:
		if r.arrived.IsZero() {
			r.arrived = time.Now()
			if at := r.tunnel.Arrived(); !at.IsZero() && (!r.copied || r.arrived.Sub(at) > arriveLate) {
				r.arrived = at // it came while no agent looked
			}
			r.log.Info("the copy is whole")
			ring(r.kick)
			// gofail: var receiveAfterSwitchover struct{}
		}
	case shutoff:
		if r.offline && r.arrived.IsZero() {
			r.arrived = time.Now()
			r.log.Info("the definition is here")
			ring(r.kick)
			// gofail: var receiveAfterDefinition struct{}
		}
	}
	ended := seen.State == paused || seen.State == running || seen.State == shutoff || seen.State == absent && r.final()
	r.tell(&agentv1.Side{State: seen.State, Ended: ended, Reason: r.fault.GetErrorMessage(), Behind: r.behind()})
	return seen
}

func (r *receiver) tell(side *agentv1.Side) {
	if r.cell.set(side) {
		r.log.Info("this side", "state", side.GetState(), "ended", side.GetEnded())
		r.report()
	}
}

func (r *receiver) report() {
	r.run.ProgressNow(&agentv1.TaskProgress{Kind: &agentv1.TaskProgress_MigrateReceive{
		MigrateReceive: &agentv1.MigrateReceiveProgress{
			TunnelAddress: r.address, Side: r.cell.get(), Refused: r.refusals, RefusedLast: r.refusedLast,
		},
	}})
}

// hearRefusals has the leader told what the tunnel did not let in.
func (r *receiver) hearRefusals() {
	all := r.tunnel.Refusals()
	if n := uint32(len(all)); n > r.refusals {
		r.refusals, r.refusedLast = n, all[n-1].Reason
		r.report()
	}
}

func (r *receiver) lookAfter(seen hypervisor.Sighting) time.Duration {
	switch {
	case seen.State == incoming && seen.Complete:
		return arriveSoon
	case r.tries > 0:
		return resumeAgain
	case r.sealed && !r.final():
		return resumeAgain
	default:
		return lookEvery
	}
}

// step takes one step; again tells that something has changed.
func (r *receiver) step(ctx context.Context, seen hypervisor.Sighting) (out *agentv1.TaskOutcome, again bool) {
	mine := viewOf(r.cell.get())
	if seen.State == absent {
		if out, again, done := r.nothing(ctx); done {
			return out, again
		}
	}
	switch do := r.verdict(viewOf(r.other), mine, r.runs()); do {
	case resumeTarget, startTarget:
		return r.letRun(ctx, seen)
	case sealTarget:
		return nil, r.seal(ctx)
	case discardTarget:
		if r.observe && seen.State == shutoff {
			return failure(codeNotArrived, "VM %s stays on the source; the definition found here was not made by this agent, and is left", r.right.GetVmName()), false
		}
		r.log.Warn("the copy is discarded: the source goes on", "source", r.other.GetState())
		return nil, r.seal(ctx) && r.act("discarding the copy", r.hypervisor().Discard(ctx, r.right.GetVmUuid()))
	case moved:
		return r.succeed(ctx), false
	case stayed, resumeSource:
		return r.notArrived(), false
	case stopped, lost, conflict, unclear:
		if do == stopped && seen.State == absent {
			return r.notArrived(), false
		}
		r.log.Error("only people can put this right", "here", seen.State, "there", r.other.GetState())
		if do == unclear && r.behind() {
			do = deliver
		}
		return undecided(do, r.right.GetVmName()), false
	case deliver:
		if r.cancelled() { // the source's agent has given up
			return undecided(deliver, r.right.GetVmName()), false
		}
		return nil, false
	case undefineSource:
		if r.offline && r.cancelled() {
			return undecided(stopped, r.right.GetVmName()), false // the source's agent has given up
		}
		return nil, false
	default:
		return nil, false
	}
}

// runs tells whether the guest is to run here: not if somebody paused it on the
// source meanwhile.
func (r *receiver) runs() bool { return r.resume && !r.other.GetHeld() }

// nothing is what to do while the VM is not here. An end that was asked for, or
// a tunnel that is gone, ends the task without the source: nothing can come.
func (r *receiver) nothing(ctx context.Context) (out *agentv1.TaskOutcome, again, done bool) {
	if r.taking.failed() && r.fault == nil {
		r.fault = refused(codeDisk, r.taking.err)
		return nil, r.seal(ctx), true
	}
	switch {
	case r.sealed && !r.final():
		return nil, false, true
	case r.sealed && r.cancelled():
		return cancelled(), false, true
	case r.sealed && r.fault != nil:
		return r.fault, false, true
	case r.cancelled():
		return nil, r.seal(ctx), true
	case !r.sealed && !r.tunnel.Alive():
		r.fault = broken(codeTunnel, "the target's end of the tunnel has ended")
		return nil, r.seal(ctx), true
	default:
		return nil, false, false
	}
}

func (r *receiver) notArrived() *agentv1.TaskOutcome {
	// To the source, a call that is not let in looks like a broken connection.
	for _, refusal := range r.tunnel.Refusals() {
		if refusal.Procedure != 0 {
			return failure(codeRefused, "VM %s stays on %s: %s does not let it in: %s", r.right.GetVmName(), r.right.GetSourceNode(), r.right.GetTargetNode(), refusal.Reason)
		}
	}
	if r.tunnel.HungUp() && !r.libvirtLost() {
		return failure(codeHungUp, "QEMU on %s ended while VM %s was copied to it (see %s/%s.log there)",
			r.right.GetTargetNode(), r.right.GetVmName(), qemuLogs, r.right.GetVmName())
	}
	out := failure(codeNotArrived, "VM %s stays on %s", r.right.GetVmName(), r.right.GetSourceNode())
	if r.other.GetReason() != "" {
		out.ErrorMessage += ": " + r.other.GetReason()
	}
	out.Interrupted = r.libvirtLost()
	return out
}
