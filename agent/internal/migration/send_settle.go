package migration

import (
	"context"
	"errors"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// settle does this side's part of what is left to do, until it is done.
func (s *sender) settle(ctx context.Context) *agentv1.TaskOutcome {
	for {
		seen, ok := s.look(ctx)
		if !ok {
			return nil
		}
		reason := ""
		if s.callErr != nil {
			reason = s.callErr.Error()
		}
		if seen.State == absent && !s.progress.GetSwitchingOver() {
			s.progress.SwitchingOver = true
			if s.offline {
				s.hypervisor().Changed(s.right.GetVmUuid())
			}
		}
		if seen.State == absent {
			s.snapLast(ctx)
		}
		s.tell(s.side(seen.State, !s.leftOver(seen), reason))
		out, again := s.step(ctx, seen)
		if out != nil {
			if !s.close(ctx) {
				return nil
			}
			return out
		}
		wait := lookEvery
		if seen.State == absent {
			// Only the target is waited for, which has ended as far as it asks.
			ring(s.kick)
			wait = askOften
		}
		if !again && !s.await(ctx, nil, wait) {
			return nil
		}
	}
}

// step takes one step; again tells that something has changed.
func (s *sender) step(ctx context.Context, seen hypervisor.Sighting) (out *agentv1.TaskOutcome, again bool) {
	if seen.State == absent {
		if !s.deliverLast(ctx) {
			return nil, false
		}
		return s.letGo(ctx), false
	}
	if s.leftOver(seen) {
		if s.other.GetState() == running || s.other.GetState() == paused {
			return nil, s.act("undefining", s.hypervisor().Undefine(ctx, s.right.GetVmUuid()))
		}
		return nil, false
	}
	mine := view{state: seen.State, ended: true}
	if seen.State == outgoing {
		mine.ended = false // a job that nobody should have begun
	}
	if s.offline && (seen.State == running || seen.State == paused) && !s.run.Marked(markLetRun) {
		if err := s.run.Mark(ctx, markRan); err != nil {
			return nil, false
		}
	}
	do := s.verdict(mine, viewOf(s.other), s.runs(seen))
	if s.offline && (do == undefineSource || do == deliver) && (s.observe || s.run.Marked(markRan)) {
		// Its disks may be newer than their copies, or nobody knows of copies.
		do = stopped
	}
	switch do {
	case deliver:
		return nil, s.deliverLast(ctx)
	case resumeSource, startSource:
		return s.goOn(ctx, seen)
	case undefineSource:
		return nil, s.act("undefining", s.hypervisor().Undefine(ctx, s.right.GetVmUuid()))
	case stayed:
		return s.why(), false
	case stopped, lost, conflict, unclear:
		s.log.Error("only people can put this right", "here", seen.State, "there", s.other.GetState())
		return undecided(do, s.right.GetVmName()), false
	default:
		return nil, false
	}
}

// runs tells whether the guest is to run if it stays: not if somebody paused it.
func (s *sender) runs(seen hypervisor.Sighting) bool {
	return s.resume && (s.offline || s.paused || !seen.Held && !s.held)
}

// goOn has the guest run here again.
func (s *sender) goOn(ctx context.Context, seen hypervisor.Sighting) (out *agentv1.TaskOutcome, again bool) {
	if !s.offline {
		s.log.Warn("the guest goes on here: its copy is gone")
		return nil, s.act("resuming", s.hypervisor().Resume(ctx, s.right.GetVmUuid()))
	}
	if seen.State == shutoff && s.run.Marked(markLetRun) {
		return s.why(), false // it ran, and has shut down since
	}
	s.log.Warn("the guest is started here again: nothing of it is on the target")
	out = s.why()
	if !s.startAgain(ctx, out) {
		return nil, false
	}
	if seen, ok := s.look(ctx); ok && seen.State == shutoff {
		return out, false // it did not start: the outcome says so
	}
	return nil, true
}

// letGo ends a migration whose source is gone: the files that were copied go
// with it, once the VM was seen on the target as it is to be.
func (s *sender) letGo(ctx context.Context) *agentv1.TaskOutcome {
	if len(s.disks.leftovers()) == 0 {
		return &agentv1.TaskOutcome{} // whatever the target has, nothing is left to do here
	}
	switch filingFor(s.other, s.resume && !s.held, s.offline) {
	case filesRemove:
		if s.removeFiles(ctx) {
			return &agentv1.TaskOutcome{}
		}
	case filesKeep:
		s.log.Warn("the files of the VM's disks are left here", "target", s.other.GetState(), "reason", s.other.GetReason())
		return &agentv1.TaskOutcome{}
	default:
		if s.cancelled() {
			s.log.Warn("the files of the VM's disks are left here: the VM was not seen on the target")
			return &agentv1.TaskOutcome{}
		}
		s.progress.Phase = phaseTarget
	}
	return nil
}

// leftOver tells of a definition that goes as soon as the copy is seen: libvirt
// has handed the guest over, and died or failed before it let go. Where the
// target has no copy after all, it is not.
func (s *sender) leftOver(seen hypervisor.Sighting) bool {
	if s.offline || seen.State != shutoff || !seen.Handed {
		return false
	}
	switch s.other.GetState() {
	case absent, shutoff:
		return false
	default:
		return true
	}
}

// why tells why the VM stayed here.
func (s *sender) why() *agentv1.TaskOutcome {
	var e *errdefs.Error
	switch {
	case s.end != nil:
		// Also where the leader has asked for an end meanwhile, as it does when
		// the target's side has ended of this one's giving up.
		return s.end
	case s.cancelled() && (s.cut || errdefs.Is(s.callErr, errdefs.Cancelled)):
		return cancelled()
	case errdefs.Is(s.callErr, errdefs.Cancelled):
		return cancelled()
	case !s.took:
		return broken(codeInterrupted, "the source's agent was restarted, and the migration did not come to its end")
	case errdefs.Is(s.callErr, errdefs.Unavailable) || s.libvirtLost():
		return broken(codeInterrupted, "the source's libvirtd was restarted during the migration")
	case s.tunnel.Broken() != "" || !s.tunnel.Alive():
		s.log.Warn("the tunnel broke", "how", s.tunnel.Broken())
		return broken(codeTunnel, "the connection between the two nodes broke: %s", s.tunnel.Broken())
	case s.callErr == nil:
		return failure(codeNotArrived, "libvirt says that it migrated VM %s, but it is still here and not there", s.right.GetVmName())
	case errors.As(s.callErr, &e):
		return refused(hypervisor.CodeLibvirt, s.callErr)
	default:
		return failure(hypervisor.CodeLibvirt, "%v", s.callErr)
	}
}
