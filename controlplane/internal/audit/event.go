package audit

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
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
	// What of a changed configuration came into force or waits for a restart, and
	// that one was refused.
	ConfigChanged Kind = "config_changed"
	ConfigRefused Kind = "config_refused"
	// Action is what the control plane does by itself, as system:<name>.
	Action Kind = "system_action"
	// LogOpened begins each file, and what a start adds to one.
	LogOpened Kind = "audit_log_opened"
	// EventsLost says that events are missing before it.
	EventsLost Kind = auditlog.EventsLost
	// LogLost says that etcd knows of lines that this log does not have.
	LogLost Kind = auditlog.LogLost
)

// itself is the principal of what the log has to say.
const itself = "system:audit"

// maxField is the most bytes of a field as it is written, so that a line is
// short enough for a pipe to take it whole (4,096 bytes).
const maxField = 200

// maxReason is the same of the longest fields.
const maxReason = 900

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

// stamp writes a moment as lines have it.
func stamp(t time.Time) string { return t.UTC().Format(timeFormat) }

const timeFormat = "2006-01-02T15:04:05.000000Z"

// append writes the event as one line of JSON, but for what begins it: its link
// to the line before. The replica's name is as JSON has it.
func (e *Event) append(b []byte, replica string) []byte {
	b = append(b, `"replica":"`...)
	b = append(b, replica...)
	b = append(b, `","time":"`...)
	b = e.Time.UTC().AppendFormat(b, timeFormat)
	b = append(b, `","event":"`...)
	b = append(b, e.Kind...)
	b = append(b, '"')
	b = appendField(b, "trace_id", e.TraceID, maxField)
	b = appendField(b, "principal", e.Principal, maxField)
	b = appendField(b, "credential", e.Credential, maxField)
	b = appendField(b, "peer", e.Peer, maxField)
	b = appendField(b, "method", e.Method, maxField)
	b = appendField(b, "request_id", e.RequestID, maxField)
	b = appendField(b, "args", e.Args, maxReason)
	b = appendField(b, "code", e.Code, maxField)
	b = appendField(b, "error", e.Error, maxField)
	b = appendField(b, "reason", e.Reason, maxReason)
	b = appendField(b, "operation", e.Operation, maxField)
	if e.Kind == Result {
		b = append(b, `,"duration_ms":`...)
		b = strconv.AppendFloat(b, float64(e.Duration.Microseconds())/1000, 'f', -1, 64)
	}
	return append(b, '}', '\n')
}

func appendField(b []byte, name, value string, most int) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	if len(value) <= most && plain(value) {
		b = append(b, '"')
		b = append(b, value...)
		return append(b, '"')
	}
	return append(b, quote(value, most)...)
}

// quote gives a string in JSON, with as much of it as has room in so many bytes.
func quote(value string, most int) []byte {
	for n := most; ; n = n * 3 / 4 {
		quoted, err := json.Marshal(clip(value, n))
		if err != nil {
			return []byte(`""`) // a string always encodes
		}
		if len(quoted) <= most+2 {
			return quoted
		}
	}
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
