package api

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// View is what the chain needs of the store's View.
type View interface {
	Current() *cluster.Snapshot
	Fresh() error
}

// ChainConfig is what the stages of a Chain are made of.
type ChainConfig struct {
	View  View
	Authn *authn.Authenticator
	Authz *authz.Authorizer
	// Limit is nil on the agents' listener, whose calls are not counted.
	Limit *limit.Limiter
	// Strangers is nil on the agents' listener, where nobody comes without a
	// certificate.
	Strangers *Strangers
	Audit     *audit.Log
	// Check validates requests; one serves all chains.
	Check *Validator
	Log   hclog.Logger
}

// Chain is the way of every call to its handler: trace → audit → recover →
// authenticate → authorize → rate limit → validate → handler. Its methods are
// the interceptors of a server.
type Chain struct{ ChainConfig }

// NewChain makes a chain.
func NewChain(cfg ChainConfig) *Chain { return &Chain{cfg} }

// call is what a chain knows of one call; handlers add the operation.
type call struct {
	began     time.Time
	method    string
	rule      authz.Rule
	trace     string
	caller    *authn.Caller
	peer      string
	requestID string
	operation string
	// unheard is a call that is refused without a line of the audit log.
	unheard bool
}

type callKey struct{}

// callOf gives the call of a handler's context; nil outside of a chain.
func callOf(ctx context.Context) *call {
	k, _ := ctx.Value(callKey{}).(*call)
	return k
}

// Unary is the chain of unary calls.
func (c *Chain) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, k := c.open(ctx, info.FullMethod)
	var resp any
	err := rpc.Recover(func() error {
		admitted, err := c.admit(ctx, k, req)
		if err != nil {
			return err
		}
		if err := c.Check.Check(req); err != nil {
			return err
		}
		if err := c.sync(admitted, k); err != nil {
			return err
		}
		resp, err = handler(admitted, req)
		return err
	})
	if err := c.close(ctx, k, err); err != nil {
		return nil, err
	}
	return resp, nil
}

// Stream is the chain of streams; each message of the caller is validated as it
// is received.
func (c *Chain) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, k := c.open(ss.Context(), info.FullMethod)
	err := rpc.Recover(func() error {
		admitted, err := c.admit(ctx, k, nil)
		if err != nil {
			return err
		}
		if err := c.sync(admitted, k); err != nil {
			return err
		}
		return handler(srv, &checkedStream{ServerStream: rpc.WithContext(admitted, ss), check: c.Check})
	})
	return c.close(ctx, k, err)
}

// open gives the call its trace id.
func (c *Chain) open(ctx context.Context, method string) (context.Context, *call) {
	k := &call{began: time.Now(), method: method, peer: rpc.Address(ctx)}
	ctx, k.trace = rpc.StartTrace(ctx)
	k.rule, _ = c.Authz.Rule(method)
	return context.WithValue(ctx, callKey{}, k), k
}

// admit tells who calls and refuses those who may not, or not so often.
func (c *Chain) admit(ctx context.Context, k *call, req any) (context.Context, error) {
	snapshot := c.View.Current()
	ctx, first, refusal := c.authenticate(ctx, k, snapshot)
	if refusal != nil || k.caller == nil {
		if err := c.meet(k); err != nil {
			return ctx, c.refuseStranger(k, err)
		}
	}
	if !k.rule.Quiet {
		c.Audit.Add(c.called(ctx, k, req))
	}
	if !k.rule.Stale {
		// A revoked certificate or permission might still look good.
		if err := c.View.Fresh(); err != nil {
			return ctx, err
		}
	}
	switch {
	case k.rule.Open:
	case refusal != nil:
		if k.caller != nil {
			c.Log.Warn("call refused", "caller", k.caller.Name, "serial", k.caller.Serial, "peer", k.peer, "method", k.method, "reason", refusal)
		}
		c.Audit.Add(c.refused(k, audit.AuthenticationFailure, refusal))
		return ctx, refusal
	case first:
		c.Audit.Add(&audit.Event{
			Time: k.began, Kind: audit.AuthenticationSuccess, TraceID: k.trace,
			Principal: k.caller.Name, Peer: k.peer, Method: k.method,
		})
	}
	if err := c.Authz.Authorize(snapshot, k.caller, k.method, k.began); err != nil {
		c.Audit.Add(c.refused(k, audit.PermissionDenied, err))
		return ctx, err
	}
	if k.caller == nil {
		return ctx, nil // it was counted before
	}
	if err := c.count(k); err != nil {
		c.Audit.Add(c.refused(k, audit.RateLimitExceeded, err))
		return ctx, err
	}
	return ctx, nil
}

