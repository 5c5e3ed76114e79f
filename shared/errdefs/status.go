package errdefs

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// code is a kind's gRPC code.
func (k Kind) code() codes.Code {
	switch k {
	case Internal:
		return codes.Internal
	case Cancelled:
		return codes.Canceled
	case InvalidArgument:
		return codes.InvalidArgument
	case DeadlineExceeded:
		return codes.DeadlineExceeded
	case NotFound:
		return codes.NotFound
	case AlreadyExists:
		return codes.AlreadyExists
	case PermissionDenied:
		return codes.PermissionDenied
	case Unauthenticated:
		return codes.Unauthenticated
	case ResourceExhausted:
		return codes.ResourceExhausted
	case FailedPrecondition:
		return codes.FailedPrecondition
	case Aborted:
		return codes.Aborted
	case Unavailable:
		return codes.Unavailable
	case Unimplemented:
		return codes.Unimplemented
	}
	return codes.Internal
}

// kindOf is the kind of a gRPC code; ok is false for a code that no kind has.
func kindOf(code codes.Code) (kind Kind, ok bool) {
	for k := Internal; k <= Unimplemented; k++ {
		if k.code() == code {
			return k, true
		}
	}
	return Internal, false
}

// String is the kind's gRPC code in the words of the contract, such as
// NOT_FOUND.
func (k Kind) String() string {
	switch k {
	case Cancelled:
		return "CANCELLED"
	case InvalidArgument:
		return "INVALID_ARGUMENT"
	case DeadlineExceeded:
		return "DEADLINE_EXCEEDED"
	case NotFound:
		return "NOT_FOUND"
	case AlreadyExists:
		return "ALREADY_EXISTS"
	case PermissionDenied:
		return "PERMISSION_DENIED"
	case Unauthenticated:
		return "UNAUTHENTICATED"
	case ResourceExhausted:
		return "RESOURCE_EXHAUSTED"
	case FailedPrecondition:
		return "FAILED_PRECONDITION"
	case Aborted:
		return "ABORTED"
	case Unavailable:
		return "UNAVAILABLE"
	case Unimplemented:
		return "UNIMPLEMENTED"
	default:
		return "INTERNAL"
	}
}

// Of gives the *Error that an error leaves the server as: the one that a
// package of ours raised, or what is told of an error that none did. Nil gives
// nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return foreign(err)
}

// ToStatus turns any error into a gRPC status error with ErrorDetails. What no
// package raised a kind for becomes INTERNAL with nothing of the inside; the
// trace id leads to the log. A status made by grpc-go itself keeps its code. One
// that says more than headers take is shortened.
func ToStatus(err error, traceID string) error {
	if err == nil {
		return nil
	}
	e := Of(err)
	st := e.status(traceID)
	if onTheWire(st) > maxWire {
		st = e.short().status(traceID)
	}
	return st.Err()
}

// status is the error with its details.
func (e *Error) status(traceID string) *status.Status {
	st := status.New(e.Kind.code(), e.Message)
	details := []protoadapt.MessageV1{&debvisorv1.ErrorDetails{
		Code: e.Code, Message: e.Message, Context: e.Context, TraceId: traceID,
	}}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st
}

const (
	// maxWire is what a status may take of the 8 KiB of headers that clients
	// accept, in which it travels: a longer one would reach nobody.
	maxWire = 7 << 10
	// shortMessage and shortContext are what is left of a longer one, bytes. The
	// message is there twice, and in the header each byte may take three.
	shortMessage, shortContext = 800, 1 << 10
	// entryCost is what an entry of the context takes besides key and value.
	entryCost = 10
)

// onTheWire is about what a status takes of the headers, bytes: the message
// with what does not print escaped, and all of it in base64.
func onTheWire(st *status.Status) int {
	text := st.Message()
	size := base64.StdEncoding.EncodedLen(proto.Size(st.Proto())) + len(text)
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' || text[i] == '%' {
			size += 2
		}
	}
	return size
}

// short is the error with as much of its message and of its context, by the
// order of the keys, as a header takes.
func (e *Error) short() *Error {
	out := *e
	out.Message, out.Context = cut(e.Message, shortMessage), map[string]string{}
	left := shortContext
	for _, key := range slices.Sorted(maps.Keys(e.Context)) {
		value := cut(e.Context[key], shortContext/4)
		if left -= len(key) + len(value) + entryCost; left < 0 {
			break
		}
		out.Context[key] = value
	}
	return &out
}

func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
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
		if kind, ok := kindOf(st.Code()); ok {
			return New(kind, st.Code().String(), "%s", st.Message()).WithCause(err)
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
	kind, _ := kindOf(st.Code())
	e = New(kind, st.Code().String(), "%s", st.Message())
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
