package api

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// call is what a chain knows of one call; handlers add the operation. It is the
// context of its handler, which spares every call three others.
type call struct {
	context.Context
	began  time.Time
	method string
	rule   authz.Rule
	// known is false for a method that does not exist.
	known  bool
	trace  string
	caller *authn.Caller
	// grant is what the caller may do: nothing where nobody calls.
	grant     *authz.Grant
	peer      string
	requestID string
	operation string
	// stream says that it is no unary call.
	stream bool
	// begun says that the audit log tells of its beginning.
	begun bool
	// kind is that of the line of a call that never began.
	kind audit.Kind
	// summed takes the refusal in place of the audit log.
	summed *tally
	// end ends a call that is watched.
	end context.CancelCauseFunc
}

type callKey struct{}

// Value gives what handlers ask for of their call.
func (k *call) Value(key any) any {
	switch {
	case key == any(callKey{}):
		return k
	case authn.IsCallerKey(key):
		return k.caller
	case rpc.IsTraceKey(key):
		return k.trace
	}
	return k.Context.Value(key)
}

// callOf gives the call of a handler's context; nil outside of a chain.
func callOf(ctx context.Context) *call {
	k, _ := ctx.Value(callKey{}).(*call)
	return k
}

// grantOf gives what the caller of a handler's context may do; nil outside of a
// chain.
func grantOf(ctx context.Context) *authz.Grant {
	if k := callOf(ctx); k != nil {
		return k.grant
	}
	return nil
}

// event is what every line that tells of the call begins with.
func (k *call) event(kind audit.Kind, req any) audit.Event {
	e := audit.Event{
		Time: k.began, Kind: kind, TraceID: k.trace, Principal: name(k.caller), Credential: credential(k.caller),
		Peer: k.peer, Method: shownMethod(k.method), RequestID: clip(k.requestID),
	}
	// What carries its own proof of identity is a secret.
	if m, ok := req.(proto.Message); ok && k.rule.Change && !k.rule.Open {
		e.Args = audit.Summary(m)
	}
	return e
}

// result tells how the call ended; with what was asked where it never began.
func (k *call) result(kind audit.Kind, req any, err error) audit.Event {
	e := k.event(kind, req)
	e.Time, e.Code, e.Operation = time.Now(), "OK", k.operation
	e.Duration = e.Time.Sub(k.began)
	if err != nil {
		refusal := errdefs.Of(err)
		e.Code, e.Error, e.Reason = refusal.Kind.String(), refusal.Code, refusal.Message
	}
	if kind == audit.AuthenticationFailure {
		e.Reason = authn.Reason(err)
	}
	return e
}

func name(caller *authn.Caller) string {
	if caller == nil {
		return ""
	}
	return caller.Name
}

// credential is what a caller showed where that is not its certificate, such as
// "apikey:0123456789abcdef".
func credential(caller *authn.Caller) string {
	switch {
	case caller == nil:
		return ""
	case caller.Kind == authn.APIKey:
		return "apikey:" + caller.CredentialID
	case caller.Kind == authn.JWT:
		return "jwt:" + caller.CredentialID
	}
	return ""
}

// shownMethod shortens the name of a method that a caller made up.
func shownMethod(method string) string {
	const most = 128
	if len(method) <= most {
		return method
	}
	return method[:most] + "…"
}
