package rpc

import (
	"crypto/tls"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// Dial makes a client for host:port. It connects with the first call, and
// again whenever the connection is lost. The trace id of a call's context is
// sent along; errors come as gRPC statuses, which errdefs.FromStatus reads.
func Dial(address string, cfg *tls.Config, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	if err := checkTLS(cfg); err != nil {
		return nil, fmt.Errorf("dialling %s: %w", address, err)
	}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(MaxResponseBytes),
			grpc.MaxCallSendMsgSize(MaxRequestBytes),
		),
		grpc.WithMaxHeaderListSize(MaxHeaderBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: PingAfter, Timeout: PingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: HandshakeTimeout,
		}),
		grpc.WithUnaryInterceptor(sendTraceUnary),
		grpc.WithStreamInterceptor(sendTraceStream),
		grpc.WithDisableServiceConfig(),
	}, more...)
	conn, err := grpc.NewClient(address, options...)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", address, err)
	}
	return conn, nil
}
