package migration

// settleOffline is settle for a VM that is shut off while it is moved. resume
// tells whether it is to run in the end.
//
// The reasoning, where it differs from settle's:
//
//   - There is no memory that could be older than a disk: a copy is worth as much
//     as the source for as long as the source has not run since. Its disks were
//     whole before libvirt was asked to move the definition.
//   - So of two definitions the source's goes, by the hand of the source's agent,
//     once libvirt's call has ended: whatever libvirt may still do about it is the
//     same. The target starts its own only when the source's is gone: a definition
//     can be started by anybody at any time.
//   - A source that runs (somebody started it) is the truth, and has written
//     since: the target's definition goes, unless that runs too.
//   - The source is started again only when nothing is at the target for good.
//   - A target's volumes may be behind although all was sent: it has not heard
//     which snapshots were the last. Until it has, both definitions stay.
//   - VMs are started with their CPUs standing still, and let run in a step of its
//     own: PAUSED is a start that was cut short, and is carried on.
func settleOffline(source, target view, resume bool) action {
	if !source.ended || target.state == unknown || target.state == outgoing || target.state == incoming && source.state != running {
		return wait
	}
	switch source.state {
	case absent:
		return offlineGone(target, resume)
	case shutoff:
		return offlineDefined(target, resume)
	case paused, running:
		return offlineStarted(source, target, resume)
	default:
		return wait
	}
}

// offlineGone is settleOffline where the source's definition is gone.
func offlineGone(target view, resume bool) action {
	switch {
	case target.state == absent:
		return sealed(target, lost)
	case target.behind && target.state != running:
		return deliver
	case target.state == shutoff && resume:
		return startTarget
	case target.state == paused && resume:
		return resumeTarget
	default:
		return moved
	}
}

// offlineDefined is settleOffline where the source is defined and not active.
func offlineDefined(target view, resume bool) action {
	switch {
	case target.state != absent && target.state != running:
		return onceWhole(target, undefineSource)
	case target.state == running:
		return undefineSource
	case resume:
		return sealed(target, startSource)
	default:
		return sealed(target, stayed)
	}
}

// offlineStarted is settleOffline where the source is active.
func offlineStarted(source, target view, resume bool) action {
	switch target.state {
	case running, paused:
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
