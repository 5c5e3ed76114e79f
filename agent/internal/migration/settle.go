package migration

import agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"

// Short names for the states of a side.
const (
	unknown  = agentv1.SideState_SIDE_STATE_UNSPECIFIED
	absent   = agentv1.SideState_SIDE_STATE_ABSENT
	shutoff  = agentv1.SideState_SIDE_STATE_SHUTOFF
	paused   = agentv1.SideState_SIDE_STATE_PAUSED
	running  = agentv1.SideState_SIDE_STATE_RUNNING
	incoming = agentv1.SideState_SIDE_STATE_INCOMING
	outgoing = agentv1.SideState_SIDE_STATE_OUTGOING
)

// view is what is known of one side: its state, and whether libvirt will not
// move it again by itself.
//
// A source has ended when its call to libvirt has returned for good, or never
// will be made, and libvirt has no job on the domain. A target has ended when
// its copy is complete, or when its tunnel is closed, so that nothing can come.
//
// A target is behind when its volumes lack what the guest last wrote on the
// source: the source's last snapshots.
type view struct {
	state  agentv1.SideState
	ended  bool
	behind bool
}

func viewOf(s *agentv1.Side) view { return view{s.GetState(), s.GetEnded(), s.GetBehind()} }

// action is the next thing to be done, by the side that it names, or the end.
type action int

const (
	wait action = iota
	// resumeTarget: the source is gone, its copy here is whole.
	resumeTarget
	// discardTarget: the source goes on, so the copy must not.
	discardTarget
	// sealTarget: close the tunnel, so that what is absent stays absent.
	sealTarget
	// resumeSource: nothing is at the target, and nothing can come there.
	resumeSource
	// undefineSource: the target runs it, the source's definition is left over.
	undefineSource
	// moved: only the target has it, and runs it (or is paused as before).
	moved
	// stayed: only the source has it.
	stayed
	// stopped: the guest runs nowhere; its definitions are left.
	stopped
	// unclear: the source has stopped, and the paused copy may be older than
	// what the guest last wrote: it neither runs nor is thrown away.
	unclear
	// lost: neither side has it.
	lost
	// conflict: both run, or might: nothing may be touched by a program.
	conflict
	// startTarget: the source's definition is gone (offline).
	startTarget
	// startSource: nothing has come of it (offline).
	startSource
	// deliver: the source sends the last snapshots of its volumes, without which
	// the target's copy is nothing that may run.
	deliver
)

// settle decides what is to be done about a VM that is or was being migrated.
// resume tells whether it is to run in the end (it did when the migration was
// ordered, and nobody paused it since).
//
// The reasoning:
//
//   - As long as the source has not ended, libvirt may do anything yet: wait.
//     So a source that runs or copies never lets the target run.
//   - What nobody could see is taken for anything: wait.
//   - A source that has ended and is there (running or paused) is the truth.
//     Its copy was never let run, so it is worth nothing: discard it, unless it
//     runs against all rules: then nobody knows which one has written to disk.
//     A paused source goes on only after its copy was seen gone for good.
//   - A source that has ended and is gone leaves the target's copy as the only
//     one: it is never discarded, and goes on as soon as it is complete.
//   - A source that is only defined (SHUTOFF) has stopped by itself or with its
//     host, and may have gone on after its copy was made (libvirt lets it, when
//     the answer to Finish is lost): such a copy must not run on disks that are
//     newer than its memory, and is not thrown away either. A definition
//     that libvirt left after handing over has not ended before it is gone.
//   - Of two definitions neither goes: the other side may be removing its own.
//   - A copy whose volumes are behind does not run, whatever else is true: the
//     source sends what they lack, which is final as its guest has stopped. That
//     is owed for as long as the target has the VM, also one that has stopped.
func settle(source, target view, resume bool) action {
	if !source.ended || target.state == unknown || target.state == outgoing {
		return wait
	}
	switch source.state {
	case absent:
		return settleGone(target, resume)
	case shutoff:
		return settleDefined(target)
	case paused, running:
		return settleThere(source, target, resume)
	default:
		return wait
	}
}

// settleGone is settle where the source is gone.
func settleGone(target view, resume bool) action {
	switch target.state {
	case running:
		return moved
	case paused:
		return completed(target, resume, moved)
	case shutoff:
		return onceWhole(target, stopped)
	case absent:
		return sealed(target, lost)
	default: // incoming: the only copy there is
		return wait
	}
}

// settleDefined is settle where the source is defined and not active.
func settleDefined(target view) action {
	switch target.state {
	case running:
		return undefineSource
	case paused:
		if !target.ended {
			return wait
		}
		return unclear
	case shutoff:
		return stopped
	case absent:
		return sealed(target, stopped)
	default: // incoming: it becomes whole or goes away
		return wait
	}
}

// settleThere is settle where the source still holds the guest's memory.
func settleThere(source, target view, resume bool) action {
	switch target.state {
	case running:
		return conflict
	case absent:
		if source.state == paused && resume {
			return sealed(target, resumeSource)
		}
		return sealed(target, stayed)
	default:
		return discardTarget
	}
}

// completed resumes a complete copy that is to run; then is for one that stays
// paused. One that might still move is waited for.
func completed(target view, resume bool, then action) action {
	switch {
	case !target.ended:
		return wait
	case target.behind:
		return deliver
	case resume:
		return resumeTarget
	default:
		return then
	}
}

// onceWhole does then, with a target whose volumes are not behind.
func onceWhole(target view, then action) action {
	if target.behind {
		return deliver
	}
	return then
}

// sealed makes sure that an absent copy stays absent, and then does then.
func sealed(target view, then action) action {
	if !target.ended {
		return sealTarget
	}
	return then
}
