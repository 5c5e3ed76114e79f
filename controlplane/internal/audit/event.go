package audit

import (
	"encoding/json"
	"strconv"
	"time"
)

// Kind is what an event tells of; the names are the contract's.
type Kind string

// The kinds of event.
const (
	AuthenticationSuccess Kind = "authentication_success"
	AuthenticationFailure Kind = "authentication_failure"
	Call                  Kind = "rpc_call"
	Result                Kind = "rpc_result"
	PermissionDenied      Kind = "permission_denied"
	RateLimitExceeded     Kind = "rate_limit_exceeded"
	// What an access file says came into force, or was refused.
	AccessFileTaken   Kind = "access_file_taken"
	AccessFileRefused Kind = "access_file_refused"
)

// Event is one line. Empty fields are left out. Nothing secret belongs in it.
type Event struct {
	Time      time.Time
	Kind      Kind
	TraceID   string
	Principal string
	// Credential is what the principal showed, such as "apikey:0123456789abcdef".
	Credential string
	// Peer is the IP address that the call came from.
	Peer   string
	Method string
	// RequestID is the caller's own, for idempotency.
	RequestID string
	// Args is what the call was asked to do, as Summary tells it.
	Args string
	// Code is the gRPC status, Error the ErrorDetails' code, Reason its message.
	Code   string
	Error  string
	Reason string
	// Operation is what the call began or changed.
	Operation string
	// Duration is how long the call took.
	Duration time.Duration
}

// append writes the event as one line of JSON.
func (e *Event) append(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, `","event":"`...)
	b = append(b, e.Kind...)
	b = append(b, '"')
	b = appendField(b, "trace_id", e.TraceID)
	b = appendField(b, "principal", e.Principal)
	b = appendField(b, "credential", e.Credential)
	b = appendField(b, "peer", e.Peer)
	b = appendField(b, "method", e.Method)
	b = appendField(b, "request_id", e.RequestID)
	b = appendField(b, "args", e.Args)
	b = appendField(b, "code", e.Code)
	b = appendField(b, "error", e.Error)
	b = appendField(b, "reason", e.Reason)
	b = appendField(b, "operation", e.Operation)
	if e.Kind == Result {
		b = append(b, `,"duration_ms":`...)
		b = strconv.AppendFloat(b, float64(e.Duration.Microseconds())/1000, 'f', -1, 64)
	}
	return append(b, '}', '\n')
}

func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	if plain(value) {
		b = append(b, '"')
		b = append(b, value...)
		return append(b, '"')
	}
	quoted, err := json.Marshal(value)
	if err != nil {
		return append(b, `""`...) // a string always encodes
	}
	return append(b, quoted...)
}

// plain tells whether JSON needs no escapes for the string.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c > '~' {
			return false
		}
	}
	return true
}