// authenticate tells who calls, whether this connection was asked for the first
// time, and why the caller cannot be told or is not to be believed.
func (c *Chain) authenticate(ctx context.Context, k *call, snapshot *cluster.Snapshot) (_ context.Context, first bool, refusal error) {
	caller, first, err := c.Authn.Authenticate(ctx, snapshot, k.began)
	if caller == nil {
		return ctx, first, err
	}
	k.caller = caller
	return authn.With(ctx, caller), first, c.Authn.Check(caller, snapshot, k.began)
}

// meet counts a call that nobody answers for by the address it comes from. One
// that carries its own proof of identity counts once that has failed.
func (c *Chain) meet(k *call) error {
	switch {
	case k.rule.Quiet:
		return nil
	case !k.rule.Open:
		return c.Strangers.failed(k.peer, k.began)
	}
	if err := c.Strangers.admit(k.peer, k.began); err != nil || k.caller != nil {
		return err
	}
	return c.count(k)
}

// count counts the call: a caller's by its name, and where there is none, as
// with enrolment, by the address that it came from.
func (c *Chain) count(k *call) error {
	if c.Limit == nil || k.rule.Quiet {
		return nil
	}
	if k.caller == nil {
		return c.Limit.Take("address:"+k.peer, k.began)
	}
	return c.Limit.Take(k.caller.Name, k.began)
}

// sync makes a change wait until the audit log tells of it.
func (c *Chain) sync(ctx context.Context, k *call) error {
	if !k.rule.Change {
		return nil
	}
	return c.Audit.Sync(ctx)
}

// close ends the call: its result is audited, and what went wrong leaves as a
// status.
func (c *Chain) close(ctx context.Context, k *call, err error) error {
	status := rpc.Finish(c.Log, k.method, k.trace, err)
	if k.rule.Quiet || k.unheard {
		return status
	}
	if k.rule.Open && (errdefs.Is(err, errdefs.Unauthenticated) || errdefs.Is(err, errdefs.InvalidArgument)) {
		_ = c.Strangers.failed(k.peer, k.began) // this call is over; the next is refused
	}
	c.Audit.Add(c.result(k, status))
	if k.rule.Change && err == nil {
		// The change is made; that its end may not be on disk yet is in the log.
		if err := c.Audit.Sync(context.WithoutCancel(ctx)); err != nil {
			c.Log.Error("the end of a change is not in the audit log yet", "method", k.method, "trace_id", k.trace, "error", err)
		}
	}
	return status
}

func (c *Chain) called(ctx context.Context, k *call, req any) *audit.Event {
	k.requestID = metadataValue(ctx, requestIDHeader)
	e := &audit.Event{
		Time: k.began, Kind: audit.Call, TraceID: k.trace, Principal: name(k.caller),
		Peer: k.peer, Method: k.method, RequestID: clip(k.requestID),
	}
	// What carries its own proof of identity is a secret.
	if m, ok := req.(proto.Message); ok && k.rule.Change && !k.rule.Open {
		e.Args = audit.Summary(m)
	}
	return e
}

func (c *Chain) refused(k *call, kind audit.Kind, err error) *audit.Event {
	e := errdefs.FromStatus(errdefs.ToStatus(err, k.trace))
	return &audit.Event{
		Time: time.Now(), Kind: kind, TraceID: k.trace, Principal: name(k.caller),
		Peer: k.peer, Method: k.method, Error: e.Code, Reason: e.Message,
	}
}

func (c *Chain) result(k *call, status error) *audit.Event {
	now := time.Now()
	e := &audit.Event{
		Time: now, Kind: audit.Result, TraceID: k.trace, Principal: name(k.caller),
		Peer: k.peer, Method: k.method, Code: "OK", Operation: k.operation, Duration: now.Sub(k.began),
	}
	if status != nil {
		refusal := errdefs.FromStatus(status)
		e.Code, e.Error, e.Reason = statusCode(status), refusal.Code, refusal.Message
	}
	return e
}

func name(caller *authn.Caller) string {
	if caller == nil {
		return ""
	}
	return caller.Name
}
