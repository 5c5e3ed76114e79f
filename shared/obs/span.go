package obs

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Span is a piece of work in a trace; the zero one is none. It must be ended.
// What it is given is seen by whoever reads traces: never a secret, and no text
// of an error, which the log has under the same trace id.
type Span struct{ span trace.Span }

// Start begins a span below the one of ctx. Where that is not recorded there is
// none, at no cost.
func Start(ctx context.Context, name string) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, Span{span}
}

// Started is the span of ctx, to be told more of; it is another's to end.
func Started(ctx context.Context) Span {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		return Span{span}
	}
	return Span{}
}

// In gives a context whose work is below the span.
func (s Span) In(ctx context.Context) context.Context {
	if s.span == nil {
		return ctx
	}
	return trace.ContextWithSpan(ctx, s.span)
}

// Set tells something of the span; an empty value is left out.
func (s Span) Set(key, value string) {
	if s.span != nil && value != "" {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// SetInt tells a figure of the span.
func (s Span) SetInt(key string, value int64) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int64(key, value))
	}
}

// TraceID is the id of the span's trace; "" for none.
func (s Span) TraceID() string {
	if s.span == nil {
		return ""
	}
	return s.span.SpanContext().TraceID().String()
}

// End ends the span, with the code of an error that ended its work.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, errdefs.Of(err).Code)
	}
	s.span.End()
}

// EndAs ends the span with the code of how its work failed; "" where it did not.
func (s Span) EndAs(code string) {
	if s.span == nil {
		return
	}
	if code != "" {
		s.span.SetStatus(codes.Error, code)
	}
	s.span.End()
}

// Begin begins a trace with the id, which ends with it where that is of W3C's
// form, or a span below that of ctx.
func (t *Tracing) Begin(ctx context.Context, name, id string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	fixed := fixedIDs{}
	fixed.trace, _ = trace.TraceIDFromHex(id)
	ctx, span := t.tracer.Start(context.WithValue(ctx, fixedKey{}, fixed), name)
	return context.WithValue(ctx, fixedKey{}, fixedIDs{}), Span{span}
}

// Below begins a span below one of another program. Where that is not recorded
// there is none.
func (t *Tracing) Below(ctx context.Context, traceparent, name string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	sc := ParseTraceparent(traceparent)
	if !sc.IsValid() || !sc.IsSampled() {
		return ctx, Span{}
	}
	ctx, span := t.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, sc), name)
	return ctx, Span{span}
}

// Piece is work that is over, or has begun a while ago.
type Piece struct {
	// Of is the id of the operation or task whose span it is; empty: a span of
	// its own.
	Of string
	// Traceparent is the span below which it is; where that is its very own it
	// begins the trace.
	Traceparent, Name string
	Begun             time.Time
}

// Recorded tells whether what a traceparent leads to is recorded here.
func (t *Tracing) Recorded(traceparent string) bool {
	return t != nil && ParseTraceparent(traceparent).IsSampled()
}

// Open begins the span of a piece of work in its past.
func (t *Tracing) Open(ctx context.Context, p Piece) Span {
	if !t.Recorded(p.Traceparent) {
		return Span{}
	}
	above := ParseTraceparent(p.Traceparent)
	options := []trace.SpanStartOption{trace.WithTimestamp(p.Begun)}
	fixed := fixedIDs{}
	if p.Of != "" {
		fixed.span = spanOf(p.Of)
	}
	if fixed.span == above.SpanID() {
		fixed.trace = above.TraceID()
		options = append(options, trace.WithNewRoot())
	} else {
		ctx = trace.ContextWithRemoteSpanContext(ctx, above)
	}
	_, span := t.tracer.Start(context.WithValue(ctx, fixedKey{}, fixed), p.Name, options...)
	return Span{span}
}

// EndAt is EndAs at another time than now.
func (s Span) EndAt(at time.Time, code string) {
	if s.span == nil {
		return
	}
	if code != "" {
		s.span.SetStatus(codes.Error, code)
	}
	s.span.End(trace.WithTimestamp(at))
}

// fixedIDs are the ids of the next span of a context, where they are not zero.
type fixedIDs struct {
	trace trace.TraceID
	span  trace.SpanID
}

type fixedKey struct{}

// generator makes random ids but where a context has fixed ones.
type generator struct{}

var _ sdktrace.IDGenerator = generator{}

// NewIDs gives the ids of a span that begins a trace. A call whose caller gave
// only an id of its own, as all of ours do, begins the trace of that id: what
// log and trace say of it is found by one.
func (g generator) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	fixed, _ := ctx.Value(fixedKey{}).(fixedIDs)
	id := fixed.trace
	if !id.IsValid() {
		id = callersTrace(ctx)
	}
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id, g.NewSpanID(ctx, id)
}

// NewSpanID gives the id of a span below another.
func (generator) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	fixed, _ := ctx.Value(fixedKey{}).(fixedIDs)
	id := fixed.span
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}

// TraceHeader is the metadata key of the id that leads from a call to the log,
// which a caller may choose.
const TraceHeader = "debvisor-trace-id"

// callersTrace is the trace id that the caller of a server's call chose, where
// it has W3C's form.
func callersTrace(ctx context.Context) trace.TraceID {
	chosen := metadata.ValueFromIncomingContext(ctx, TraceHeader)
	if len(chosen) != 1 {
		return trace.TraceID{}
	}
	id, err := trace.TraceIDFromHex(chosen[0])
	if err != nil {
		return trace.TraceID{}
	}
	return id
}
