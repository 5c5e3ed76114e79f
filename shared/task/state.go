package task

import (
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// State is a task's state, as agents and records number it.
type State = agentv1.TaskState

// The states of a task.
const (
	Unspecified = agentv1.TaskState_TASK_STATE_UNSPECIFIED
	Assigned    = agentv1.TaskState_TASK_STATE_ASSIGNED
	Accepted    = agentv1.TaskState_TASK_STATE_ACCEPTED
	Running     = agentv1.TaskState_TASK_STATE_RUNNING
	Succeeded   = agentv1.TaskState_TASK_STATE_SUCCEEDED
	Failed      = agentv1.TaskState_TASK_STATE_FAILED
	Cancelled   = agentv1.TaskState_TASK_STATE_CANCELLED
)

// CanMove tells whether a task may go from one state to another. States only
// grow and an ended one never changes; staying is no move.
func CanMove(from, to State) bool {
	return from != to && !Ended(from) && to > from && to <= Cancelled
}

// Ended tells whether a task in that state will never change again.
func Ended(s State) bool { return s >= Succeeded && s <= Cancelled }

// Recorded is a state as records number it; the numbers are the same.
func Recorded(s State) storev1.TaskState { return storev1.TaskState(s) }

// OpState is an operation's state.
type OpState = storev1.OperationState

// The states of an operation.
const (
	OpUnspecified = storev1.OperationState_OPERATION_STATE_UNSPECIFIED
	OpPending     = storev1.OperationState_OPERATION_STATE_PENDING
	OpRunning     = storev1.OperationState_OPERATION_STATE_RUNNING
	OpSucceeded   = storev1.OperationState_OPERATION_STATE_SUCCEEDED
	OpFailed      = storev1.OperationState_OPERATION_STATE_FAILED
	OpCancelled   = storev1.OperationState_OPERATION_STATE_CANCELLED
)

// CanMoveOp tells whether an operation may go from one state to another. Only
// a new one (OpUnspecified: no record yet) may be born ended: a change that is
// one transaction.
func CanMoveOp(from, to OpState) bool {
	return from != to && !OpEnded(from) && to > from && to <= OpCancelled
}

// OpEnded tells whether an operation in that state will never change again.
func OpEnded(s OpState) bool { return s >= OpSucceeded && s <= OpCancelled }
