package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/planner"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// maxAttempts bounds how often an attempt that a daemon's death interrupted
	// is followed by another.
	maxAttempts = 5
	// rightLife is how long an attempt's tunnel may be used.
	rightLife = 24 * time.Hour
	// clearUpTime is how long after an attempt's end what it left behind may still
	// show in the inventory.
	clearUpTime = 10 * time.Minute
)

// moment is what a decision needs besides the records.
type moment struct {
	now     time.Time
	rightID string
	term    task.Term
	// facts are what agents were asked; ask has more asked. Both may be nil.
	facts planner.Facts
	ask   func([]planner.Question)
	// world is the snapshot, read for planning once for all that is decided on it;
	// nil: it is read when it is needed.
	world func() *planner.World
}

// stepName names a step, for logs and failpoints.
type stepName string

const (
	stepBegin        stepName = "begin"
	stepSend         stepName = "send"
	stepCopying      stepName = "copying"
	stepProgress     stepName = "progress"
	stepSwitchedOver stepName = "switched-over"
	stepCancelTask   stepName = "cancel-task"
	stepSucceed      stepName = "succeed"
	stepFail         stepName = "fail"
	stepCancelled    stepName = "cancelled"
	stepOff          stepName = "node-off"
	stepRefused      stepName = "tunnel-refused"
)

// step is one transaction of one operation.
type step struct {
	name      stepName
	operation string
	log       string
	change    store.Change

	// What the change writes, for those who look at a step.
	op        *storev1.Operation
	vm        *storev1.VM   // where the placement moves
	task      *storev1.Task // with stepOff, and the new one with stepBegin and stepSend
	errorCode string
	audit     *audit.Event // what is in the audit log before the step is taken
}

// about is what a line about the step tells.
func (s *step) about(more ...any) []any {
	return store.OperationIDs(s.op).Args(append([]any{"step", s.name}, more...)...)
}

// migration is one operation with all that is decided on.
type migration struct {
	moment
	snapshot *cluster.Snapshot
	entry    cluster.Entry[*storev1.Operation]
	op       *storev1.Operation // a copy: what the step will write
	m        *storev1.Migrate   // of op
	receive  *half
	send     *half // nil until written
}

// half is one of an attempt's two tasks.
type half struct {
	entry    cluster.Entry[*storev1.Task]
	task     *storev1.Task
	progress agentv1.TaskProgress
	outcome  agentv1.TaskOutcome
}

func (h *half) ended() bool { return h != nil && task.Ended(task.State(h.task.GetState())) }

func (h *half) succeeded() bool {
	return h != nil && task.State(h.task.GetState()) == task.Succeeded
}

// decide gives the next step of a migration; nil: there is none yet. It is pure.
func decide(s *cluster.Snapshot, entry cluster.Entry[*storev1.Operation], at moment) *step {
	op := proto.CloneOf(entry.Value)
	if op.GetMigrate() == nil {
		op.Detail = &storev1.Operation_Migrate{Migrate: &storev1.Migrate{}}
	}
	m := &migration{moment: at, snapshot: s, entry: entry, op: op, m: op.GetMigrate()}
	if op.GetState() == task.OpPending {
		if op.GetCancelRequested() {
			return m.cancelled()
		}
		return m.begin()
	}
	var err error
	if m.receive, err = m.half(receiveKind); err == nil {
		m.send, err = m.half(sendKind)
	}
	if err != nil {
		return m.broken(err.Error())
	}
	if m.receive == nil {
		return m.broken("the task of the target is missing from the records")
	}
	if s := m.refusals(); s != nil {
		return s
	}
	if s := m.told(); s != nil {
		return s
	}
	switch {
	case !m.m.GetSwitchedOver() && m.seenSwitchOver():
		return m.switchedOver()
	case m.receive.ended() && (m.send == nil || m.send.ended()):
		return m.end()
	}
	return m.drive()
}

// drive is the next step while at least one of the two tasks is at work.
func (m *migration) drive() *step {
	if m.send == nil {
		switch {
		case m.op.GetCancelRequested():
			return m.cancelTask(m.receive, "cancelling before anything was sent")
		case m.receive.progress.GetMigrateReceive().GetTunnelAddress() != "":
			return m.sendTask()
		}
		return m.note("preparing " + m.m.GetTarget() + m.unheard(m.m.GetTarget()))
	}
	switch {
	case m.receive.ended() && !m.receive.succeeded():
		// The target has given up: what the source still does is in vain.
		if s := m.cancelTask(m.send, "the target's task has ended"); s != nil {
			return s
		}
	case m.send.ended() && !m.send.succeeded():
		if s := m.cancelTask(m.receive, "the source's task has ended"); s != nil {
			return s
		}
	case m.op.GetCancelRequested() && !m.send.ended():
		if s := m.cancelTask(m.send, "cancelling"); s != nil {
			return s
		}
	}
	return m.progress()
}

