package store

import (
	"context"
	"errors"
	"path"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Meter is told of every request that is made of etcd and every attempt to make
// one, but for watches and keepalives, which are streams.
type Meter interface {
	// Request is told etcd's own name of the request, such as Txn, how long it
	// took, and whether etcd failed to answer it.
	Request(name string, took time.Duration, failed bool)
}

func measured(m Meter) []grpc.DialOption {
	if m == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any,
		conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		began := time.Now()
		err := invoke(ctx, method, req, reply, conn, opts...)
		left := errors.Is(ctx.Err(), context.Canceled) || status.Code(err) == codes.Canceled
		if !left { // who no longer wants an answer says nothing of etcd
			m.Request(path.Base(method), time.Since(began), err != nil)
		}
		return err
	})}
}
