package hypervisor

import (
	"context"
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Sighting is what libvirt says of one domain at one moment.
type Sighting struct {
	// State is what it is to a migration. OUTGOING and INCOMING mean that
	// libvirt works on it; Absent has all else unset, but for Fleeting.
	State agentv1.SideState
	// Fleeting: libvirt knows the domain, which has neither QEMU nor definition:
	// it is about to be removed, or, where only a definition moves, to get one.
	Fleeting bool
	// Held: it is paused for a reason of its own (a user, an I/O error), and
	// not because of a migration.
	Held bool
	// Switching: it is OUTGOING and stands still: for the switch-over, or because
	// somebody paused it meanwhile; libvirt's reason is the same.
	Switching bool
	// Complete: it is INCOMING and whole; libvirt is about to end its job.
	Complete bool
	// Handed: it is SHUTOFF because libvirt has handed it over to another host.
	// libvirt forgets that when it is restarted.
	Handed     bool
	Persistent bool
	// Why is libvirt's state and reason, for logs.
	Why string

	state libvirt.DomainState
}

// Look tells how a domain stands.
func (h *Hypervisor) Look(ctx context.Context, uuid string) (Sighting, error) {
	absent := Sighting{State: agentv1.SideState_SIDE_STATE_ABSENT, Why: "no such domain"}
	return onDomain(ctx, h, "looking at domain "+uuid, uuid, func(d *libvirt.Domain) (Sighting, error) {
		s, err := sight(d)
		if errors.Is(err, errFleeting) {
			s, err = absent, nil
			s.Fleeting, s.Why = true, errFleeting.Message
		}
		return s, err
	}, absent)
}

// errFleeting is for whoever lists what there is: such a domain is not there.
var errFleeting = libvirt.Error{Code: libvirt.ERR_NO_DOMAIN, Message: "the domain has neither QEMU nor definition"}

// sight reads state, reason and job. The job is asked first: a job that ends in
// between makes the sighting older, never newer, than it claims. One that begins
// in between is asked for once more where it matters.
func sight(d *libvirt.Domain) (Sighting, error) {
	in, out, err := migrating(d)
	if err != nil {
		return Sighting{}, err
	}
	state, reason, err := d.GetState()
	if err != nil {
		return Sighting{}, err
	}
	persistent, err := d.IsPersistent()
	if err != nil {
		return Sighting{}, err
	}
	if !persistent && !in && state == libvirt.DOMAIN_SHUTOFF {
		// On its way out: libvirt tells of an end a moment before it forgets
		// the domain, and tells nothing more.
		return Sighting{}, errFleeting
	}
	if state == libvirt.DOMAIN_PAUSED && !in && !out {
		// Paused, and no job was seen before: one that began in between must
		// not make a half copy look like a whole one.
		if in, out, err = migrating(d); err != nil {
			return Sighting{}, err
		}
	}
	s := Sighting{Persistent: persistent, state: state, Why: fmt.Sprintf("state %d reason %d", state, reason)}
	s.State, s.Held = judge(state, libvirt.DomainPausedReason(reason), in, out)
	if state == libvirt.DOMAIN_PAUSED {
		s.Switching = out
		s.Complete = in && libvirt.DomainPausedReason(reason) == libvirt.DOMAIN_PAUSED_USER
	}
	s.Handed = state == libvirt.DOMAIN_SHUTOFF && libvirt.DomainShutoffReason(reason) == libvirt.DOMAIN_SHUTOFF_MIGRATED
	return s, nil
}

// judge maps libvirt's words. Seen with 9.0.0: a target's copy is PAUSED for
// STARTING_UP, then for MIGRATION, with an incoming job; once complete and to
// stay paused (VIR_MIGRATE_PAUSED) it is PAUSED for USER, without a job. A
// source that is left over is PAUSED for MIGRATION without a job.
func judge(state libvirt.DomainState, reason libvirt.DomainPausedReason, in, out bool) (agentv1.SideState, bool) {
	switch {
	case out:
		return agentv1.SideState_SIDE_STATE_OUTGOING, false
	case in:
		return agentv1.SideState_SIDE_STATE_INCOMING, false
	}
	switch state {
	case libvirt.DOMAIN_SHUTOFF, libvirt.DOMAIN_CRASHED:
		return agentv1.SideState_SIDE_STATE_SHUTOFF, false
	case libvirt.DOMAIN_RUNNING, libvirt.DOMAIN_BLOCKED, libvirt.DOMAIN_SHUTDOWN, libvirt.DOMAIN_PMSUSPENDED:
		return agentv1.SideState_SIDE_STATE_RUNNING, false
	case libvirt.DOMAIN_PAUSED:
		switch reason {
		case libvirt.DOMAIN_PAUSED_STARTING_UP:
			return agentv1.SideState_SIDE_STATE_INCOMING, false
		case libvirt.DOMAIN_PAUSED_MIGRATION, libvirt.DOMAIN_PAUSED_UNKNOWN, libvirt.DOMAIN_PAUSED_API_ERROR:
			return agentv1.SideState_SIDE_STATE_PAUSED, false
		}
		return agentv1.SideState_SIDE_STATE_PAUSED, true
	default:
		return agentv1.SideState_SIDE_STATE_UNSPECIFIED, false
	}
}

// migrating tells whether libvirt is receiving or sending the domain. Of a job
// that receives, libvirt refuses to tell the statistics, and that tells it.
func migrating(d *libvirt.Domain) (in, out bool, err error) {
	job, err := d.GetJobStats(0)
	switch {
	case has(err, libvirt.ERR_OPERATION_UNSUPPORTED):
		return true, false, nil
	case has(err, libvirt.ERR_OPERATION_INVALID), has(err, libvirt.ERR_NO_SUPPORT):
		return false, false, nil // not active, or a driver without jobs
	case err != nil:
		return false, false, err
	}
	// A job whose data is through is COMPLETED while libvirt finishes it.
	if job.Type == libvirt.DOMAIN_JOB_NONE || !job.OperationSet {
		return false, false, nil
	}
	return job.Operation == libvirt.DOMAIN_JOB_OPERATION_MIGRATION_IN,
		job.Operation == libvirt.DOMAIN_JOB_OPERATION_MIGRATION_OUT, nil
}

func active(job *libvirt.DomainJobInfo) bool {
	return job.Type == libvirt.DOMAIN_JOB_BOUNDED || job.Type == libvirt.DOMAIN_JOB_UNBOUNDED
}

// vmState is the state for the inventory. A domain whose CPUs run is RUNNING
// though libvirt has still to end the job that brought it.
func (s Sighting) vmState() debvisorv1.VMState {
	switch {
	case s.state == libvirt.DOMAIN_RUNNING:
		return debvisorv1.VMState_VM_STATE_RUNNING
	case s.State == agentv1.SideState_SIDE_STATE_INCOMING:
		return debvisorv1.VMState_VM_STATE_INCOMING
	case s.state == libvirt.DOMAIN_CRASHED:
		return debvisorv1.VMState_VM_STATE_CRASHED
	case s.state == libvirt.DOMAIN_SHUTOFF:
		return debvisorv1.VMState_VM_STATE_SHUTOFF
	case s.state == libvirt.DOMAIN_PAUSED:
		return debvisorv1.VMState_VM_STATE_PAUSED
	default:
		return debvisorv1.VMState_VM_STATE_RUNNING
	}
}
