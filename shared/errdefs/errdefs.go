// Package errdefs holds the kinds of error that DebVisor's packages raise, and
// is the one place that maps them to gRPC statuses with ErrorDetails and back.
// Packages raise a kind; only the RPC edge asks for a status.
package errdefs

import (
	"errors"
	"fmt"
	"time"
)

// Kind is what a caller can do about an error. The zero Kind is Internal.
type Kind int

// The kinds, named as the gRPC codes that they become.
const (
	Internal Kind = iota
	Cancelled
	InvalidArgument
	DeadlineExceeded
	NotFound
	AlreadyExists
	PermissionDenied
	Unauthenticated
	ResourceExhausted
	FailedPrecondition
	Aborted
	Unavailable
	Unimplemented
)

// Error is an error of a kind, with what programs and people need to act.
type Error struct {
	Kind Kind
	// Code is stable and for programs, such as "VM_NOT_FOUND".
	Code string
	// Message is for people. It leaves the server: nothing of the inside.
	Message string
	// Context holds the values that the message speaks of.
	Context map[string]string
	// RetryAfter is when to try again; 0: not said.
	RetryAfter time.Duration
	// Cause stays in the log.
	Cause error
}

// Error tells the message and the cause.
func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Message + ": " + e.Cause.Error()
	}
	return e.Message
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// New makes an error of a kind with a code and a formatted message.
func New(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// With adds a value to the error's context and returns the error.
func (e *Error) With(key, value string) *Error {
	if e.Context == nil {
		e.Context = map[string]string{}
	}
	e.Context[key] = value
	return e
}

// WithRetry says when to try again and returns the error.
func (e *Error) WithRetry(after time.Duration) *Error {
	e.RetryAfter = after
	return e
}

// WithCause wraps a cause, kept for the log, and returns the error.
func (e *Error) WithCause(cause error) *Error {
	e.Cause = cause
	return e
}

// Field is an InvalidArgument that names the field, its value and what would
// be accepted.
func Field(field, value, accepted string) *Error {
	return New(InvalidArgument, "INVALID_FIELD", "%s: %q is not accepted; expected %s", field, value, accepted).
		With("field", field).With("value", value).With("expected", accepted)
}

// KindOf tells an error's kind, however deeply it is wrapped; Internal where
// none was raised.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) && e != nil {
		return e.Kind
	}
	return Internal
}

// Is tells whether err is of a kind. No error, also one that is a nil *Error,
// is of none.
func Is(err error, kind Kind) bool {
	var e *Error
	if err == nil || errors.As(err, &e) && e == nil {
		return false
	}
	return KindOf(err) == kind
}
