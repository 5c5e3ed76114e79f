package api

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/limit"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// View is what the chain needs of the store's View.
type View interface {
	Current() *cluster.Snapshot
	Changed() <-chan struct{}
	Fresh() error
}

// ChainConfig is what the stages of a Chain are made of.
type ChainConfig struct {
	View  View
	Authn *authn.Authenticator
	Authz *authz.Authorizer
	// Limit is nil on the agents' listener, whose calls are not counted.
	Limit *limit.Limiter
	// Strangers limits calls that are refused; on the agents' listener, where
	// nobody comes without a certificate, those of agents.
	Strangers *Strangers
	Audit     *audit.Log
	// Check validates requests; one serves all chains.
	Check *Validator
	// Disk refuses changes while etcd's disk is about to be full; nil: it never is.
	Disk interface{ Full() error }
	// Meter is told what becomes of calls; nil: nobody is.
	Meter Meter
	Log   hclog.Logger
}

// Chain is the way of every call to its handler: trace → audit → recover →
// authenticate → authorize → rate limit → validate → handler. Its methods are
// the interceptors and the tap of a server; Run must run for as long as it
// serves.
type Chain struct {
	ChainConfig
	guard guard
	// refusals are those of callers, flood those of strangers.
	refusals, flood tally
}

// NewChain makes a chain.
func NewChain(cfg ChainConfig) *Chain {
	if cfg.Meter == nil {
		cfg.Meter = unmetered{}
	}
	c := &Chain{ChainConfig: cfg}
	c.refusals = newTally(time.Second, cfg.Audit)
	c.flood = newTally(time.Minute, cfg.Audit)
	return c
}

// Unary is the chain of unary calls.
func (c *Chain) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	k := c.open(ctx, info.FullMethod)
	resp, err := c.answer(k, req, handler)       //nolint:contextcheck // a call is its context
	if err := c.close(k, req, err); err != nil { //nolint:contextcheck // likewise
		return nil, err
	}
	return resp, nil
}

// answer passes a unary call through the stages.
func (c *Chain) answer(k *call, req any, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = rpc.Panicked(r)
		}
	}()
	if err := c.admit(k); err != nil {
		return nil, err
	}
	if err := c.Check.Check(req); err != nil {
		return nil, err
	}
	if !k.rule.Change {
		c.begin(k, req)
		return handler(k, req)
	}
	ctx, release := c.watch(k)
	defer release()
	if err := c.record(ctx, c.begin(k, req)); err != nil {
		return nil, err
	}
	resp, err = handler(ctx, req)
	return resp, ended(ctx, err)
}

// Stream is the chain of streams; each message of the caller is validated as it
// is received.
func (c *Chain) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	k := c.open(ss.Context(), info.FullMethod)
	k.stream = true
	c.Meter.StreamBegins(k.method)
	err := rpc.Recover(func() error {
		if err := c.admit(k); err != nil {
			return err
		}
		ctx, release := c.watch(k)
		defer release()
		told := c.begin(k, nil)
		if k.rule.Change {
			if err := c.record(ctx, told); err != nil {
				return err
			}
		}
		return c.guard.serve(ctx, func() error {
			return handler(srv, &checkedStream{ServerStream: rpc.WithContext(ctx, ss), check: c.Check})
		})
	})
	return c.close(k, nil, err)
}

// Undelivered counts and audits a unary call whose message never arrived whole,
// as rpc.Registrar tells of it. It has been answered.
func (c *Chain) Undelivered(ctx context.Context, method string, err error) {
	k := c.open(ctx, method)
	if refusal := c.admit(k); refusal != nil {
		err = refusal
	}
	_ = c.close(k, nil, err) //nolint:contextcheck // a call is its context; nobody is there to be told
}

// open gives the call its trace id.
func (c *Chain) open(ctx context.Context, method string) *call {
	k := &call{Context: ctx, began: time.Now(), method: method, peer: rpc.Address(ctx), kind: audit.Result}
	k.trace = rpc.NewTrace(ctx)
	k.rule, k.known = c.Authz.Rule(method)
	return k
}

// admit tells who calls and refuses those who may not, or not so often.
func (c *Chain) admit(k *call) error {
	snapshot := c.View.Current()
	first, refusal := c.authenticate(k, snapshot)
	c.meterIdentity(k, refusal)
	if refusal == nil || k.rule.Open {
		k.grant = c.Authz.Grant(snapshot, k.caller)
	}
	if refusal != nil || k.caller == nil {
		if err := c.meet(k); err != nil {
			k.kind, k.summed = audit.RateLimitExceeded, &c.flood
			return err
		}
	}
	if !k.rule.Stale {
		// A revoked certificate or permission might still look good.
		if err := c.View.Fresh(); err != nil {
			k.summed = &c.refusals
			return err
		}
	}
	if refusal != nil && !k.rule.Open {
		k.kind = audit.AuthenticationFailure
		c.tellRefused(k, refusal)
		return refusal
	}
	denied := c.authorize(k)
	c.Meter.Authorized(refusalCode(denied))
	if k.caller == nil {
		return denied // it was counted before
	}
	// What is denied counts, too: it is no cheaper, and fills the audit log.
	if err := c.count(k, denied != nil); err != nil {
		k.kind, k.summed = audit.RateLimitExceeded, &c.refusals
		c.hold(k, err)
		return err
	}
	// Only now: whoever takes turns with two credentials is told of as new with
	// every call, and must not fill the audit log either.
	if first && !k.rule.Open {
		e := k.event(audit.AuthenticationSuccess, nil)
		c.Audit.Add(&e)
	}
	return denied
}

