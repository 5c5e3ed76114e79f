package drain

import (
	"cmp"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/task"
)

// away gives the moves that bring back what the evacuations of a node since its
// last complete restore have moved away: the VMs that are still where they were
// put, in the order in which they left.
func away(s *cluster.Snapshot, node string) []*storev1.Move {
	put := map[string]*storev1.Move{}
	var order []string
	for _, op := range drains(s, node) {
		if op.GetKind() == Restore && op.GetState() == task.OpSucceeded {
			clear(put)
		}
		for _, m := range op.GetEvacuate().GetMoves() {
			switch {
			case m.GetState() != moved || m.GetOperation() == "":
			case op.GetKind() == Restore:
				delete(put, m.GetVmUuid())
			default:
				put[m.GetVmUuid()] = m
				order = append(order, m.GetVmUuid())
			}
		}
	}
	var moves []*storev1.Move
	for _, uuid := range order {
		m, ok := put[uuid]
		vm := s.VMs[uuid].Value
		if !ok || vm.GetNode() != m.GetTarget() || vm.GetNode() == node {
			continue
		}
		delete(put, uuid)
		moves = append(moves, &storev1.Move{
			VmUuid: uuid, VmName: cmp.Or(vm.GetName(), m.GetVmName()), Source: m.GetTarget(), Target: node, State: waiting,
		})
	}
	return moves
}

// drains gives the ended evacuations and restores of a node, oldest first.
func drains(s *cluster.Snapshot, node string) []*storev1.Operation {
	var found []*storev1.Operation
	for _, entry := range s.Operations {
		op := entry.Value
		if (op.GetKind() == Evacuate || op.GetKind() == Restore) && op.GetEvacuate().GetNode() == node && task.OpEnded(op.GetState()) {
			found = append(found, op)
		}
	}
	slices.SortFunc(found, func(a, b *storev1.Operation) int {
		return cmp.Or(a.GetEndedAt().AsTime().Compare(b.GetEndedAt().AsTime()), strings.Compare(a.GetId(), b.GetId()))
	})
	return found
}
