package migrate

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	// codeOff is the code of a task that was ended without its agent, on an
	// operator's word that its node is powered off, and of its operation.
	codeOff = "NODE_OFF"
	// codeUnclear is the agents' code for a copy that nobody may let run.
	codeUnclear = "COPY_UNCLEAR"
	// codeTunnelRefused is theirs for a call that the target's tunnel did not let in.
	codeTunnelRefused = "TUNNEL_REFUSED"
	// codeQEMUEnded is theirs for a target's QEMU that ended in the middle of a copy,
	// codeLibvirt for what libvirt says by itself.
	codeQEMUEnded = "QEMU_ENDED"
	codeLibvirt   = "LIBVIRT_ERROR"
)

// told ends an open task of a node that an operator says is powered off; nil:
// there is none. What is known then, and relayed to the other node, is no more
// than this: nothing of the VM runs there. A target's copy is gone, since it
// was in memory. A source's guest has stopped, and may have gone on after its
// copy was made, so that the copy is still not let run.
func (m *migration) told() *step {
	for _, h := range []*half{m.receive, m.send} {
		if h == nil || h.ended() || !m.snapshot.ConfirmedOff(h.task.GetNode()) {
			continue
		}
		side := &agentv1.Side{State: agentv1.SideState_SIDE_STATE_ABSENT, Ended: true}
		if h == m.send {
			side.State = agentv1.SideState_SIDE_STATE_SHUTOFF
		}
		node := m.snapshot.Nodes[h.task.GetNode()].Value
		side.Reason = fmt.Sprintf("%s is powered off, by the word of %s (%s)", node.GetId(), node.GetOffConfirmedBy(), node.GetOffReason())
		outcome, err := proto.Marshal(&agentv1.TaskOutcome{ErrorCode: codeOff, ErrorMessage: side.GetReason(), Side: side})
		if err != nil {
			return m.broken("the end of a task could not be encoded")
		}
		t := proto.CloneOf(h.task)
		t.State, t.Outcome, t.EndedAt = task.Recorded(task.Failed), outcome, timestamppb.New(m.now)
		m.op.Step = side.GetReason()
		s := m.step(stepOff, "ending "+t.GetId()+": "+side.GetReason())
		// A sign of life that came meanwhile makes the word void.
		s.change.Require = append(
			s.change.Require, store.Unchanged(store.TaskKey(t.GetId()), h.entry.ModRevision),
			store.Unchanged(store.NodeKey(node.GetId()), m.snapshot.Nodes[node.GetId()].ModRevision),
			store.Unchanged(store.StatusKey(node.GetId()), m.snapshot.Statuses[node.GetId()].ModRevision),
		)
		s.change.Puts = append(s.change.Puts, store.PutProto(store.TaskKey(t.GetId()), t))
		s.task = t
		return s
	}
	return nil
}

// off is the half that was ended by told; nil: neither was.
func (m *migration) off() *half {
	for _, h := range []*half{m.receive, m.send} {
		if h != nil && h.outcome.GetErrorCode() == codeOff {
			return h
		}
	}
	return nil
}

// nodeLost is the end of an operation one of whose nodes is off: what is left
// where, and what can be done about it.
func (m *migration) nodeLost() *step {
	if m.send == nil || m.send.sideState() != agentv1.SideState_SIDE_STATE_ABSENT {
		return m.fail(codeOff, m.where()+": "+m.why())
	}
	// The source had let go, and the only copy was in the memory of the target:
	// that is where the definition is, and the placement.
	name, target := m.m.GetVmName(), m.m.GetTarget()
	s := m.fail(codeOff, fmt.Sprintf(
		"%s had just moved to %s when that lost its power: it can be started there, from its disks, when %s is back", name, target, target))
	entry := m.snapshot.VMs[m.m.GetVmUuid()]
	if entry.Value == nil || entry.Value.GetNode() != m.m.GetSource() {
		return s
	}
	vm := proto.CloneOf(entry.Value)
	vm.Node = target
	vm.Generation++
	s.change.Require = append(s.change.Require, store.Unchanged(store.VMKey(vm.GetUuid()), entry.ModRevision))
	s.change.Puts = append(s.change.Puts, store.PutProto(store.VMKey(vm.GetUuid()), vm))
	s.vm = vm
	return s
}

// broken is for records that cannot be read. What agents are still at goes on
// holding the VM: its end is asked for first.
func (m *migration) broken(why string) *step {
	open := false
	for _, entry := range m.snapshot.TasksOf(m.op.GetId()) {
		if task.Ended(task.State(entry.Value.GetState())) {
			continue
		}
		open = true
		if s := m.cancelTask(&half{entry: entry, task: entry.Value}, why); s != nil {
			return s
		}
	}
	if open {
		return m.note("waiting for the agents to end: " + why)
	}
	return m.fail("BROKEN_RECORD", why)
}

// confirmedOff tells whether one of the nodes of a move that has no task there
// is said to be off: then waiting for it is in vain.
func (m *migration) confirmedOff(nodes ...string) bool {
	for _, node := range nodes {
		if node != "" && m.snapshot.ConfirmedOff(node) {
			return true
		}
	}
	return false
}

// defaultParallel is how many migrations may leave a node at once, and as many
// arrive, where the node says nothing else.
const defaultParallel = 2

func parallel(node *storev1.Node) int {
	if n := node.GetParallelMigrations(); n > 0 {
		return int(n)
	}
	return defaultParallel
}

// full tells, for people, that no further migration may begin from the source
// or to the target now; empty: it may.
func (m *migration) full(source, target string) string {
	leaving, arriving := 0, 0
	for _, entry := range m.snapshot.ActiveOperations() {
		other := entry.Value.GetMigrate()
		if other == nil || entry.Value.GetId() == m.op.GetId() || entry.Value.GetState() != task.OpRunning {
			continue
		}
		if other.GetSource() == source {
			leaving++
		}
		if target != "" && other.GetTarget() == target {
			arriving++
		}
	}
	from, to := parallel(m.snapshot.Nodes[source].Value), parallel(m.snapshot.Nodes[target].Value)
	switch {
	case source != "" && leaving >= from:
		return fmt.Sprintf("%d migrations leave %s already, as many as may at once", leaving, source)
	case target != "" && arriving >= to:
		return fmt.Sprintf("%d migrations arrive on %s already, as many as may at once", arriving, target)
	}
	return ""
}
