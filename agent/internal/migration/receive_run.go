package migration

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// letRun resumes the copy, or starts the VM: the source is gone.
func (r *receiver) letRun(ctx context.Context, seen hypervisor.Sighting) (out *agentv1.TaskOutcome, again bool) {
	code, doing := codeResume, "resume"
	if r.offline {
		if seen.State == shutoff && r.run.Marked(markLetRun) {
			return undecided(stopped, r.right.GetVmName()), false // it ran, and has ended
		}
		code, doing = codeStart, "start"
	}
	err := r.letRunStep(ctx, seen)
	if err == nil {
		return nil, true
	}
	r.log.Error("the guest cannot be let run", "error", err)
	if errdefs.Is(err, errdefs.Unavailable) {
		return nil, false // libvirt did not say no
	}
	if r.tries++; r.tries < resumeTries {
		return nil, false
	}
	out = refused(code, err)
	out.ErrorCode, out.Interrupted = code, false
	out.ErrorMessage = "VM " + r.right.GetVmName() + " has arrived, but libvirt does not " + doing + " it: " + out.ErrorMessage
	return out, false
}

func (r *receiver) letRunStep(ctx context.Context, seen hypervisor.Sighting) error {
	if r.offline {
		if seen.State == shutoff {
			if err := r.ownDisks(ctx); err != nil {
				return err
			}
		}
		if err := r.startStep(ctx, seen); err != nil || seen.State == shutoff {
			return err
		}
		// gofail: var receiveAfterStart struct{}
		r.ran(r.stoodStill())
		return nil
	}
	// What is noted is the guest's standstill to within this call, and costs it
	// nothing; whoever finds the guest running has it from there.
	r.noteRan(time.Since(r.arrived))
	if err := r.hypervisor().Resume(ctx, r.right.GetVmUuid()); err != nil {
		return err
	}
	// gofail: var receiveAfterResume struct{}
	r.ran(time.Since(r.arrived))
	return nil
}

// stoodStill is for how long a guest that was shut down on the source has.
func (r *receiver) stoodStill() time.Duration {
	if r.other.GetStillMs() == 0 {
		return time.Since(r.arrived) // nobody knows since when
	}
	return time.Duration(r.other.GetStillMs())*time.Millisecond + time.Since(r.heard)
}

func (r *receiver) ran(after time.Duration) {
	r.downtime = after
	r.log.Info("the guest goes on here", "stood_still", r.downtime)
	r.noteRan(after)
}

// noteStandstill is where the agent's next process finds how long the guest
// stood still.
const noteStandstill = "standstill"

func (r *receiver) noteRan(after time.Duration) {
	if err := r.tunnel.Note(noteStandstill, after.String()); err != nil {
		r.log.Debug("the standstill is not noted", "error", err)
	}
}

// succeed ends a migration whose copy runs, or is paused as the guest was.
func (r *receiver) succeed(ctx context.Context) *agentv1.TaskOutcome {
	uuid := r.right.GetVmUuid()
	if err := r.hypervisor().DisableAutostart(ctx, uuid); err != nil {
		r.log.Warn("autostart is left as it is", "error", err)
	}
	if r.downtime == 0 {
		r.downtime, _ = time.ParseDuration(r.tunnel.Noted(noteStandstill)) // by this agent's former process
	}
	if r.offline {
		return &agentv1.TaskOutcome{DowntimeMs: uint64(r.downtime.Milliseconds())}
	}
	copied, ok, err := r.hypervisor().Downtime(ctx, uuid)
	if err != nil || !ok {
		r.log.Debug("libvirt does not tell the downtime", "error", err)
	}
	return &agentv1.TaskOutcome{DowntimeMs: uint64((copied + r.downtime).Milliseconds())}
}
