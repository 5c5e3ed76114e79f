package store

import (
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
)

// OperationIDs are what lines about an operation are found by; none for nil.
func OperationIDs(op *storev1.Operation) obs.IDs {
	return obs.IDs{Trace: op.GetTraceId(), Operation: op.GetId()}
}

// TaskIDs are what lines about a task are found by; none for nil.
func TaskIDs(t *storev1.Task) obs.IDs {
	return obs.IDs{Trace: obs.TraceOf(t.GetTraceparent()), Operation: t.GetOperationId(), Task: t.GetId()}
}
