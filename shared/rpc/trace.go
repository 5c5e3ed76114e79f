package rpc

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"regexp"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/shared/obs"
)

// TraceHeader is the metadata key, both ways, of the id that leads from a call
// to the log.
const TraceHeader = obs.TraceHeader

// TraceParent is the key of W3C Trace Context, of which the log takes the id.
const TraceParent = "traceparent"

type traceKey struct{}

// TraceID gives the trace id of a call; "" where it has none.
func TraceID(ctx context.Context) string {
	id, _ := ctx.Value(traceKey{}).(string)
	return id
}

// WithTraceID gives a context whose calls carry that trace id.
func WithTraceID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, traceKey{}, id)
}

// IsTraceKey tells whether a key of a context's values asks for the trace id, a
// string: for contexts that carry it themselves.
func IsTraceKey(key any) bool {
	_, ok := key.(traceKey)
	return ok
}

// StartTrace gives a server's call its trace id, and a context that has it.
func StartTrace(ctx context.Context) (context.Context, string) {
	id := NewTrace(ctx)
	return WithTraceID(ctx, id), id
}

// NewTrace gives a server's call its trace id: the caller's (TraceHeader, or
// traceparent's) where it is well formed, else that of the call's span, else a new
// one. The answer's header carries it.
func NewTrace(ctx context.Context) string {
	id := callersTrace(func(key string) []string { return metadata.ValueFromIncomingContext(ctx, key) })
	if id == "" {
		id = obs.Started(ctx).TraceID()
	}
	if id == "" {
		id = newTraceID()
	}
	answer := answers.Get().(*answer)
	answer.value[0] = id
	// It fails only outside of a server's call, which has no answer.
	_ = grpc.SetHeader(ctx, answer.header)
	answers.Put(answer)
	return id
}

// answer is a header that holds a trace id. SetHeader copies it, so that the
// next call can have it.
type answer struct {
	header metadata.MD
	value  []string
}

var answers = sync.Pool{New: func() any {
	value := make([]string, 1)
	return &answer{header: metadata.MD{TraceHeader: value}, value: value}
}}

// PickTrace gives the trace id of a call whose headers' values are given by
// their lower-case names, as NewTrace does.
func PickTrace(values func(key string) []string) string {
	if id := callersTrace(values); id != "" {
		return id
	}
	return newTraceID()
}

// PickParent gives the trace context of a call likewise; "" where there is none
// that is well formed.
func PickParent(values func(key string) []string) string {
	if v := values(TraceParent); len(v) == 1 && obs.TraceOf(v[0]) != "" {
		return v[0]
	}
	return ""
}

// CallTraceparent is what leads to a server's call for those who work for it
// later, where it is recorded; else "".
func CallTraceparent(ctx context.Context) string {
	return obs.CallTraceparent(ctx, PickParent(func(key string) []string { return metadata.ValueFromIncomingContext(ctx, key) }))
}

func callersTrace(values func(key string) []string) string {
	if v := values(TraceHeader); len(v) == 1 && traceForm.MatchString(v[0]) {
		return v[0]
	}
	if v := values(TraceParent); len(v) == 1 {
		return obs.TraceOf(v[0])
	}
	return ""
}

var traceForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// newTraceID makes 128 random bits in hex, the form of W3C's.
func newTraceID() string {
	var raw [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		raw[i], raw[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	var text [32]byte
	hex.Encode(text[:], raw[:])
	return string(text[:])
}

func sendTraceUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(outgoingTrace(ctx), method, req, reply, conn, opts...)
}

func sendTraceStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(outgoingTrace(ctx), desc, conn, method, opts...)
}

func outgoingTrace(ctx context.Context) context.Context {
	id := TraceID(ctx)
	if id == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, TraceHeader, id)
}