// seenSwitchOver tells whether it is too late to cancel.
func (m *migration) seenSwitchOver() bool {
	return m.send.succeeded() || m.receive.succeeded() ||
		(m.send != nil && m.send.progress.GetMigrateSend().GetSwitchingOver())
}

func (m *migration) switchedOver() *step {
	m.m.SwitchedOver = true
	m.op.Step = "switching over"
	return m.step(stepSwitchedOver, "the switch-over has begun")
}

// passing tells whether everything against a plan goes away when a daemon of
// ours is back, or once an attempt that broke off has been cleared up: that is
// no reason to fail an operation that was taken on.
func (m *migration) passing(plan planner.Result) bool {
	codes := []string{
		planner.SourceNotHeard, planner.SourceLibvirt, planner.NodeNotHeard, planner.NodeLibvirt, planner.CPUNotCompared,
	}
	if m.m.GetAttempt() > 0 && m.now.Sub(m.brokeOff()) < clearUpTime {
		codes = append(codes, planner.UUIDClash, planner.NameClash, planner.VMNotRunning, planner.VMConflict, planner.DiskExists)
	}
	passes := func(r planner.Reason) bool { return slices.Contains(codes, r.Code) }
	all := func(reasons []planner.Reason) bool {
		return !slices.ContainsFunc(reasons, func(r planner.Reason) bool { return !passes(r) })
	}
	return all(plan.Reasons) && slices.ContainsFunc(plan.Nodes, func(v planner.Verdict) bool {
		return (plan.Target == "" || v.Node == plan.Target) && all(v.Reasons)
	})
}

// brokeOff is when the last of an attempt's tasks ended, which may be hours after
// it began.
func (m *migration) brokeOff() time.Time {
	last := m.m.GetAttemptAt().AsTime()
	for _, h := range []*half{m.receive, m.send} {
		if h == nil {
			continue
		}
		if at := h.task.GetEndedAt(); at != nil && at.AsTime().After(last) {
			last = at.AsTime()
		}
	}
	return last
}

// refused is what comes of a plan that is not allowed when the leader makes it:
// the operation waits for what passes, and fails otherwise, since the caller
// was told of it as taken on.
func (m *migration) refused(plan planner.Result) *step {
	first := m.m.GetAttempt() == 0
	switch passing := m.passing(plan) && !m.confirmedOff(plan.Source, m.m.GetTarget()); {
	case passing && first:
		return m.note("waiting to begin: " + plan.Refusal())
	case passing:
		return m.note("waiting to go on: " + plan.Refusal())
	}
	name := cmp.Or(plan.Name, m.m.GetVmName(), m.m.GetVmUuid())
	text := fmt.Sprintf("VM %s cannot move, and nothing was begun: %s", name, plan.Refusal())
	if !first {
		text = fmt.Sprintf("attempt %d to move VM %s broke off (%s), and another cannot begin: %s",
			m.m.GetAttempt(), name, m.why(), plan.Refusal())
	}
	return m.failWith("PLAN_REFUSED", text, map[string]string{"reasons": strings.Join(plan.Codes(), ",")})
}

// comparing is how long an operation that may choose its target waits for hosts
// to compare CPUs before it chooses among those that have.
const comparing = 5 * time.Second

// begin writes the first task of an attempt: the target makes itself ready.
func (m *migration) begin() *step {
	first := m.op.GetState() == task.OpPending
	vm := m.snapshot.VMs[m.m.GetVmUuid()]
	if why := m.full(vm.Value.GetNode(), m.m.GetTarget()); first && why != "" {
		return m.note("waiting to begin: " + why)
	}
	plan := m.plan()
	if len(plan.Questions) > 0 && m.ask != nil {
		m.ask(plan.Questions)
		if m.m.GetTarget() == "" && m.now.Sub(m.op.GetCreatedAt().AsTime()) < comparing {
			return m.note("waiting to begin: hosts compare CPUs")
		}
	}
	if !plan.Allowed {
		return m.refused(plan)
	}
	if why := m.full(plan.Source, plan.Target); first && why != "" {
		return m.note("waiting to begin: " + why)
	}
	var domain agentv1.Domain
	if err := proto.Unmarshal(vm.Value.GetDomain(), &domain); err != nil {
		return m.fail("BROKEN_RECORD", fmt.Sprintf("the record of VM %s cannot be read", m.m.GetVmUuid()))
	}
	if first {
		m.op.State = task.OpRunning
		m.op.StartedAt = timestamppb.New(m.now)
		m.m.WasRunning = domain.GetState() == debvisorv1.VMState_VM_STATE_RUNNING
		m.m.Estimate = encoded(plan.Estimate)
	} else if s := m.stopped(&domain); s != nil {
		return s
	}
	return m.attempt(plan, vm)
}

