package rpc

import (
	"context"

	"google.golang.org/grpc"
)

// Registrar registers services on a server whose chain is to hear of every call
// to them. grpc-go itself answers a unary call whose message never arrived
// whole, since it is too large, say, and asks no interceptor.
type Registrar struct {
	*grpc.Server
	// Undelivered is told why; the call has been answered by then.
	Undelivered func(ctx context.Context, method string, err error)
}

// RegisterService registers a service.
func (r Registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	told := *desc
	told.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		told.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: r.handler("/"+desc.ServiceName+"/"+m.MethodName, m.Handler)}
	}
	r.Server.RegisterService(&told, impl)
}

func (r Registrar) handler(method string, handler grpc.MethodHandler) grpc.MethodHandler {
	return func(srv any, ctx context.Context, receive func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		return handler(srv, ctx, func(message any) error {
			err := receive(message)
			if err != nil {
				r.Undelivered(ctx, method, err)
			}
			return err
		}, interceptor)
	}
}
