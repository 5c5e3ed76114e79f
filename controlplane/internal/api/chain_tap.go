package api

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/tap"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

const (
	// maxHold is how long a connection's calls may be refused without asking the
	// limiter again, which a higher limit may have made to say otherwise.
	maxHold = time.Second
	// tapDeadline is the longest deadline of a call that the tap refuses:
	// grpc-go keeps the context of such a call until then, so that a flood with
	// long ones would fill the memory. Others take the way of all calls.
	tapDeadline = 5 * time.Second
)

// held is a caller that is over its rate, noted with its connection.
type held struct {
	caller *authn.Caller
	// bearer is the authorization that the caller came with; empty: its
	// certificate.
	bearer string
	until  time.Time
	// refusal is what the limiter said.
	refusal *errdefs.Error
	// again is when the limiter will let the next call pass.
	again time.Time
}

// hold lets the tap refuse further calls of a caller that is over its rate, at
// a fraction of what they would cost on their way to the limiter.
func (c *Chain) hold(k *call, err error) {
	peer, refusal := rpc.PeerOf(k.Context), errdefs.Of(err)
	if peer == nil {
		return
	}
	peer.Note(&held{
		caller: k.caller, bearer: metadataValue(k.Context, "authorization"), refusal: refusal,
		until: k.began.Add(min(refusal.RetryAfter, maxHold)), again: k.began.Add(refusal.RetryAfter),
	})
}

// Tap refuses what need not come to a handler: calls on a connection whose
// caller was just told to wait, and paths that are none, which grpc-go would
// refuse by itself and without details.
func (c *Chain) Tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) > tapDeadline {
		return ctx, nil
	}
	if strings.LastIndexByte(info.FullMethodName, '/') < 1 || info.FullMethodName[0] != '/' {
		return ctx, c.refuseAtTap(ctx, info, &c.flood, audit.PermissionDenied, nil, errdefs.New(
			errdefs.Unimplemented, "MALFORMED_METHOD", "%q is no method; expected /package.Service/Method", shownMethod(info.FullMethodName)))
	}
	peer := rpc.PeerOf(ctx)
	if peer == nil {
		return ctx, nil
	}
	h, _ := peer.Noted().(*held)
	if h == nil {
		return ctx, nil
	}
	now := time.Now()
	if now.After(h.until) || first(info.Header["authorization"]) != h.bearer {
		return ctx, nil
	}
	if rule, _ := c.Authz.Rule(info.FullMethodName); rule.Quiet || rule.Open {
		return ctx, nil
	}
	refusal := *h.refusal
	refusal.RetryAfter = max(h.again.Sub(now).Round(time.Millisecond), time.Millisecond)
	return ctx, c.refuseAtTap(ctx, info, &c.refusals, audit.RateLimitExceeded, h.caller, &refusal)
}

// refuseAtTap makes a status of a refusal, and counts it for the audit log.
func (c *Chain) refuseAtTap(ctx context.Context, info *tap.Info, in *tally, kind audit.Kind, caller *authn.Caller, refusal *errdefs.Error) error {
	k := call{
		Context: ctx, began: time.Now(), method: info.FullMethodName, peer: rpc.Address(ctx), kind: kind, caller: caller,
		trace: rpc.PickTrace(func(key string) []string { return info.Header[key] }),
	}
	c.meter(&k, refusal)
	in.tell(&k, refusal)
	return errdefs.ToStatus(refusal, k.trace)
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
