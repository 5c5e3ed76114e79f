package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/agent/internal/zfs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of outcomes, besides those of packages zfs and worker.
const (
	// CodeSourceChanged: the source's dataset or snapshot is not the plan's.
	CodeSourceChanged = "SOURCE_CHANGED"
	// CodeTargetChanged: the target's dataset is not as the plan found it.
	CodeTargetChanged = "TARGET_CHANGED"
	// CodeStreamRefused: the source sent what the plan does not have.
	CodeStreamRefused = "STREAM_REFUSED"
	// CodeTargetRefused: the target claimed, or asked for, what cannot be.
	CodeTargetRefused = "TARGET_REFUSED"
	// CodeExpired: the right has ended before the run did.
	CodeExpired = "RIGHT_EXPIRED"
	// CodeInterrupted: the agent's journal was lost in the middle.
	CodeInterrupted = "INTERRUPTED"
	// CodeStream: the target has no place to listen at.
	CodeStream   = "STREAM_FAILED"
	codeInternal = "INTERNAL"
)

func failure(code, format string, args ...any) *agentv1.TaskOutcome {
	return &agentv1.TaskOutcome{ErrorCode: code, ErrorMessage: fmt.Sprintf(format, args...)}
}

// broken makes an outcome that is worth another attempt.
func broken(code, format string, args ...any) *agentv1.TaskOutcome {
	out := failure(code, format, args...)
	out.Interrupted = true
	return out
}

// definite is an error that no further attempt of this task puts right.
type definite struct{ error }

func (d definite) Unwrap() error { return d.error }

// refuse makes a definite error with a code of ours.
func refuse(code, format string, args ...any) error {
	return definite{errdefs.New(errdefs.FailedPrecondition, code, format, args...)}
}

func isDefinite(err error) bool {
	var d definite
	return errors.As(err, &d)
}

// final tells of an error that ends a run: one that is definite, or of zfs's own
// that will not pass. A connection's never does.
func final(err error) bool {
	return isDefinite(err) || errors.As(err, new(*errdefs.Error)) && !passing(err)
}

// codeOf is an error's code; zfs's general one where it has none.
func codeOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) && e.Code != "" {
		return e.Code
	}
	return zfs.CodeZFS
}

// messageOf is what people are told of an error: what stays inside is left out.
func messageOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// outcomeOf makes a task's end of an error; nil when the agent stops. What no
// further attempt would change is a failure, all else is worth another.
func outcomeOf(ctx context.Context, err error) *agentv1.TaskOutcome {
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return &agentv1.TaskOutcome{}
	}
	out := failure(codeOf(err), "%s", messageOf(err))
	out.Interrupted = !isDefinite(err) && passing(err)
	return out
}

// passing tells of an error of zfs's that may be gone the next time.
func passing(err error) bool {
	switch codeOf(err) {
	case zfs.CodeDatasetBusy, zfs.CodePoolSuspended, zfs.CodeStreamBroken:
		return true
	case zfs.CodeNoSpace, zfs.CodeQuota:
		return false // it may be, but only if somebody makes room
	}
	return errdefs.Is(err, errdefs.Unavailable)
}

func cancelled() *agentv1.TaskOutcome { return failure(worker.CodeCancelled, "cancelled") }

func isCancelled(run worker.Run) bool {
	select {
	case <-run.Cancelled():
		return true
	default:
		return false
	}
}

// untilCancelled gives a context that ends with the task's cancellation as well.
func untilCancelled(ctx context.Context, run worker.Run) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-run.Cancelled():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
