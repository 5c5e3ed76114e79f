package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/debvisor/debvisor/integration/lab"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// requests numbers the request ids of this run.
var requests atomic.Int64

// requestID is a new id for a request.
func requestID() string {
	return "e2e-" + strconv.FormatInt(time.Now().UnixNano(), 36) + "-" + strconv.FormatInt(requests.Add(1), 10)
}

// withRequestID makes a call part of a request.
func withRequestID(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "debvisor-request-id", id)
}

// begin asks for a move without waiting for its end, again as long as no replica leads, and gives the operation's id.
func (m *mover) begin(a *api) string {
	m.c.t.Helper()
	return m.beginSpec(a, m.spec())
}

// beginSpec is begin for a move to a specification.
func (m *mover) beginSpec(a *api, spec *debvisorv1.VMMigrateSpec) string {
	m.c.t.Helper()
	ctx := m.c.within(30 * time.Second)
	asking := metadata.AppendToOutgoingContext(withRequestID(ctx, requestID()), "debvisor-wait", "none")
	var id string
	err := lab.Eventually(ctx, "the operation is taken", func() error {
		result, err := a.migrations.MigrateVM(asking, spec)
		if err != nil && status.Code(err) != codes.Unavailable {
			m.c.t.Fatalf("asking %s to move %s: %v", a.replica.Name, m.Name, err)
		}
		id = result.GetOperationId()
		return err
	})
	m.c.must(err)
	return id
}

// watched are the states of an operation as a watch told them.
type watched []*debvisorv1.Operation

func (w watched) last() *debvisorv1.Operation {
	if len(w) == 0 {
		return nil
	}
	return w[len(w)-1]
}

// watch follows an operation to its end, or until see says that it has seen enough.
func (c *cluster) watch(ctx context.Context, a *api, id string, see func(*debvisorv1.Operation) bool) (watched, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.operations.WatchOperation(ctx, &debvisorv1.OperationRef{Id: id})
	if err != nil {
		return nil, err
	}
	var all watched
	for {
		op, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, fmt.Errorf("watching %s at %s: %w", id, a.replica.Name, err)
		}
		all = append(all, op)
		if see != nil && see(op) {
			return all, nil
		}
	}
}

// ended waits for an operation's end at a replica, whatever comes between, and gives it.
func (c *cluster) ended(limit time.Duration, a *api, id string) *debvisorv1.Operation {
	c.t.Helper()
	ctx := c.within(limit)
	var op *debvisorv1.Operation
	err := lab.Eventually(ctx, "operation "+id+" ends", func() error {
		all, err := c.watch(ctx, a, id, nil)
		if err == nil && !isEnded(all.last()) {
			err = fmt.Errorf("the watch ended with it %v", all.last().GetState())
		}
		if err != nil {
			err = fmt.Errorf("it is %v in step %q: %w", all.last().GetState(), all.last().GetStep(), err)
		}
		op = all.last()
		return err
	})
	c.must(err)
	return op
}

func isEnded(op *debvisorv1.Operation) bool {
	return op.GetState() >= debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED
}

// succeeded is ended for one that must succeed.
func (c *cluster) succeeded(limit time.Duration, a *api, id string) *debvisorv1.Operation {
	c.t.Helper()
	op := c.ended(limit, a, id)
	if op.GetState() != debvisorv1.OperationState_OPERATION_STATE_SUCCEEDED {
		c.t.Fatalf("operation %s is %v: %v", id, op.GetState(), op.GetError())
	}
	return op
}

// details gives what an error carries.
func details(err error) (d *debvisorv1.ErrorDetails, retry time.Duration) {
	for _, detail := range status.Convert(err).Details() {
		switch v := detail.(type) {
		case *debvisorv1.ErrorDetails:
			d = v
		case *errdetails.RetryInfo:
			retry = v.GetRetryDelay().AsDuration()
		}
	}
	return d, retry
}

// refused checks that a call was refused with a code; it gives the details.
func refused(t *testing.T, err error, want codes.Code) *debvisorv1.ErrorDetails {
	t.Helper()
	d, _ := details(err)
	if status.Code(err) != want {
		t.Errorf("refused with %v, want %v", err, want)
	}
	if d.GetCode() == "" || d.GetMessage() == "" || d.GetTraceId() == "" {
		t.Errorf("%v carries no details: %v", err, d)
	}
	return d
}
