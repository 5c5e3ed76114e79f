package rpc

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// Edge gives the interceptors of a server that needs no others: trace id,
// recovery, errors as statuses.
func Edge(log hclog.Logger) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, trace := StartTrace(ctx)
		var resp any
		err := Recover(func() (err error) {
			if err := Decoded(req); err != nil {
				return err
			}
			resp, err = handler(ctx, req)
			return err
		})
		return resp, Finish(log, info.FullMethod, trace, err)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, trace := StartTrace(ss.Context())
		err := Recover(func() error { return handler(srv, decodedStream{WithContext(ctx, ss)}) })
		return Finish(log, info.FullMethod, trace, err)
	}
	return unary, stream
}

// Recover runs a handler and turns its panic into an error of kind Internal,
// with the stack as its cause.
func Recover(run func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = Panicked(r)
		}
	}()
	return run()
}

// Panicked is the error for what recover gave, with the stack for the log. It
// must be called by the deferred function itself.
func Panicked(r any) error {
	return errdefs.New(errdefs.Internal, "INTERNAL", "internal error; the server's log has the trace id").
		WithCause(fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
}

// Finish is the edge: what leaves the server is a status with ErrorDetails, and
// an INTERNAL error is logged, here and only here, under its trace id.
func Finish(log hclog.Logger, method, trace string, err error) error {
	if err == nil {
		return nil
	}
	if errdefs.Of(err).Kind == errdefs.Internal {
		log.Error("call failed inside", "method", method, "trace_id", trace, "error", err)
	}
	return errdefs.ToStatus(err, trace)
}

// decodedStream refuses messages that could not be decoded.
type decodedStream struct{ grpc.ServerStream }

// RecvMsg receives a message.
func (s decodedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return Decoded(m)
}

// WithContext gives a server's stream another context.
func WithContext(ctx context.Context, ss grpc.ServerStream) grpc.ServerStream {
	return &streamWithContext{ServerStream: ss, ctx: ctx}
}

// streamWithContext overrides a stream's context; grpc has no other way.
type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *streamWithContext) Context() context.Context { return s.ctx }
