// Package rpc builds the gRPC servers and clients of DebVisor with every limit
// set, TLS 1.3 and nothing else, and holds the interceptors that all of them
// use: trace ids, recovery from panics, errors as errdefs wants them. Who may
// call what is left to others.
package rpc

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/tap"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// ServerConfig says what a server needs beyond the limits.
type ServerConfig struct {
	// TLS is required; it must not allow anything below 1.3.
	TLS *tls.Config
	// Unary and Stream are the whole chain of the server; both nil: Edge(Log).
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
	// Tap sees each call before it has a handler, and may refuse it with a status.
	// It holds up its connection: it must not wait. Nil: none.
	Tap tap.ServerInHandle
	// Age asks callers to connect anew after MaxConnectionAge; not for agents,
	// whose session is one long call.
	Age bool
	// Spans makes spans of calls (obs.Tracing); nil: there are none.
	Spans stats.Handler
	// Codec is NewCodec's; nil: one of the server's own.
	Codec *Codec
	// Log takes what Edge has to log; needed without Unary and Stream.
	Log hclog.Logger
}

// NewServer makes a server without services. Handlers find the peer with Peer,
// the trace id with TraceID. A stopped server waits for its handlers.
func NewServer(cfg ServerConfig) (*grpc.Server, error) {
	if err := checkTLS(cfg.TLS); err != nil {
		return nil, fmt.Errorf("making a gRPC server: %w", err)
	}
	if cfg.Unary == nil && cfg.Stream == nil {
		if cfg.Log == nil {
			return nil, errors.New("making a gRPC server: it has neither a chain nor a log")
		}
		cfg.Unary, cfg.Stream = Edge(cfg.Log)
	}
	if cfg.Codec == nil {
		cfg.Codec = NewCodec()
	}
	return grpc.NewServer(serverOptions(cfg)...), nil
}

func serverOptions(cfg ServerConfig) []grpc.ServerOption {
	alive := keepalive.ServerParameters{Time: PingAfter, Timeout: PingTimeout}
	if cfg.Age {
		alive.MaxConnectionAge = MaxConnectionAge
		alive.MaxConnectionAgeGrace = MaxConnectionAgeGrace
	}
	options := []grpc.ServerOption{
		grpc.Creds(peerCredentials{credentials.NewTLS(cfg.TLS)}),
		grpc.MaxConcurrentStreams(MaxStreams),
		grpc.MaxHeaderListSize(MaxHeaderBytes),
		grpc.MaxRecvMsgSize(MaxRequestBytes),
		grpc.MaxSendMsgSize(MaxResponseBytes),
		grpc.ConnectionTimeout(HandshakeTimeout),
		grpc.KeepaliveParams(alive),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: MinPing, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(cfg.Codec),
		grpc.UnaryInterceptor(cfg.Unary),
		grpc.StreamInterceptor(cfg.Stream),
		grpc.WaitForHandlers(true),
		grpc.UnknownServiceHandler(unknown),
		// Handlers that need a deep stack find one already grown; when all
		// workers are busy, calls get a goroutine of their own as ever.
		grpc.NumStreamWorkers(streamWorkers),
	}
	if cfg.Spans != nil {
		options = append(options, grpc.StatsHandler(cfg.Spans))
	}
	if cfg.Tap != nil {
		options = append(options, grpc.InTapHandle(cfg.Tap))
	}
	return options
}

// streamWorkers is how many goroutines a server keeps for calls.
const streamWorkers = 32

// unknown ends calls of methods that the server does not have, behind its chain:
// grpc-go's own refusal passes by it.
func unknown(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	return errdefs.New(errdefs.Unimplemented, "UNKNOWN_METHOD", "this server has no method %q", method)
}

func checkTLS(cfg *tls.Config) error {
	if cfg == nil {
		return errors.New("no TLS configuration given, and there is no other way")
	}
	if cfg.MinVersion < tls.VersionTLS13 {
		return errors.New("the TLS configuration allows versions below 1.3")
	}
	return nil
}
