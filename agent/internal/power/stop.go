package power

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// markBegun is in the journal, after the name of the QEMU that the order is
	// for, before that one is first touched.
	markBegun = "begun"
	// askEvery is how often a guest is asked to shut down: one that boots or
	// waits for its users does not listen.
	askEvery = 10 * time.Second
	// endAgain is the pause between two attempts to end a QEMU.
	endAgain = time.Second
	// endTries is how often libvirt may refuse that.
	endTries = 5
)

// defaultTimeout is how long a guest may take where the order does not say.
const defaultTimeout = 2 * time.Minute

// isOff tells of a VM that nothing need be done to: it is off, or was a guest
// without a definition that has ended meanwhile, or another QEMU has taken the
// place of the one that the order is for.
func (o *order) isOff(seen hypervisor.Instance) bool {
	switch seen.State {
	case agentv1.SideState_SIDE_STATE_SHUTOFF:
		return true
	case agentv1.SideState_SIDE_STATE_ABSENT:
		return o.run.Marked(markBegun)
	}
	return o.run.Marked(markBegun) && !o.run.Marked(o.instance(seen))
}

// begin notes which QEMU the order is for. out is why it is not carried out.
func (o *order) begin(ctx context.Context, seen hypervisor.Instance) (out *agentv1.TaskOutcome) {
	if o.run.Marked(markBegun) {
		return nil
	}
	if out := o.inTheWay(seen); out != nil {
		return out
	}
	if o.cancelled() {
		return cancelled()
	}
	for _, mark := range []string{o.instance(seen), markBegun} {
		if err := o.run.Mark(ctx, mark); err != nil {
			return unwritten()
		}
	}
	return nil
}

// shutDown asks the guest to shut down and waits until it has. The time that it
// may take begins anew with the agent.
func (o *order) shutDown(ctx context.Context) *agentv1.TaskOutcome {
	timeout := time.Duration(o.spec.GetTimeoutMs()) * time.Millisecond
	if timeout == 0 {
		timeout = defaultTimeout
	}
	deadline := time.Now().Add(timeout)
	var asked time.Time
	for times := 0; ; {
		seen, ok := o.look(ctx)
		if !ok {
			return nil
		}
		if o.isOff(seen) {
			return &agentv1.TaskOutcome{}
		}
		if out := o.begin(ctx, seen); out != nil {
			return unlessStopped(ctx, out)
		}
		now := time.Now()
		switch {
		case times == 0 && seen.State == agentv1.SideState_SIDE_STATE_PAUSED && !seen.Ending:
			return failure(codePaused, "VM %s is paused, and its guest cannot listen: virsh resume it first, or destroy it", o.name)
		case o.cancelled():
			return failure(worker.CodeCancelled, "cancelled; the guest was asked to shut down already, and may still do so")
		case !now.Before(deadline):
			return o.late(ctx, timeout)
		case times == 0 || now.Sub(asked) >= askEvery:
			// Not again by an agent that may hang.
			if err := o.hv.AskToShutDown(ctx, o.uuid(), times%2 == 1); err != nil {
				o.log.Warn("the guest was not asked", "error", err)
			}
			times, asked = times+1, now
			// gofail: var shutdownAfterAsked struct{}
		}
		if !o.await(ctx, min(time.Until(deadline), time.Until(asked.Add(askEvery)))) {
			return nil
		}
	}
}

// late is what becomes of a guest that has not shut down in time.
func (o *order) late(ctx context.Context, timeout time.Duration) *agentv1.TaskOutcome {
	if !o.spec.GetForce() {
		return failure(codeTimeout, "the guest of VM %s has not shut down within %s, and goes on", o.name, timeout)
	}
	o.log.Warn("the guest has not shut down in time: its QEMU is ended", "timeout", timeout)
	return o.destroy(ctx)
}

// destroy ends the VM's QEMU: first so that it writes out what it holds, then
// by force.
func (o *order) destroy(ctx context.Context) *agentv1.TaskOutcome {
	var last error
	for tries := 0; ; tries++ {
		seen, ok := o.look(ctx)
		if !ok {
			return nil
		}
		if o.isOff(seen) {
			return &agentv1.TaskOutcome{}
		}
		if out := o.begin(ctx, seen); out != nil {
			return unlessStopped(ctx, out)
		}
		if tries > endTries && !unanswered(last) {
			return refused(last)
		}
		// gofail: var destroyBeforeEnd struct{}
		if last = o.hv.Destroy(ctx, o.uuid(), tries == 0); last == nil {
			continue
		}
		o.log.Warn("the VM's QEMU has not ended", "gracefully", tries == 0, "error", last)
		if tries > 0 && !o.await(ctx, endAgain) {
			return nil
		}
	}
}

// end ends whatever QEMU the VM has, by force: also one that libvirt makes or
// migrates just now. Nothing of it is to be kept.
func (o *order) end(ctx context.Context) *agentv1.TaskOutcome {
	for tries := 0; ; tries++ {
		seen, ok := o.look(ctx)
		if !ok {
			return nil
		}
		if seen.State == agentv1.SideState_SIDE_STATE_ABSENT || seen.State == agentv1.SideState_SIDE_STATE_SHUTOFF {
			return &agentv1.TaskOutcome{}
		}
		// gofail: var discardBeforeEnd struct{}
		last := o.hv.Destroy(ctx, o.uuid(), false)
		if last == nil {
			continue
		}
		o.log.Warn("the VM's QEMU has not ended", "error", last)
		if tries >= endTries && !unanswered(last) {
			return unlessStopped(ctx, refused(last))
		}
		if !o.await(ctx, endAgain) {
			return nil
		}
	}
}

// unlessStopped is nil when the agent stops: the order is gone on with later.
func unlessStopped(ctx context.Context, out *agentv1.TaskOutcome) *agentv1.TaskOutcome {
	if ctx.Err() != nil {
		return nil
	}
	return out
}

// observeEnd says what came of an order to stop whose journal was lost.
func (o *order) observeEnd(ctx context.Context) *agentv1.TaskOutcome {
	seen, ok := o.look(ctx)
	switch {
	case !ok:
		return nil
	case seen.State == agentv1.SideState_SIDE_STATE_SHUTOFF, seen.State == agentv1.SideState_SIDE_STATE_ABSENT:
		return &agentv1.TaskOutcome{}
	}
	return failure(codeInterrupted, "the agent's journal was lost while VM %s was to be stopped; it is not off: order it again if it is still to be", o.name)
}