// tellRefused logs why a caller that can be told is not to be believed.
func (c *Chain) tellRefused(k *call, refusal error) {
	if k.caller != nil {
		c.Log.Warn("call refused", "caller", k.caller.Name, "credential", k.caller.CredentialID, "peer", k.peer,
			"method", shownMethod(k.method), obs.TraceKey, k.trace, "reason", authn.Reason(refusal))
	}
}

// authenticate tells who calls, whether this connection was asked for the first
// time, and why the caller cannot be told or is not to be believed.
func (c *Chain) authenticate(k *call, snapshot *cluster.Snapshot) (first bool, refusal error) {
	k.caller, first, refusal = c.Authn.Authenticate(k.Context, snapshot, k.began)
	if k.caller == nil {
		return first, refusal
	}
	if refusal == nil {
		refusal = c.Authn.Check(k.caller, snapshot, k.began)
	}
	return first, refusal
}

// authorize refuses what the caller may not call, and what does not exist.
func (c *Chain) authorize(k *call) error {
	if !k.known {
		k.kind = audit.PermissionDenied
		return errdefs.New(errdefs.Unimplemented, "UNKNOWN_METHOD", "this server has no method %q", shownMethod(k.method))
	}
	err := c.Authz.AuthorizeBy(k.grant, k.caller, k.method, k.began)
	if err != nil {
		k.kind = audit.PermissionDenied
	}
	return err
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
	return c.count(k, false)
}

// count counts the call: a caller's by its name, and where there is none, as
// with enrolment, by the address that it came from. What agents may call on
// their listener is not counted; what they may not, by address.
func (c *Chain) count(k *call, denied bool) error {
	switch {
	case k.rule.Quiet:
		return nil
	case c.Limit == nil && denied:
		return c.Strangers.failed(k.peer, k.began)
	case c.Limit == nil:
		return nil
	}
	who := name(k.caller)
	if k.caller == nil {
		who = network(k.peer)
	}
	perMinute, burst, unlimited := k.grant.Limit()
	return c.Limit.Take(who, limit.Rate{PerMinute: perMinute, Burst: burst, Unlimited: unlimited}, k.began)
}

// begin tells the audit log that the call is about to be handled, if that has
// room for it.
func (c *Chain) begin(k *call, req any) (told bool) {
	if k.rule.Quiet {
		return true
	}
	k.begun = true
	k.requestID = metadataValue(k.Context, requestIDHeader)
	e := k.event(audit.Call, req)
	return c.Audit.Add(&e)
}

// record lets a change wait until the audit log, which was told of it, has it on
// disk. One for which etcd has no room is refused.
func (c *Chain) record(ctx context.Context, told bool) error {
	if c.Disk != nil {
		if err := c.Disk.Full(); err != nil {
			return err
		}
	}
	if !told {
		return audit.ErrFull
	}
	return ended(ctx, c.Audit.Sync(ctx))
}

// close ends the call: its result is audited, and what went wrong leaves as a
// status. A call that never began has one line, which says all of it.
func (c *Chain) close(k *call, req any, err error) error {
	status := rpc.Finish(c.Log, k.method, k.trace, err)
	c.meter(k, err)
	if k.rule.Quiet {
		return status
	}
	if k.rule.Open && (errdefs.Is(err, errdefs.Unauthenticated) || errdefs.Is(err, errdefs.InvalidArgument)) {
		_ = c.Strangers.failed(k.peer, k.began) // this call is over; the next is refused
	}
	switch {
	case k.summed != nil:
		k.summed.tell(k, err)
	case k.begun:
		e := k.result(audit.Result, nil, err)
		c.Audit.Add(&e)
	default:
		k.requestID = metadataValue(k.Context, requestIDHeader)
		e := k.result(k.kind, req, err)
		c.Audit.Add(&e)
	}
	if k.rule.Change && err == nil {
		// The change is made; that its end may not be on disk yet is in the log.
		if err := c.Audit.Sync(context.WithoutCancel(k.Context)); err != nil {
			c.Log.Error("the end of a change is not in the audit log yet", "method", k.method, obs.TraceKey, k.trace, obs.OperationKey, k.operation, "error", err)
		}
	}
	return status
}
