package failover

import (
	"context"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/replication"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// markLooked is in the journal once the VM has been looked at, markRan before it
	// if it had a QEMU.
	markLooked = "looked"
	markRan    = "ran"
)

// discardKind is failover-discard.
type discardKind struct{ f *Failover }

// Name is the kind's.
func (discardKind) Name() string { return "failover-discard" }

// Do destroys the copy, or goes on where a former process of this agent was.
func (k discardKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetFailoverDiscard()
	if spec.GetVmUuid() == "" || spec.GetGeneration() == 0 {
		return failure(codeInternal, "the task %s names no VM or no placement", t.GetId())
	}
	d := &discarding{Failover: k.f, task: t, spec: spec, run: run, name: nameOf(spec.GetVmName(), spec.GetVmUuid())}
	out := d.do(ctx)
	if out != nil {
		out.Failover = &agentv1.FailoverOutcome{WasRunning: run.Marked(markRan)}
	}
	return out
}

// discarding is one failover-discard at work.
type discarding struct {
	*Failover
	task *agentv1.Task
	spec *agentv1.FailoverDiscard
	run  worker.Run
	name string
}

func (d *discarding) do(ctx context.Context) *agentv1.TaskOutcome {
	if by, overtaken := d.run.Overtaken(); overtaken {
		return failure(codeStale, "the copy of VM %s of placement %d was to be destroyed; this node has been told of placement %d since, which may be its own",
			d.name, d.spec.GetGeneration(), by)
	}
	if out := d.begin(ctx); out != nil || ctx.Err() != nil {
		return out
	}
	// It is never cancelled: until the copy is gone, nobody knows that it is.
	out := d.cfg.Power.Destroy(ctx, d.task, &agentv1.VMPower{
		Action: agentv1.PowerAction_POWER_ACTION_DESTROY, VmUuid: d.spec.GetVmUuid(), VmName: d.spec.GetVmName(), Generation: d.spec.GetGeneration(),
	}, d.run)
	if out.GetErrorCode() != "" || ctx.Err() != nil {
		return out
	}
	// gofail: var failoverAfterDestroy struct{}
	if err := d.undefine(ctx); err != nil {
		return outcomeOf(ctx, err)
	}
	// gofail: var failoverAfterUndefine struct{}
	for _, former := range d.spec.GetDatasets() {
		err := d.patiently(ctx, "making "+former.GetDataset()+" a copy", func(ctx context.Context) error {
			return replication.Retire(ctx, d.cfg.ZFS, formerOf(former))
		})
		if err != nil {
			return outcomeOf(ctx, err)
		}
	}
	return &agentv1.TaskOutcome{}
}

// begin notes whether the VM had a QEMU; nil: the rest may follow.
func (d *discarding) begin(ctx context.Context) *agentv1.TaskOutcome {
	if d.run.Marked(markLooked) {
		return nil
	}
	seen, ok := d.look(ctx, d.spec.GetVmUuid())
	if !ok {
		return nil
	}
	if active(seen) {
		if err := d.run.Mark(ctx, markRan); err != nil {
			return unwritten(ctx)
		}
	}
	if err := d.run.Mark(ctx, markLooked); err != nil {
		return unwritten(ctx)
	}
	return nil
}

// undefine takes the definition away, and looks whether it is.
func (d *discarding) undefine(ctx context.Context) error {
	return d.patiently(ctx, "undefining VM "+d.name, func(ctx context.Context) error {
		if err := d.cfg.Hypervisor.Undefine(ctx, d.spec.GetVmUuid()); err != nil {
			return err
		}
		seen, err := d.cfg.Hypervisor.Instance(ctx, d.spec.GetVmUuid())
		if err == nil && seen.State != agentv1.SideState_SIDE_STATE_ABSENT {
			err = errdefs.New(errdefs.Unavailable, codeThere, "the copy of VM %s is still there (%s)", d.name, seen.Why)
		}
		return err
	})
}

// active tells whether there is a QEMU.
func active(seen hypervisor.Instance) bool {
	return seen.State != agentv1.SideState_SIDE_STATE_ABSENT && seen.State != agentv1.SideState_SIDE_STATE_SHUTOFF
}

func formerOf(f *agentv1.FailoverFormerSource) replication.Former {
	return replication.Former{Dataset: f.GetDataset(), GUID: f.GetGuid(), Job: f.GetJobId(), Back: f.GetReverseJobId()}
}

// Observe tells whether anything is left.
func (k discardKind) Observe(ctx context.Context, t *agentv1.Task, _ worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetFailoverDiscard()
	name := nameOf(spec.GetVmName(), spec.GetVmUuid())
	seen, ok := k.f.look(ctx, spec.GetVmUuid())
	switch {
	case !ok:
		return nil
	case seen.State != agentv1.SideState_SIDE_STATE_ABSENT:
		return broken("the agent's journal was lost before the copy of VM %s was gone (%s)", name, seen.Why)
	}
	for _, former := range spec.GetDatasets() {
		done, err := replication.Retired(ctx, k.f.cfg.ZFS, formerOf(former))
		if err != nil {
			return outcomeOf(ctx, err)
		}
		if !done {
			return broken("the agent's journal was lost before %s was a copy", former.GetDataset())
		}
	}
	return &agentv1.TaskOutcome{Failover: &agentv1.FailoverOutcome{}}
}
