package migration

import (
	"errors"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of outcomes, besides hypervisor's and worker's.
const (
	codeNotRunning  = "VM_NOT_RUNNING"
	codeExists      = "VM_EXISTS_ON_TARGET"
	codeTunnel      = "TUNNEL_FAILED"
	codeRefused     = "TUNNEL_REFUSED"
	codeInterrupted = "INTERRUPTED"
	codeNotArrived  = "NOT_ARRIVED"
	codeHungUp      = "QEMU_ENDED"
	codeResume      = "RESUME_FAILED"
	codeStopped     = "GUEST_STOPPED"
	codeUnclear     = "COPY_UNCLEAR"
	codeBehind      = "COPY_BEHIND"
	codeTransient   = "VM_NOT_PERSISTENT"
	codeLost        = "VM_LOST"
	codeConflict    = "VM_CONFLICT"
	codeExpired     = "RIGHT_EXPIRED"
	codeInternal    = "INTERNAL"
	codeStart       = "START_FAILED"
	codeStarted     = "VM_STARTED"
	codeSaved       = "VM_SAVED"
	codeNoShutdown  = "GUEST_DID_NOT_SHUT_DOWN"
	codeForsaken    = "TARGET_GAVE_UP"
	codeDeadline    = "DEADLINE_EXCEEDED"
	codeStalled     = "STALLED"
)

// failure makes a failed outcome. The side is added where the task ends.
func failure(code, format string, args ...any) *agentv1.TaskOutcome {
	return &agentv1.TaskOutcome{ErrorCode: code, ErrorMessage: fmt.Sprintf(format, args...)}
}

// broken makes an outcome that is worth another attempt.
func broken(code, format string, args ...any) *agentv1.TaskOutcome {
	out := failure(code, format, args...)
	out.Interrupted = true
	return out
}

// endOf is the outcome of a migration that was given up for being too slow.
func endOf(code string, spec *agentv1.MigrateSend) *agentv1.TaskOutcome {
	if code == codeStalled {
		return failure(code, "nothing was copied for %s: the migration was given up", time.Duration(spec.GetStallMs())*time.Millisecond)
	}
	return failure(code, "memory and disks were not copied within %s: the migration was given up", time.Duration(spec.GetDeadlineMs())*time.Millisecond)
}

func journalBroken() *agentv1.TaskOutcome {
	return broken(codeInternal, "the agent's journal cannot be written")
}

func cancelled() *agentv1.TaskOutcome {
	return failure(worker.CodeCancelled, "cancelled before the switch-over")
}

// refused makes an outcome of an error: libvirt's own words where it spoke.
func refused(code string, err error) *agentv1.TaskOutcome {
	var e *errdefs.Error
	if !errors.As(err, &e) {
		return failure(code, "%v", err)
	}
	out := failure(e.Code, "%s", e.Message)
	if e.Code == "" {
		out.ErrorCode = code
	}
	out.Interrupted = e.Kind == errdefs.Unavailable || e.Code == hypervisor.CodeBroken
	return out
}

// undecided is the outcome of what only people can put right.
func undecided(end action, name string) *agentv1.TaskOutcome {
	switch end {
	case conflict:
		return failure(codeConflict, "VM %s runs on both nodes: neither was touched; decide which one is right, and destroy the other", name)
	case unclear:
		return failure(codeUnclear, "VM %s has stopped on the source, and a whole copy of it stands paused on the target; "+
			"nobody can tell whether the source had gone on after the copy was made: virsh resume the copy only if it had not, else destroy the copy", name)
	case deliver:
		return failure(codeBehind, "VM %s is on the target without what it last wrote on the source: its volumes there are read-only, so that it cannot go on; "+
			"the source's are whole: destroy and undefine the copy on the target, and define and start the VM on the source", name)
	case lost:
		return failure(codeLost, "VM %s is on neither node: somebody removed it during the migration", name)
	default:
		return failure(codeStopped, "VM %s has stopped running during the migration; its definition is where the outcome says", name)
	}
}
