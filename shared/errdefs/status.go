package errdefs

import (
	"context"
	"errors"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// kindCodes pairs each kind with its gRPC code, both ways.
func kindCodes() map[Kind]codes.Code {
	return map[Kind]codes.Code{
		Internal:           codes.Internal,
		Cancelled:          codes.Canceled,
		InvalidArgument:    codes.InvalidArgument,
		DeadlineExceeded:   codes.DeadlineExceeded,
		NotFound:           codes.NotFound,
		AlreadyExists:      codes.AlreadyExists,
		PermissionDenied:   codes.PermissionDenied,
		Unauthenticated:    codes.Unauthenticated,
		ResourceExhausted:  codes.ResourceExhausted,
		FailedPrecondition: codes.FailedPrecondition,
		Aborted:            codes.Aborted,
		Unavailable:        codes.Unavailable,
		Unimplemented:      codes.Unimplemented,
	}
}

// ToStatus turns any error into a gRPC status error with ErrorDetails. What no
// package raised a kind for becomes INTERNAL with nothing of the inside; the
// trace id leads to the log. A status made by grpc-go itself keeps its code.
func ToStatus(err error, traceID string) error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		e = foreign(err)
	}
	st := status.New(kindCodes()[e.Kind], e.Message)
	details := []protoadapt.MessageV1{&debvisorv1.ErrorDetails{
		Code: e.Code, Message: e.Message, Context: e.Context, TraceId: traceID,
	}}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}

// foreign gives a kind to an error that no package of ours raised.
func foreign(err error) *Error {
	switch {
	case errors.Is(err, context.Canceled):
		return New(Cancelled, "CANCELLED", "the call was cancelled").WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		return New(DeadlineExceeded, "DEADLINE_EXCEEDED", "the call's deadline passed before an answer was known").WithCause(err)
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown && st.Code() != codes.Internal {
		for kind, code := range kindCodes() {
			if code == st.Code() {
				return New(kind, code.String(), "%s", st.Message()).WithCause(err)
			}
		}
	}
	return New(Internal, "INTERNAL", "internal error; the server's log has the trace id").WithCause(err)
}

// FromStatus turns a gRPC error as a client sees it back into an *Error: the
// kind, code, message, context and retry hint survive the journey. An error
// that is no status becomes Unavailable, since the peer said nothing.
func FromStatus(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	st, ok := status.FromError(err)
	if !ok {
		return New(Unavailable, "UNREACHABLE", "%s", err.Error()).WithCause(err)
	}
	e = New(Internal, st.Code().String(), "%s", st.Message())
	for kind, code := range kindCodes() {
		if code == st.Code() {
			e.Kind = kind
		}
	}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *debvisorv1.ErrorDetails:
			e.Code, e.Message, e.Context = d.GetCode(), d.GetMessage(), d.GetContext()
			if d.GetTraceId() != "" {
				e = e.With("trace_id", d.GetTraceId())
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration().Truncate(time.Millisecond)
		}
	}
	return e
}
