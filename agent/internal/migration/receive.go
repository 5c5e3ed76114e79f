package migration

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/tunnel"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
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
	r := &receiver{half: h}
	r.resume = spec.GetResume()
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

	address string // of the tunnel
	sealed  bool   // the tunnel is closed for good
	// pending is until when the copy may still appear though the tunnel is
	// closed: libvirtd was asked for it and had not answered.
	pending time.Time
	fault   *agentv1.TaskOutcome
	arrived time.Time // when the copy was whole
	copied  bool      // the copy was seen while it was not whole
	tries   int
	// downtime is how long the guest stood still.
	downtime time.Duration
}

func (r *receiver) do(ctx context.Context) *agentv1.TaskOutcome {
	if out, ok := r.prepare(ctx); out != nil || !ok {
		return out
	}
	for {
		seen, ok := r.look(ctx)
		if !ok {
			return nil
		}
		r.notice(seen)
		out, again := r.step(ctx, seen)
		if out != nil {
			if !r.close(ctx) {
				return nil
			}
			return out
		}
		if !again && !r.await(ctx, nil, r.lookAfter(seen)) {
			return nil
		}
	}
}

// prepare makes the tunnel ready. ok is false when ctx ended.
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
			return broken(codeInternal, "the agent's journal cannot be written"), ctx.Err() == nil
		}
	}
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
		r.fault = failure(codeExpired, "the right to migrate VM %s has expired", r.right.GetVmName())
		return nil, r.seal(ctx)
	}
	return nil, r.open(ctx)
}

// open makes the tunnel, or finds it. That it cannot be made is no end yet:
// settle ends what the source may have begun through a former one.
func (r *receiver) open(ctx context.Context) bool {
	err := r.tryOpen(ctx)
	if err == nil {
		r.tell(&agentv1.Side{State: absent})
		r.report()
		return true
	}
	r.log.Error("the tunnel could not be made", "error", err)
	r.fault = refused(codeTunnel, err)
	return r.seal(ctx)
}

func (r *receiver) tryOpen(ctx context.Context) error {
	uid, gid, err := r.hypervisor().QEMUOwner(ctx)
	if err != nil {
		return err
	}
	cfg := r.m.cfg
	r.tunnel, err = cfg.Tunnels.Open(ctx, tunnel.Config{
		Role: tunnel.Target, TaskID: r.taskID, RightID: r.right.GetId(), ExpiresAt: time.Unix(r.right.GetExpiresAt(), 0),
		VMUUID: r.right.GetVmUuid(), VMName: r.right.GetVmName(), Cluster: cfg.Cluster, Peer: r.right.GetSourceNode(),
		Certificates: cfg.Files, Host: cfg.TunnelHost, FirstPort: cfg.FirstPort, LastPort: cfg.LastPort,
		LibvirtSocket: cfg.LibvirtSocket, QEMUUser: uid, QEMUGroup: gid,
	})
	if err != nil {
		r.tunnel = cfg.Tunnels.Find(r.right.GetId())
		return err
	}
	r.address = r.tunnel.Address()
	return nil
}

// seal closes the tunnel: what is absent then stays so, once libvirtd has
// answered what it was asked.
func (r *receiver) seal(ctx context.Context) bool {
	for !r.sealed {
		err := r.tunnel.Stop()
		if r.sealed = err == nil; r.sealed {
			if r.tunnel.Pending() {
				r.log.Warn("libvirtd may still make the copy: waiting for it")
				r.pending = time.Now().Add(lateWithin)
			}
			break
		}
		r.log.Error("the tunnel does not close", "error", err)
		if !r.await(ctx, nil, lookEvery) {
			return false
		}
	}
	return true
}

// final tells whether an absent copy will not appear any more.
func (r *receiver) final() bool { return r.sealed && time.Now().After(r.pending) }

// notice tells what was seen, and what the moments of an arrival are.
func (r *receiver) notice(seen hypervisor.Sighting) {
	if seen.State != absent {
		r.pending = time.Time{} // what libvirtd was asked for has come
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
	}
	ended := seen.State == paused || seen.State == running || seen.State == shutoff || seen.State == absent && r.final()
	r.tell(&agentv1.Side{State: seen.State, Ended: ended})
}

func (r *receiver) tell(side *agentv1.Side) {
	if r.cell.set(side) {
		r.log.Info("this side", "state", side.GetState(), "ended", side.GetEnded())
		r.report()
	}
}

func (r *receiver) report() {
	r.run.ProgressNow(&agentv1.TaskProgress{Kind: &agentv1.TaskProgress_MigrateReceive{
		MigrateReceive: &agentv1.MigrateReceiveProgress{TunnelAddress: r.address, Side: r.cell.get()},
	}})
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
	switch do := settle(viewOf(r.other), mine, r.resume); do {
	case resumeTarget:
		return r.letRun(ctx)
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
		return undecided(do, r.right.GetVmName()), false
	default:
		return nil, false
	}
}

// nothing is what to do while the VM is not here. An end that was asked for, or
// a tunnel that is gone, ends the task without the source: nothing can come.
func (r *receiver) nothing(ctx context.Context) (out *agentv1.TaskOutcome, again, done bool) {
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

// letRun resumes the copy: the source is gone.
func (r *receiver) letRun(ctx context.Context) (out *agentv1.TaskOutcome, again bool) {
	err := r.hypervisor().Resume(ctx, r.right.GetVmUuid())
	if err == nil {
		r.downtime = time.Since(r.arrived)
		r.log.Info("the guest goes on here", "after_arrival", r.downtime)
		return nil, true
	}
	r.log.Error("the guest cannot be resumed", "error", err)
	if errdefs.Is(err, errdefs.Unavailable) {
		return nil, false // libvirt did not say no
	}
	if r.tries++; r.tries < resumeTries {
		return nil, false
	}
	out = refused(codeResume, err)
	out.ErrorCode, out.Interrupted = codeResume, false
	out.ErrorMessage = "VM " + r.right.GetVmName() + " has arrived, paused, but libvirt does not resume it: " + out.ErrorMessage
	return out, false
}

// succeed ends a migration whose copy runs, or is paused as the guest was.
func (r *receiver) succeed(ctx context.Context) *agentv1.TaskOutcome {
	uuid := r.right.GetVmUuid()
	if err := r.hypervisor().DisableAutostart(ctx, uuid); err != nil {
		r.log.Warn("autostart is left as it is", "error", err)
	}
	copied, ok, err := r.hypervisor().Downtime(ctx, uuid)
	if err != nil || !ok {
		r.log.Debug("libvirt does not tell the downtime", "error", err)
	}
	return &agentv1.TaskOutcome{DowntimeMs: uint64((copied + r.downtime).Milliseconds())}
}

func (r *receiver) notArrived() *agentv1.TaskOutcome {
	out := failure(codeNotArrived, "VM %s stays on %s", r.right.GetVmName(), r.right.GetSourceNode())
	if r.other.GetReason() != "" {
		out.ErrorMessage += ": " + r.other.GetReason()
	}
	out.Interrupted = r.libvirtLost()
	return out
}
