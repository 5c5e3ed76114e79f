package obs

import (
	"context"

	"github.com/hashicorp/go-hclog"
)

// The keys under which a line of the log tells what it is about.
const (
	TraceKey     = "trace_id"
	OperationKey = "operation_id"
	TaskKey      = "task_id"
)

// IDs are what a line of the log is found by; what is empty is left out.
type IDs struct {
	// Trace is W3C's trace id, or whatever else the caller chose as its own.
	Trace     string
	Operation string
	Task      string
}

type idsKey struct{}

// WithIDs gives a context whose work is for those ids, in place of any before.
func WithIDs(ctx context.Context, ids IDs) context.Context {
	return context.WithValue(ctx, idsKey{}, ids)
}

// IDsOf gives the ids that a context's work is for; none are no error.
func IDsOf(ctx context.Context) IDs {
	ids, _ := ctx.Value(idsKey{}).(IDs)
	return ids
}

// Logger gives a log each of whose lines tells the ids of a context.
func Logger(ctx context.Context, log hclog.Logger) hclog.Logger { return IDsOf(ctx).Logger(log) }

// Logger gives a log each of whose lines tells the ids.
func (i IDs) Logger(log hclog.Logger) hclog.Logger {
	args := i.Args()
	if len(args) == 0 {
		return log
	}
	return log.With(args...)
}

// Args are the ids as a line of the log takes them: keys and values.
func (i IDs) Args(more ...any) []any {
	args := make([]any, 0, 6+len(more))
	for _, id := range []struct{ key, value string }{{TraceKey, i.Trace}, {OperationKey, i.Operation}, {TaskKey, i.Task}} {
		if id.value != "" {
			args = append(args, id.key, id.value)
		}
	}
	return append(args, more...)
}
