package main

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// What makes a watch begin anew, besides the loss of its connection.
var (
	// errCut is the end of a stream before the end of its operation.
	errCut = status.Error(codes.Unavailable, "the replica stopped telling before the operation's end")
	// errBehind is that another replica, which took over, is a little behind.
	errBehind = status.Error(codes.Unavailable, "the replica does not know the operation yet")
)

// follow shows an operation's way on standard error until it has ended, and
// gives its end. Known and the error are as with watch.
func (a *app) follow(ctx context.Context, c *client, id string, known bool) (*debvisorv1.Operation, error) {
	p := newProgress(a.errOut)
	news := moveNews{}
	op, err := a.watch(ctx, c, id, known, p.note, func(op *debvisorv1.Operation) error {
		p.show(op)
		for _, line := range news.of(op) {
			p.note("  %s", line)
		}
		return nil
	})
	p.close()
	return op, err
}

// watch calls show with an operation at each change until it has ended, and
// gives its end. A lost connection is no reason to stop, until --timeout has
// passed without one. Once the operation is known to exist, which known says it
// is from the begin, the error is a leftError.
func (a *app) watch(ctx context.Context, c *client, id string, known bool, tell func(string, ...any), show func(*debvisorv1.Operation) error) (*debvisorv1.Operation, error) {
	again := retry{reach: c.reach, patience: a.flags.timeout, tell: tell}
	call := again.begin()
	for {
		op, err := watchOnce(ctx, c, id, func(op *debvisorv1.Operation) error {
			known, call = true, again.begin()
			return show(op)
		})
		if err == nil {
			return op, nil
		}
		if known && status.Code(err) == codes.NotFound {
			err = errBehind
		}
		if call.rest(ctx, err) {
			continue
		}
		if err = c.told(err); known {
			err = &leftError{id: id, cause: err}
		}
		return nil, err
	}
}

// watchOnce follows one stream to its end.
func watchOnce(ctx context.Context, c *client, id string, show func(*debvisorv1.Operation) error) (*debvisorv1.Operation, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.operations.WatchOperation(ctx, &debvisorv1.OperationRef{Id: id})
	if err != nil {
		return nil, err
	}
	for {
		op, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, errCut
		case err != nil:
			return nil, err
		}
		if err := show(op); err != nil {
			return nil, err
		}
		if ended(op) {
			return op, nil
		}
	}
}
