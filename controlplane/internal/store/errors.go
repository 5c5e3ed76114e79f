package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// ErrFenced is the answer to a fenced change whose term no longer leads:
// nothing was written, and whoever gets it must stop leading. Its kind is
// Aborted.
var ErrFenced error = fencedError{}

type fencedError struct{}

// Error tells it.
func (fencedError) Error() string { return "another leader has been elected; nothing was written" }

// Unwrap gives the kind.
func (e fencedError) Unwrap() error {
	return errdefs.New(errdefs.Aborted, "LEADERSHIP_LOST", "%s", e.Error()).WithRetry(time.Second)
}

// ConflictError is the answer to a change one of whose conditions did not hold:
// nothing was written. Its kind is Aborted, unless who required the condition
// says it better.
type ConflictError struct {
	// Key is the one of the first condition that did not hold.
	Key string
}

// Error names the key.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s has changed meanwhile; nothing was written", e.Key)
}

// Unwrap gives the kind.
func (e *ConflictError) Unwrap() error {
	return errdefs.New(errdefs.Aborted, "CONFLICT", "the record has changed meanwhile; nothing was written")
}

// tooLarge says which limit a change breaks.
func tooLarge(format string, args ...any) *errdefs.Error {
	return errdefs.New(errdefs.InvalidArgument, codeTooLarge, format, args...)
}

const codeTooLarge = "CHANGE_TOO_LARGE"

// IsTooLarge tells that a change was refused for its size: it never fits.
func IsTooLarge(err error) bool {
	var e *errdefs.Error
	return errors.As(err, &e) && e.Code == codeTooLarge
}

// refused gives a kind to an error that etcd answered a transaction with. ctx
// is the caller's: that it has ended is the caller's doing.
func refused(ctx context.Context, err error) error {
	const maybe = "the change may have been applied"
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return errdefs.New(errdefs.ResourceExhausted, "STORE_FULL", "the cluster's store is full").WithCause(err)
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return tooLarge("the outside etcd takes fewer operations in a transaction than the change holds; it needs --max-txn-ops=1024").WithCause(err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return tooLarge("the change is larger than etcd takes").WithCause(err)
	case errors.Is(ctx.Err(), context.Canceled):
		return errdefs.New(errdefs.Cancelled, "CANCELLED", "the call was cancelled; %s", maybe).WithCause(ctx.Err())
	case ctx.Err() != nil:
		return errdefs.New(errdefs.DeadlineExceeded, "DEADLINE_EXCEEDED", "the call's deadline passed; %s", maybe).WithCause(ctx.Err())
	}
	return errdefs.New(errdefs.Unavailable, "STORE_UNAVAILABLE", "the cluster's store did not answer; %s", maybe).
		WithRetry(time.Second).WithCause(err)
}
