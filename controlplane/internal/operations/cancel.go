package operations

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// Cancel asks for an operation's end; its controller sees to it. It does not
// wait: Cancelled tells what came of it. To ask twice is to ask once. Errors:
// NotFound; FailedPrecondition when it can no longer be cancelled.
func (o *Operations) Cancel(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	for {
		changed := o.view.Changed()
		entry, ok := o.view.Current().Operations[id]
		if !ok {
			_, err := o.Get(id)
			return err
		}
		if err := cancellable(entry.Value); err != nil {
			return err
		}
		if entry.Value.GetCancelRequested() || entry.Value.GetState() == task.OpCancelled {
			return nil
		}
		op := proto.CloneOf(entry.Value)
		op.CancelRequested = true
		revision, err := o.store.Commit(ctx, store.Change{
			Require: []store.Condition{store.Unchanged(store.OperationKey(id), entry.ModRevision)},
			Puts:    []store.Put{store.PutProto(store.OperationKey(id), op)},
		})
		switch {
		case err == nil:
			_ = o.view.Await(ctx, revision) // it is asked for, whatever becomes of the view
			return nil
		case ctx.Err() != nil:
			return unknown(id, err)
		case !isConflict(err) && !errdefs.Is(err, errdefs.Unavailable):
			return err
		}
		// Somebody else changed it, or nobody knows: look again.
		if err := settle(ctx, changed); err != nil {
			return unknown(id, err)
		}
	}
}

// Cancelled refuses an ended operation that ended otherwise than by being
// cancelled.
func Cancelled(op *storev1.Operation) error {
	if op.GetState() == task.OpCancelled {
		return nil
	}
	return cancellable(op)
}

// cancellable refuses an operation that can no longer be cancelled.
func cancellable(op *storev1.Operation) error {
	switch {
	case op.GetState() == task.OpSucceeded:
		return tooLate(op, "it has succeeded")
	case op.GetState() == task.OpFailed:
		return tooLate(op, "it has failed ("+op.GetErrorCode()+")")
	case op.GetMigrate().GetSwitchedOver() && op.GetState() != task.OpCancelled:
		return tooLate(op, "the guest has been switched over to "+op.GetMigrate().GetTarget())
	}
	return nil
}

func tooLate(op *storev1.Operation, why string) error {
	return errdefs.New(errdefs.FailedPrecondition, "TOO_LATE_TO_CANCEL",
		"operation %s can no longer be cancelled: %s", op.GetId(), why).With("operation", op.GetId())
}