// settledAfter is how long a node has to report how an attempt left the VM.
const settledAfter = 5 * time.Second

// stopped is the end of a migration whose guest ran when it was ordered, and
// does not when an attempt has broken off, without our having shut it down; nil:
// it is not so. There is nothing left to be moved live, and nobody asked for the
// move of a VM that is off.
func (m *migration) stopped(domain *agentv1.Domain) *step {
	switch domain.GetState() {
	case debvisorv1.VMState_VM_STATE_SHUTOFF, debvisorv1.VMState_VM_STATE_CRASHED:
	default:
		return nil
	}
	if !m.m.GetWasRunning() || m.offline() {
		return nil
	}
	if m.now.Sub(m.brokeOff()) < settledAfter {
		return m.note("waiting to go on: " + m.m.GetSource() + " reports how the move left the VM")
	}
	return m.fail("GUEST_STOPPED", fmt.Sprintf(
		"%s has stopped on %s while it was moved: its QEMU ended or its host was restarted; it is shut off there and can be started (attempt %d: %s)",
		m.m.GetVmName(), m.m.GetSource(), m.m.GetAttempt(), m.why()))
}

// plan judges the move as things are now.
func (m *migration) plan() planner.Result {
	r := planner.Request{
		VM: m.m.GetVmUuid(), Source: m.m.GetSource(), Target: m.m.GetTarget(), TargetOnly: true, Operation: m.op.GetId(),
		AllowDowntime: m.m.GetAllowDowntime(), Options: m.options(), Facts: m.facts,
		// Its callers read what comes of it, and it may have been another's VM by
		// the time it was asked for.
		Tenant: m.op.GetTenant(),
	}
	if m.world == nil {
		return planner.Plan(m.snapshot, r)
	}
	return m.world().Plan(r)
}

// attempt writes the first task of what was planned.
func (m *migration) attempt(plan planner.Result, vm cluster.Entry[*storev1.VM]) *step {
	m.m.Attempt++
	m.m.AttemptAt = timestamppb.New(m.now)
	m.m.VmName, m.m.Source, m.m.Target = plan.Name, plan.Source, plan.Target
	m.m.Method, m.m.Disks = int32(plan.Method), nil
	m.chooseStreams(vm.Value)
	for _, disk := range plan.Disks {
		m.m.Disks = append(m.m.Disks, encoded(disk))
	}
	m.op.Step = "preparing " + plan.Target
	m.op.Progress = nil
	right := &agentv1.MigrationRight{
		Id: m.rightID, VmUuid: m.m.GetVmUuid(), VmName: plan.Name, SourceNode: plan.Source, TargetNode: plan.Target,
		Term: m.term.Wire(), ExpiresAt: m.now.Add(rightLife).Unix(),
		SendTaskId: m.taskID(sendKind), ReceiveTaskId: m.taskID(receiveKind),
	}
	var err error
	if m.m.Right, err = proto.Marshal(right); err != nil {
		return m.fail("INTERNAL", "the right of the migration could not be encoded")
	}
	s := m.step(stepBegin, fmt.Sprintf("moving %s from %s to %s, attempt %d", plan.Name, plan.Source, plan.Target, m.m.GetAttempt()))
	// What the plan was made on must still be so.
	s.change.Require = append(
		s.change.Require, store.Unchanged(store.VMKey(m.m.GetVmUuid()), vm.ModRevision),
		store.Unchanged(store.NodeKey(plan.Target), m.snapshot.Nodes[plan.Target].ModRevision),
	)
	return m.withTask(s, receiveKind, plan.Target, &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_MigrateReceive{
		MigrateReceive: &agentv1.MigrateReceive{
			Right: right, SourcePeerAddress: m.peerAddress(plan.Source), Resume: m.m.GetWasRunning(),
			Disks: plan.Disks, Offline: m.offline(), ParallelConnections: m.streams(),
			Generation: vm.Value.GetGeneration() + 1,
		},
	}})
}

// sendTask writes the attempt's second task: the source moves the VM.
func (m *migration) sendTask() *step {
	spec, err := m.sendSpec()
	if err != nil {
		return m.broken(err.Error())
	}
	m.op.Step = "starting on " + m.m.GetSource()
	s := m.step(stepSend, "the target is ready")
	return m.withTask(s, sendKind, m.m.GetSource(), &agentv1.TaskSpec{Kind: &agentv1.TaskSpec_MigrateSend{MigrateSend: spec}})
}

