package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/debvisor/debvisor/agent/internal/rbd"
	"github.com/debvisor/debvisor/agent/internal/worker"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of outcomes, besides those of packages rbd, freeze and worker.
const (
	// CodeInterrupted: the agent's journal was lost in the middle.
	CodeInterrupted = "INTERRUPTED"
	// CodeInGroup: a snapshot that goes with those of other images only, which are
	// not to be removed.
	CodeInGroup  = "SNAPSHOT_IN_GROUP"
	codeInternal = "INTERNAL"
)

// errCancelled ends a task that was cancelled in time.
var errCancelled = errdefs.New(errdefs.Cancelled, worker.CodeCancelled, "cancelled")

func failure(code, format string, args ...any) *agentv1.TaskOutcome {
	return &agentv1.TaskOutcome{ErrorCode: code, ErrorMessage: fmt.Sprintf(format, args...)}
}

// broken makes an outcome that is worth another attempt.
func broken(format string, args ...any) *agentv1.TaskOutcome {
	out := failure(CodeInterrupted, format, args...)
	out.Interrupted = true
	return out
}

// end makes a task's end of an error; nil when the agent stops. What no further
// attempt would change is a failure, a cluster that was not waited for any longer
// is worth another.
func (w *work) end(ctx context.Context, err error) *agentv1.TaskOutcome {
	switch {
	case err == nil:
		return &agentv1.TaskOutcome{}
	case ctx.Err() != nil:
		return nil
	case passing(err) && isCancelled(w.run) && !w.unknown:
		return failure(worker.CodeCancelled, "cancelled while Ceph did not answer; nothing was done")
	case passing(err) && isCancelled(w.run):
		return failure(rbd.CodeUnknown, "cancelled while Ceph did not say whether it was done: %s", messageOf(err))
	}
	out := failure(codeOf(err), "%s", messageOf(err))
	out.Interrupted = passing(err)
	return out
}

// observed is end for what was only looked at.
func observed(ctx context.Context, err error) *agentv1.TaskOutcome {
	switch {
	case err == nil:
		return &agentv1.TaskOutcome{}
	case ctx.Err() != nil:
		return nil
	}
	out := failure(codeOf(err), "%s", messageOf(err))
	out.Interrupted = passing(err)
	return out
}

// codeOf is an error's code.
func codeOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) && e.Code != "" {
		return e.Code
	}
	return codeInternal
}

// messageOf is what people are told of an error: what stays inside is left out.
func messageOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// passing tells of an error that says nothing of what Ceph has done or would do.
func passing(err error) bool { return errdefs.Is(err, errdefs.Unavailable) }

// missing tells of an image or a snapshot that is not there.
func missing(err error) bool { return errdefs.Is(err, errdefs.NotFound) }

// isGone tells of one that is not there, or is another by now.
func isGone(err error) bool { return missing(err) || codeOf(err) == rbd.CodeImageReplaced }

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
