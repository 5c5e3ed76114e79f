package gateway

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// problemType is the media type of RFC 9457.
const problemType = "application/problem+json"

// answers pairs each kind of error with its HTTP status and the name of its gRPC
// code. ALREADY_EXISTS, ABORTED and FAILED_PRECONDITION are all conflicts with
// the state that things are in (409), told apart by grpc_code: 412 would speak
// of the request's own If-Match.
func answers() map[errdefs.Kind]answer {
	return map[errdefs.Kind]answer{
		errdefs.Internal:           {http.StatusInternalServerError, "INTERNAL"},
		errdefs.Cancelled:          {statusClientClosed, "CANCELLED"},
		errdefs.InvalidArgument:    {http.StatusBadRequest, "INVALID_ARGUMENT"},
		errdefs.DeadlineExceeded:   {http.StatusGatewayTimeout, "DEADLINE_EXCEEDED"},
		errdefs.NotFound:           {http.StatusNotFound, "NOT_FOUND"},
		errdefs.AlreadyExists:      {http.StatusConflict, "ALREADY_EXISTS"},
		errdefs.PermissionDenied:   {http.StatusForbidden, "PERMISSION_DENIED"},
		errdefs.Unauthenticated:    {http.StatusUnauthorized, "UNAUTHENTICATED"},
		errdefs.ResourceExhausted:  {http.StatusTooManyRequests, "RESOURCE_EXHAUSTED"},
		errdefs.FailedPrecondition: {http.StatusConflict, "FAILED_PRECONDITION"},
		errdefs.Aborted:            {http.StatusConflict, "ABORTED"},
		errdefs.Unavailable:        {http.StatusServiceUnavailable, "UNAVAILABLE"},
		errdefs.Unimplemented:      {http.StatusNotImplemented, "UNIMPLEMENTED"},
	}
}

type answer struct {
	status int
	name   string
}

// statusClientClosed is what others use where the client went away; nobody
// reads it but logs.
const statusClientClosed = 499

// refusal is an error with the HTTP status that fits it better than its kind's.
type refusal struct {
	status int
	err    *errdefs.Error
}

// Error tells the error.
func (r *refusal) Error() string { return r.err.Error() }

// Unwrap gives the error.
func (r *refusal) Unwrap() error { return r.err }

// problem is an error as RFC 9457 has it. Members is its JSON.
type problem struct {
	status     int
	retryAfter time.Duration
	members    map[string]any
}

// newProblem makes a problem of any error; trace is the id of the call where
// the error does not say it.
func newProblem(err error, trace string) problem {
	e := errdefs.FromStatus(told(err))
	a := answers()[e.Kind]
	p := problem{status: a.status, retryAfter: e.RetryAfter, members: map[string]any{}}
	if r, ok := err.(*refusal); ok { //nolint:errorlint // made by this package, and never wrapped
		p.status = r.status
	}
	for key, value := range e.Context {
		if reserved(key) {
			key = "context_" + key
		}
		p.members[key] = value
	}
	if id := e.Context["trace_id"]; id != "" {
		trace = id
	}
	delete(p.members, "context_trace_id")
	code := e.Code
	if st, ok := status.FromError(err); ok && code == st.Code().String() {
		code = a.name // grpc-go's own error: it has no code of ours
	}
	p.members["type"] = "urn:debvisor:error:" + code
	p.members["title"] = title(p.status)
	p.members["status"] = p.status
	p.members["detail"] = e.Message
	p.members["code"] = code
	p.members["grpc_code"] = a.name
	p.members["trace_id"] = trace
	if e.RetryAfter > 0 {
		p.members["retry_after"] = e.RetryAfter.Seconds()
	}
	return p
}

// told gives the error that the caller is told. What grpc-go says of the
// connection inside of this process is nothing for them: it means that the
// replica stops.
func told(err error) error {
	st, ok := status.FromError(err)
	if !ok || st.Code() != codes.Unavailable || len(st.Details()) > 0 {
		return err
	}
	return errdefs.New(errdefs.Unavailable, "STOPPING", "this replica is stopping; ask another one, or try again").WithRetry(time.Second)
}

func reserved(member string) bool {
	switch member {
	case "type", "title", "status", "detail", "instance", "code", "grpc_code", "trace_id", "retry_after":
		return true
	}
	return false
}

func title(status int) string {
	if status == statusClientClosed {
		return "Client Closed Request"
	}
	return http.StatusText(status)
}

// MarshalJSON gives the members.
func (p problem) MarshalJSON() ([]byte, error) { return json.Marshal(p.members) }

// write answers with the problem.
func (p problem) write(w http.ResponseWriter) {
	body, err := json.Marshal(p.members)
	if err != nil { // strings and numbers only: there is no such case
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", problemType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.retryAfter.Seconds()))))
	}
	if p.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="debvisor"`)
	}
	w.WriteHeader(p.status)
	_, _ = w.Write(body) // a client that is gone needs no answer
}
