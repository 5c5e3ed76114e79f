package obs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// A trace context travels and is kept as W3C's traceparent,
// version-trace-span-flags: "00-<32 hex>-<16 hex>-01", whose last digit says
// whether it is recorded.
//
// The spans of operations and tasks are made by whoever leads when they end, and
// others begin below them long before. So their ids are not random but follow
// from the operation's and the task's: a leader that takes over goes on with the
// same span, and one that is told twice is the same twice.

// ParseTraceparent reads a traceparent; what is not well formed is not valid.
func ParseTraceparent(text string) trace.SpanContext {
	const form = len("00-") + 32 + len("-") + 16 + len("-01")
	if len(text) < form || text[2] != '-' || text[35] != '-' || text[52] != '-' || text[:2] == "ff" ||
		text[:2] == "00" && len(text) > form || len(text) > form && text[form] != '-' {
		return trace.SpanContext{}
	}
	id, err := trace.TraceIDFromHex(text[3:35])
	if err != nil {
		return trace.SpanContext{}
	}
	span, err := trace.SpanIDFromHex(text[36:52])
	if err != nil {
		return trace.SpanContext{}
	}
	var flags [1]byte
	if _, err := hex.Decode(flags[:], []byte(text[53:55])); err != nil {
		return trace.SpanContext{}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true,
	})
}

// FormatTraceparent writes a traceparent; "" for what is not valid.
func FormatTraceparent(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	return "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + (sc.TraceFlags() & trace.FlagsSampled).String()
}

// CallTraceparent is what leads to the call of a context, where that is recorded:
// the span at work; else, incoming, what the caller sent as its traceparent, since
// a replica that records nothing itself stands between two that may. "" for none.
func CallTraceparent(ctx context.Context, incoming string) string {
	for _, sc := range []trace.SpanContext{trace.SpanContextFromContext(ctx), ParseTraceparent(incoming)} {
		if sc.IsValid() && sc.IsSampled() {
			return FormatTraceparent(sc)
		}
	}
	return ""
}

// Unrecorded is the traceparent of an operation whose trace is told by logs only,
// agents' among them; "" where the id is not of W3C's form.
func Unrecorded(id, operation string) string {
	traceID, err := trace.TraceIDFromHex(id)
	if err != nil {
		return ""
	}
	return FormatTraceparent(trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanOf(operation)}))
}

// Root gives an operation that nobody's call asked for its trace: the id and the
// traceparent, which are the same whoever asks, but for whether it is recorded.
func (t *Tracing) Root(operation string) (id, traceparent string) {
	sum := sha256.Sum256([]byte("debvisor trace of " + operation))
	traceID := trace.TraceID(sum[:16])
	sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanOf(operation)})
	if t != nil && t.samples(traceID) {
		sc = sc.WithTraceFlags(trace.FlagsSampled)
	}
	return traceID.String(), FormatTraceparent(sc)
}

// Below is the traceparent of what is done for an operation or a task, of the
// one that it was itself asked for by. "" stays "".
func Below(traceparent, id string) string {
	sc := ParseTraceparent(traceparent)
	if !sc.IsValid() {
		return ""
	}
	return FormatTraceparent(sc.WithSpanID(spanOf(id)))
}

// TraceOf is the trace id of a traceparent; "" where it is not valid.
func TraceOf(traceparent string) string {
	sc := ParseTraceparent(traceparent)
	if !sc.IsValid() {
		return ""
	}
	return sc.TraceID().String()
}

// spanOf is the id of the span of an operation or a task.
func spanOf(id string) trace.SpanID {
	sum := sha256.Sum256([]byte("debvisor span of " + id))
	span := trace.SpanID(sum[:8])
	if !span.IsValid() {
		span[7] = 1 // zero is no span's id
	}
	return span
}
