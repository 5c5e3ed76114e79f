package task

import (
	"testing"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// moves writes the whole table as facts: a row a state, a column a state it
// may go to, in the order of their numbers; x: allowed.
var moves = []string{
	// from         to: Un As Ac Ru Su Fa Ca
	"Unspecified        .  x  x  x  x  x  x",
	"Assigned           .  .  x  x  x  x  x",
	"Accepted           .  .  .  x  x  x  x",
	"Running            .  .  .  .  x  x  x",
	"Succeeded          .  .  .  .  .  .  .",
	"Failed             .  .  .  .  .  .  .",
	"Cancelled          .  .  .  .  .  .  .",
}

func TestEveryPairOfTaskStates(t *testing.T) {
	for from, row := range moves {
		for to, cell := range cells(t, row) {
			if got := CanMove(State(from), State(to)); got != (cell == "x") {
				t.Errorf("CanMove(%v, %v) = %v", State(from), State(to), got)
			}
			if Recorded(State(to)) != storev1.TaskState(to) {
				t.Errorf("Recorded(%v) has another number", State(to))
			}
		}
	}
	if CanMove(Running, Cancelled+1) {
		t.Error("a state that is not known is accepted")
	}
}

var opMoves = []string{
	// from         to: Un Pe Ru Su Fa Ca
	"Unspecified        .  x  x  x  x  x",
	"Pending            .  .  x  x  x  x",
	"Running            .  .  .  x  x  x",
	"Succeeded          .  .  .  .  .  .",
	"Failed             .  .  .  .  .  .",
	"Cancelled          .  .  .  .  .  .",
}

func TestEveryPairOfOperationStates(t *testing.T) {
	for from, row := range opMoves {
		for to, cell := range cells(t, row) {
			if got := CanMoveOp(OpState(from), OpState(to)); got != (cell == "x") {
				t.Errorf("CanMoveOp(%v, %v) = %v", OpState(from), OpState(to), got)
			}
		}
	}
	if CanMoveOp(OpRunning, OpCancelled+1) {
		t.Error("a state that is not known is accepted")
	}
}

// cells gives the row's marks; no state's name holds a dot or an x.
func cells(t *testing.T, row string) []string {
	t.Helper()
	var out []string
	for _, r := range row {
		if r == '.' || r == 'x' {
			out = append(out, string(r))
		}
	}
	return out
}

func TestTermsAreOrderedByEpochFirst(t *testing.T) {
	old, restored := Term{Epoch: 1, Revision: 900}, Term{Epoch: 2, Revision: 3}
	if !old.Less(restored) || restored.Less(old) || old.Less(old) {
		t.Error("a restore from backup does not begin a newer term")
	}
	if !(Term{Epoch: 1, Revision: 3}).Less(old) {
		t.Error("a later election is not newer")
	}
	if TermOf(restored.Wire()) != restored || TermOf(restored.Record()) != restored {
		t.Error("a term does not survive the wire or the record")
	}
}
