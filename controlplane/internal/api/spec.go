package api

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/shared/rpc"
)

// specOf is what a call asks for, in its scope, but for what it is about.
func specOf(ctx context.Context, scope cluster.Scope, kind string, request proto.Message) (operations.Spec, error) {
	id, err := requestID(ctx)
	spec := operations.Spec{
		Kind: kind, Principal: authn.From(ctx).Name, Tenant: scope.Tenant(), Method: kind,
		RequestID: id, Request: request, TraceID: rpc.TraceID(ctx), Traceparent: rpc.CallTraceparent(ctx),
	}
	if k := callOf(ctx); k != nil {
		spec.Method = k.method
	}
	return spec, err
}
