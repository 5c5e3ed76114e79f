package main

import (
	"context"
	"crypto/rand"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// The metadata of the API's calls.
const (
	// headerRequestID makes a change idempotent: one id, one operation.
	headerRequestID = "debvisor-request-id"
	// headerWait with waitNone answers as soon as the operation is recorded.
	headerWait = "debvisor-wait"
	waitNone   = "none"
	// headerOperation is the operation's id, in the answer's header.
	headerOperation = "debvisor-operation"
)

// The pause before a call is repeated where the server named none: it doubles.
const (
	firstPause = 200 * time.Millisecond
	maxPause   = 2 * time.Second
)

// withRequestID gives the context of one change: a fresh request id, which its
// retries share, so that none of them can do it twice.
func withRequestID(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, headerRequestID, rand.Text())
}

// changing gives the context of one change that waits as the flags say.
func (a *app) changing(ctx context.Context) context.Context {
	ctx = withRequestID(ctx)
	if a.waits() {
		return ctx
	}
	return notWaiting(ctx)
}

// notWaiting asks a change to answer as soon as its operation is recorded.
func notWaiting(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, headerWait, waitNone)
}

// retry says which calls are repeated: those that a replica asks to repeat (no
// leader, say), and those that lost their connection; until patience has passed
// since a call first failed, or its context's deadline is near. Reads change nothing and changes have a request
// id, so repeating is safe. A call that never left is not repeated: the replicas
// were all tried.
type retry struct {
	reach    *reach
	patience time.Duration
	// tell tells people, once, that a call is repeated.
	tell func(format string, args ...any)
	told bool
}

// unary is the interceptor that repeats a call.
func (r *retry) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	call := r.begin()
	for {
		err := invoke(ctx, method, req, reply, conn, opts...)
		if err == nil || !call.rest(ctx, err) {
			return err
		}
	}
}

// attempts are one call's.
type attempts struct {
	of    *retry
	pause time.Duration
	until time.Time
}

// begin begins a call.
func (r *retry) begin() *attempts { return &attempts{of: r, pause: firstPause} }

// rest waits before the next attempt of a call that ended with err; false when
// there is to be none.
func (t *attempts) rest(ctx context.Context, err error) bool {
	after, ok := t.after(err)
	if !ok {
		return false
	}
	now := time.Now()
	if t.until.IsZero() {
		t.until = now.Add(t.of.patience)
	}
	next := now.Add(after)
	if deadline, ok := ctx.Deadline(); next.After(t.until) || (ok && next.After(deadline)) {
		return false
	}
	if !t.of.told {
		t.of.told = true
		t.of.tell("%s; trying again", firstLine(errdefs.FromStatus(err).Message))
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// after tells whether a call that ended with err is worth repeating, and when.
func (t *attempts) after(err error) (pause time.Duration, ok bool) {
	e := errdefs.FromStatus(err)
	if e.Kind != errdefs.Unavailable && e.Kind != errdefs.Aborted {
		return 0, false
	}
	if answered(e) {
		return e.RetryAfter, e.RetryAfter > 0
	}
	pause = t.pause
	t.pause = min(2*t.pause, maxPause)
	return pause, t.of.reach.sent()
}

// answered tells whether a server gave this error, and not the connection or
// the client's own deadline: only then it has ErrorDetails.
func answered(e *errdefs.Error) bool {
	switch e.Code {
	case codes.Unavailable.String(), codes.DeadlineExceeded.String(), codes.Canceled.String():
		return false
	default:
		return true
	}
}
