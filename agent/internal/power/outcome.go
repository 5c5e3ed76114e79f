package power

import (
	"errors"
	"fmt"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of outcomes, besides hypervisor's and worker's.
const (
	codeNotFound    = "VM_NOT_FOUND"
	codeMigrating   = "VM_MIGRATING"
	codePaused      = "VM_PAUSED"
	codeTransient   = "VM_NOT_PERSISTENT"
	codeStale       = "STALE_PLACEMENT"
	codeStopped     = "GUEST_STOPPED"
	codeRebooted    = "HOST_RESTARTED"
	codeResume      = "RESUME_FAILED"
	codeTimeout     = "SHUTDOWN_TIMEOUT"
	codeInterrupted = "INTERRUPTED"
	codeInternal    = "INTERNAL"
)

func failure(code, format string, args ...any) *agentv1.TaskOutcome {
	return &agentv1.TaskOutcome{ErrorCode: code, ErrorMessage: fmt.Sprintf(format, args...)}
}

func cancelled() *agentv1.TaskOutcome {
	return failure(worker.CodeCancelled, "cancelled before anything was done")
}

func unwritten() *agentv1.TaskOutcome {
	return failure(codeInternal, "the agent's journal cannot be written")
}

// refused makes an outcome of an error: libvirt's own words where it spoke.
func refused(err error) *agentv1.TaskOutcome {
	var e *errdefs.Error
	if errors.As(err, &e) && e.Code != "" {
		return failure(e.Code, "%s", e.Message)
	}
	return failure(hypervisor.CodeLibvirt, "%v", err)
}

// unanswered tells of an error that says nothing of what libvirt did.
func unanswered(err error) bool { return errdefs.Is(err, errdefs.Unavailable) }

// inTheWay is why nothing can be done to a VM as it was found; nil: nothing is
// in the way.
func (o *order) inTheWay(seen hypervisor.Instance) *agentv1.TaskOutcome {
	switch seen.State {
	case agentv1.SideState_SIDE_STATE_ABSENT:
		return failure(codeNotFound, "libvirt knows no VM %s on this node", o.name)
	case agentv1.SideState_SIDE_STATE_INCOMING, agentv1.SideState_SIDE_STATE_OUTGOING:
		return failure(codeMigrating, "VM %s is being migrated, past DebVisor", o.name)
	}
	if !seen.Persistent {
		return failure(codeTransient, "VM %s has no persistent definition, and would be gone once it is off: define it first (virsh define)", o.name)
	}
	return nil
}