// cancelTask asks for a task's end; nil where that was asked already.
func (m *migration) cancelTask(h *half, why string) *step {
	if h.ended() || h.task.GetCancelRequested() {
		return nil
	}
	t := proto.CloneOf(h.task)
	t.CancelRequested = true
	m.op.Step = "cancelling"
	s := m.step(stepCancelTask, "ending "+t.GetId()+": "+why)
	s.change.Require = append(s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), h.entry.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
	return s
}

// end is the last step of an attempt whose tasks have all ended.
func (m *migration) end() *step {
	interrupted := !m.notLetIn() && (m.receive.outcome.GetInterrupted() || (m.send != nil && m.send.outcome.GetInterrupted()))
	cancel := m.op.GetCancelRequested()
	source := m.send.sideState()
	switch {
	case m.receive.succeeded() && (source == agentv1.SideState_SIDE_STATE_ABSENT || m.off() == m.send):
		return m.succeed() // the target lets it run only once the source has let go
	case m.receive.succeeded():
		return m.fail("SOURCE_NOT_GONE", fmt.Sprintf(
			"%s runs on %s, but %s still has a copy of it (%s): look at it with virsh before anything else",
			m.m.GetVmName(), m.m.GetTarget(), m.m.GetSource(), m.send.why()))
	case m.off() != nil:
		return m.nodeLost()
	case cancel && holds(source): // otherwise it came too late, and the VM has left
		return m.cancelled()
	case interrupted && !cancel && m.m.GetAttempt() < maxAttempts:
		return m.begin()
	case interrupted && !cancel:
		return m.fail("INTERRUPTED", fmt.Sprintf("%d attempts were interrupted, the last: %s", maxAttempts, m.why()))
	}
	return m.fail("MIGRATION_FAILED", m.where()+": "+m.why())
}

// where tells which node is left with the VM, as the two agents last saw it.
// The placement follows by itself where that is the target: the inventory
// adopts a VM that is gone from its node.
func (m *migration) where() string {
	name, source, target := m.m.GetVmName(), m.m.GetSource(), m.m.GetTarget()
	onTarget := holds(m.receive.sideState())
	switch {
	case m.send == nil, holds(m.send.sideState()) && !onTarget:
		return fmt.Sprintf("%s stays on %s", name, source)
	case holds(m.send.sideState()):
		return fmt.Sprintf("both %s and %s have %s and neither lets it run: look at both with virsh", source, target, name)
	case onTarget && len(m.m.GetDisks()) > 0: // the source keeps them unless it sees the VM running there
		return fmt.Sprintf("%s is on %s now, but not as it was: look at it there; files of its disks may be left on %s", name, target, source)
	case onTarget:
		return fmt.Sprintf("%s is on %s now, but not as it was: look at it there", name, target)
	}
	return fmt.Sprintf("neither %s nor %s has %s any more", source, target, name)
}

// holds tells whether a side has the VM, or may have it.
func holds(s agentv1.SideState) bool { return s != agentv1.SideState_SIDE_STATE_ABSENT }

// notLetIn tells whether the target's tunnel did not let libvirt's call in, which the
// source sees as a broken connection: it would not in another attempt either.
func (m *migration) notLetIn() bool { return m.receive.outcome.GetErrorCode() == codeTunnelRefused }

// why is the reason for a failed attempt: the source's, which has libvirt's
// own words, or the target's where nothing was sent.
func (m *migration) why() string {
	if m.receive != nil && (m.receive.outcome.GetErrorCode() == codeUnclear || m.notLetIn()) {
		return m.receive.why() // what people have to decide
	}
	if m.send != nil && m.send.outcome.GetErrorCode() == codeLibvirt && m.receive.outcome.GetErrorCode() == codeQEMUEnded {
		return m.receive.why() + ": " + m.send.why() // libvirt may know of a broken connection only
	}
	if m.send != nil && !m.send.succeeded() {
		return m.send.why()
	}
	return m.receive.why()
}

func (h *half) why() string {
	if h == nil {
		return "it was never asked"
	}
	if msg := h.outcome.GetErrorMessage(); msg != "" {
		return msg
	}
	return task.State(h.task.GetState()).String()
}

func (h *half) sideState() agentv1.SideState {
	if h == nil {
		return agentv1.SideState_SIDE_STATE_UNSPECIFIED
	}
	return h.outcome.GetSide().GetState()
}
