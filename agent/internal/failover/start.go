package failover

import (
	"context"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	"github.com/debvisor/debvisor/agent/internal/replication"
	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zvol"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// markDefined is in the journal once libvirt has the definition: from then on it is
// not given again, as somebody may have changed it.
const markDefined = "defined"

// startKind is failover-start.
type startKind struct{ f *Failover }

// Name is the kind's.
func (startKind) Name() string { return "failover-start" }

// Do brings the VM back, or goes on where a former process of this agent was.
func (k startKind) Do(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetFailoverStart()
	if spec.GetVmUuid() == "" || spec.GetGeneration() == 0 {
		return failure(codeInternal, "the task %s names no VM or no placement", t.GetId())
	}
	s := &starting{Failover: k.f, task: t, spec: spec, run: run, name: nameOf(spec.GetVmName(), spec.GetVmUuid())}
	return s.do(ctx)
}

// starting is one failover-start at work.
type starting struct {
	*Failover
	task *agentv1.Task
	spec *agentv1.FailoverStart
	run  worker.Run
	name string
}

func (s *starting) do(ctx context.Context) *agentv1.TaskOutcome {
	if !s.run.Marked(markDefined) {
		if out := s.prepare(ctx); out != nil || ctx.Err() != nil {
			return out
		}
		if err := s.run.Mark(ctx, markDefined); err != nil {
			return unwritten(ctx)
		}
	}
	// gofail: var failoverBeforeStart struct{}
	out := &agentv1.TaskOutcome{}
	if s.spec.GetStart() {
		out = s.cfg.Power.Start(ctx, s.task, &agentv1.VMPower{
			Action: agentv1.PowerAction_POWER_ACTION_START, VmUuid: s.spec.GetVmUuid(), VmName: s.spec.GetVmName(), Generation: s.spec.GetGeneration(),
		}, s.run)
	}
	if out != nil {
		out.Failover = &agentv1.FailoverOutcome{Running: s.spec.GetStart() && out.GetErrorCode() == ""}
		if out.GetFailover().GetRunning() {
			out.Failover.StartedMs = time.Now().UnixMilli()
		}
	}
	return out
}

// prepare makes the disks and the definition; nil: all is there.
func (s *starting) prepare(ctx context.Context) *agentv1.TaskOutcome {
	switch by, overtaken := s.run.Overtaken(); {
	case overtaken:
		return failure(codeStale, "VM %s was to be brought back for its placement %d; this node has been told of placement %d since", s.name, s.spec.GetGeneration(), by)
	case cancelled(s.run):
		return failure(worker.CodeCancelled, "cancelled before the VM was defined here")
	case !worker.OfThisBoot(s.run, s.cfg.BootID):
		return failure(codeRebooted, "the host was restarted before VM %s was brought back: that is not gone on with without a new order", s.name)
	}
	seen, ok := s.look(ctx, s.spec.GetVmUuid())
	if !ok {
		return nil
	}
	switch seen.State {
	case agentv1.SideState_SIDE_STATE_ABSENT:
	case agentv1.SideState_SIDE_STATE_SHUTOFF:
		// Of a former attempt, or of its former life here: it is defined anew.
	default:
		// By a former attempt, whose outcome was lost: it has its disks.
		return nil
	}
	text, err := hypervisor.Redefined(s.spec.GetDefinition(), s.spec.GetVmUuid(), s.replaced())
	if err != nil {
		return outcomeOf(ctx, err)
	}
	for _, d := range s.spec.GetDisks() {
		if d.GetDataset() == "" {
			continue
		}
		err := s.patiently(ctx, "making "+d.GetDataset()+" a disk", func(ctx context.Context) error { return s.succeed(ctx, d) })
		if err != nil {
			return outcomeOf(ctx, err)
		}
	}
	// gofail: var failoverBeforeDefine struct{}
	err = s.patiently(ctx, "defining VM "+s.name, func(ctx context.Context) error { return s.cfg.Hypervisor.Define(ctx, text) })
	if err != nil {
		return outcomeOf(ctx, err)
	}
	// gofail: var failoverAfterDefine struct{}
	return nil
}

// replaced are the block devices that replicas take the place of.
func (s *starting) replaced() (all []hypervisor.Replaced) {
	for _, d := range s.spec.GetDisks() {
		if d.GetDataset() != "" {
			all = append(all, hypervisor.Replaced{Target: d.GetTarget(), From: d.GetSourcePath(), To: d.GetPath()})
		}
	}
	return all
}

// succeed makes one replica a disk.
func (s *starting) succeed(ctx context.Context, d *agentv1.FailoverDisk) error {
	if err := replication.Succeed(ctx, s.cfg.ZFS, s.successor(d)); err != nil {
		return err
	}
	v := zvol.Volume{ZFS: s.cfg.ZFS, Disk: &agentv1.DiskTransfer{Target: d.GetTarget(), Path: d.GetPath(), ZfsDataset: d.GetDataset()}}
	return v.Ready(ctx)
}

func (s *starting) successor(d *agentv1.FailoverDisk) replication.Successor {
	return replication.Successor{
		Dataset: d.GetDataset(), Job: d.GetJobId(), SnapshotGUID: d.GetSnapshot().GetGuid(), Back: d.GetReverseJobId(),
		Mark: fmt.Sprintf("%s/%d", s.spec.GetVmUuid(), s.spec.GetGeneration()),
	}
}

// Observe says what came of a start whose journal was lost.
func (k startKind) Observe(ctx context.Context, t *agentv1.Task, run worker.Run) *agentv1.TaskOutcome {
	spec := t.GetSpec().GetFailoverStart()
	s := &starting{Failover: k.f, task: t, spec: spec, run: run, name: nameOf(spec.GetVmName(), spec.GetVmUuid())}
	seen, ok := s.look(ctx, spec.GetVmUuid())
	switch {
	case !ok:
		return nil
	case seen.State == agentv1.SideState_SIDE_STATE_RUNNING:
		return &agentv1.TaskOutcome{Failover: &agentv1.FailoverOutcome{Running: true}}
	case seen.State != agentv1.SideState_SIDE_STATE_SHUTOFF || spec.GetStart():
		return broken("the agent's journal was lost while VM %s was brought back (%s)", s.name, seen.Why)
	}
	for _, d := range spec.GetDisks() {
		if d.GetDataset() == "" {
			continue
		}
		done, err := replication.Succeeded(ctx, s.cfg.ZFS, s.successor(d))
		if err != nil {
			return outcomeOf(ctx, err)
		}
		if !done {
			return broken("the agent's journal was lost before %s was a disk of VM %s", d.GetDataset(), s.name)
		}
	}
	return &agentv1.TaskOutcome{Failover: &agentv1.FailoverOutcome{}}
}

// unwritten is the end where the journal does not take a mark; nil where the agent
// stops.
func unwritten(ctx context.Context) *agentv1.TaskOutcome {
	if ctx.Err() != nil {
		return nil
	}
	return failure(codeInternal, "the agent's journal cannot be written")
}
