package rpc

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"regexp"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// TraceHeader is the metadata key, both ways, of the id that leads from a call
// to the log.
const TraceHeader = "debvisor-trace-id"

// traceParent is the key of W3C Trace Context, of which only the id is taken.
const traceParent = "traceparent"

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
// traceparent's) where it is well formed, else a new one. The answer's header
// carries it.
func NewTrace(ctx context.Context) string {
	id := PickTrace(func(key string) []string { return metadata.ValueFromIncomingContext(ctx, key) })
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
	if v := values(TraceHeader); len(v) == 1 && traceForm.MatchString(v[0]) {
		return v[0]
	}
	if v := values(traceParent); len(v) == 1 {
		if parts := parentForm.FindStringSubmatch(v[0]); parts != nil && parts[1] != zeroTrace {
			return parts[1]
		}
	}
	return newTraceID()
}

const zeroTrace = "00000000000000000000000000000000"

var (
	traceForm  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	parentForm = regexp.MustCompile(`^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$`)
)

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
