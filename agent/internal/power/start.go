package power

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// markCreating is in the journal before libvirt is asked for a QEMU, whose
	// CPUs stand still; markRunning before they are first let run.
	markCreating = "creating"
	markRunning  = "running"
	// markBoot is in the journal before the above, with the id of the boot in
	// which the start was accepted.
	markBoot = worker.MarkBoot
	// resumeTries is how often a resume that libvirt refuses is tried, a second
	// apart.
	resumeTries = 10
	resumeAgain = time.Second
)

// start starts the VM. Until markRunning the guest has not run, so that making
// its QEMU anew after an interruption starts no guest twice.
func (o *order) start(ctx context.Context) *agentv1.TaskOutcome {
	s := &starter{order: o}
	for {
		seen, ok := o.look(ctx)
		if !ok {
			return nil
		}
		out, again := s.step(ctx, seen)
		switch {
		case ctx.Err() != nil:
			return nil // the agent's next start goes on
		case out != nil:
			return out
		}
		if !again && !o.await(ctx, s.after()) {
			return nil
		}
	}
}

// starter is a start at work.
type starter struct {
	*order
	tries int
	err   error // what libvirt last answered to being asked for a QEMU
}

func (s *starter) after() time.Duration {
	if s.tries > 0 {
		return resumeAgain
	}
	return lookEvery
}

// step takes one step; again tells that something has changed.
func (s *starter) step(ctx context.Context, seen hypervisor.Instance) (out *agentv1.TaskOutcome, again bool) {
	began := s.run.Marked(markCreating)
	if !began {
		if by, overtaken := s.run.Overtaken(); overtaken {
			return failure(codeStale, "the start of VM %s was ordered for its placement %d; this node has been told of placement %d since",
				s.name, s.spec.GetGeneration(), by), false
		}
	}
	switch seen.State {
	case agentv1.SideState_SIDE_STATE_RUNNING:
		return &agentv1.TaskOutcome{}, false
	case agentv1.SideState_SIDE_STATE_PAUSED:
		if !began {
			return failure(codePaused, "VM %s is not off but paused: find out why, then virsh resume or destroy it", s.name), false
		}
		return s.letRun(ctx)
	case agentv1.SideState_SIDE_STATE_SHUTOFF:
		return s.create(ctx)
	case agentv1.SideState_SIDE_STATE_INCOMING:
		if began {
			return nil, false // its QEMU is being made: libvirt calls that so too
		}
	}
	return s.inTheWay(seen), false
}

// create asks libvirt for the VM's QEMU.
func (s *starter) create(ctx context.Context) (out *agentv1.TaskOutcome, again bool) {
	switch {
	case s.run.Marked(markRunning):
		return failure(codeStopped, "VM %s was started, and has stopped since", s.name), false
	case s.err != nil && !unanswered(s.err):
		return refused(s.err), false
	case s.cancelled():
		return cancelled(), false
	}
	if out := s.ofThisBoot(ctx); out != nil {
		return out, false
	}
	if err := s.run.Mark(ctx, markCreating); err != nil {
		return unwritten(), false
	}
	// gofail: var startBeforeCreate struct{}
	s.err = s.hv.StartPaused(ctx, s.uuid())
	if s.err != nil {
		s.log.Warn("libvirt did not start the VM", "error", s.err)
	}
	// gofail: var startAfterCreate struct{}
	return nil, !unanswered(s.err)
}

// ofThisBoot refuses to go on with a start that was accepted before the host was
// last booted: after a boot a VM is started on the leader's word alone, which may
// have let another node have it since.
func (s *starter) ofThisBoot(ctx context.Context) *agentv1.TaskOutcome {
	this := markBoot + " " + s.bootID
	switch {
	case s.run.Marked(this):
		return nil
	case s.run.Marked(markBoot):
		return failure(codeRebooted, "the host was restarted while VM %s was being started: it is not started without a new order", s.name)
	}
	for _, mark := range []string{this, markBoot} {
		if err := s.run.Mark(ctx, mark); err != nil {
			return unwritten()
		}
	}
	return nil
}

// letRun lets the guest's CPUs run.
func (s *starter) letRun(ctx context.Context) (out *agentv1.TaskOutcome, again bool) {
	if err := s.run.Mark(ctx, markRunning); err != nil {
		return unwritten(), false
	}
	err := s.hv.Resume(ctx, s.uuid())
	if err == nil {
		// gofail: var startAfterResume struct{}
		s.log.Info("the guest runs")
		return nil, true
	}
	s.log.Error("the guest cannot be let run", "error", err)
	if unanswered(err) {
		return nil, false // libvirt did not say no
	}
	if s.tries++; s.tries < resumeTries {
		return nil, false
	}
	out = refused(err)
	out.ErrorCode = codeResume
	out.ErrorMessage = "VM " + s.name + " is started, but stands paused, and libvirt does not let it run: " + out.ErrorMessage
	return out, false
}

// observeStart says what came of a start whose journal was lost.
func (o *order) observeStart(ctx context.Context) *agentv1.TaskOutcome {
	seen, ok := o.look(ctx)
	switch {
	case !ok:
		return nil
	case seen.State == agentv1.SideState_SIDE_STATE_RUNNING:
		return &agentv1.TaskOutcome{}
	case seen.State == agentv1.SideState_SIDE_STATE_PAUSED:
		return failure(codeInterrupted, "the agent's journal was lost while VM %s was started; it stands paused: virsh resume it, if nobody else paused it", o.name)
	case seen.State == agentv1.SideState_SIDE_STATE_SHUTOFF:
		return failure(codeInterrupted, "the agent's journal was lost while VM %s was started; it is off, and may have run meanwhile", o.name)
	}
	if out := o.inTheWay(seen); out != nil {
		return out
	}
	return failure(codeInterrupted, "the agent's journal was lost while VM %s was started: %s", o.name, seen.Why)
}
