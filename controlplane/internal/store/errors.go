package store

import (
	"fmt"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// ErrFenced is the answer to a fenced change whose term no longer leads:
// nothing was written, and whoever gets it must stop leading. To a caller it is
// ABORTED.
var ErrFenced error = fencedError{}

type fencedError struct{}

func (fencedError) Error() string { return "another leader has been elected; nothing was written" }

// Unwrap gives the kind.
func (e fencedError) Unwrap() error {
	return errdefs.New(errdefs.Aborted, "LEADERSHIP_LOST", "%s", e.Error())
}

// ConflictError is the answer to a change one of whose conditions did not hold:
// nothing was written. To a caller it is ABORTED, unless the one who required
// the condition says it better.
type ConflictError struct {
	// Key is the first condition's that did not hold.
	Key string
}

// Error names the key.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s has changed meanwhile; nothing was written", e.Key)
}

// Unwrap gives the kind.
func (e *ConflictError) Unwrap() error {
	return errdefs.New(errdefs.Aborted, "CONFLICT", "the record has changed meanwhile; try again")
}
