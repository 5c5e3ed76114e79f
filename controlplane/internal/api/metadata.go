package api

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// The metadata that is common to all calls.
const (
	requestIDHeader = "debvisor-request-id"
	waitHeader      = "debvisor-wait"
	operationHeader = "debvisor-operation"
)

// metadataValue gives a caller's metadata of one key; "" where it sent none.
func metadataValue(ctx context.Context, key string) string {
	if v := metadata.ValueFromIncomingContext(ctx, key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// requestID gives the caller's own id of its request; "" where it gave none.
func requestID(ctx context.Context) (string, error) {
	id := metadataValue(ctx, requestIDHeader)
	bad := func(r rune) bool { return r < ' ' || r > '~' }
	if len(id) > 128 || strings.ContainsFunc(id, bad) {
		return "", errdefs.Field(requestIDHeader, clip(id), "1 to 128 printable ASCII characters")
	}
	return id, nil
}

// waits tells whether the caller wants the end of the operation, and not only
// its id.
func waits(ctx context.Context) (bool, error) {
	switch v := metadataValue(ctx, waitHeader); v {
	case "":
		return true, nil
	case "none":
		return false, nil
	default:
		return false, errdefs.Field(waitHeader, clip(v), `"none", or the header left out`)
	}
}

// tellOperation sends the id of the operation in the answer's header at once,
// so that a caller whose connection breaks can still ask for it.
func tellOperation(ctx context.Context, id string) {
	if k := callOf(ctx); k != nil {
		k.operation = id
	}
	// It fails when the caller is gone, which the handler's context tells.
	_ = grpc.SendHeader(ctx, metadata.Pairs(operationHeader, id))
}
