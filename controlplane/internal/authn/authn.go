// Package authn tells who makes a call: a principal or a node's agent, from the
// certificate that the handshake verified. It grants nothing; authz does.
package authn

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Caller is who makes a call.
type Caller struct {
	identity.Identity
	// Name is the principal's, or "agent:<node>".
	Name string
	// Serial is that of the certificate, in hex.
	Serial string
}

// Node is the node whose agent calls; "" for a principal.
func (c *Caller) Node() string {
	if c == nil || c.Agent == nil {
		return ""
	}
	return c.Agent.Node
}

// Expired tells whether the caller may do nothing but renew its certificate.
func (c *Caller) Expired(now time.Time) bool {
	return c.Agent != nil && c.Agent.Expired(now)
}

// Authenticator tells callers by the certificates of one cluster.
type Authenticator struct {
	cluster string
}

// New makes an authenticator for the cluster of that name.
func New(cluster string) *Authenticator { return &Authenticator{cluster: cluster} }

// verdict is what one connection's certificate came to.
type verdict struct {
	caller *Caller
	err    error
}

// Authenticate tells who makes the call of this context. The answer is found
// once a connection; first says whether this was that time. The error is
// Unauthenticated.
func (a *Authenticator) Authenticate(ctx context.Context) (caller *Caller, first bool, err error) {
	peer := rpc.PeerOf(ctx)
	if peer == nil {
		return nil, false, noCertificate()
	}
	made, first := peer.Once(a.judge)
	v, ok := made.(verdict)
	if !ok {
		return nil, first, noCertificate()
	}
	return v.caller, first, v.err
}

func (a *Authenticator) judge(leaf *x509.Certificate) any {
	if leaf == nil {
		return verdict{err: noCertificate()}
	}
	id, err := identity.FromCertificate(leaf, a.cluster)
	if err != nil {
		return verdict{err: err}
	}
	c := &Caller{Identity: id, Name: id.String()}
	if id.Agent != nil {
		c.Serial = id.Agent.Serial
	} else {
		c.Serial = id.Principal.Serial
	}
	return verdict{caller: c}
}

// Revoked refuses a caller whose certificate has been revoked, and an agent
// whose node was enrolled anew after its certificate was issued: whoever holds
// that one speaks for the node no more.
func Revoked(c *Caller, s *cluster.Snapshot) error {
	if _, revoked := s.Revoked[c.Serial]; revoked {
		return errdefs.New(errdefs.Unauthenticated, "CERTIFICATE_REVOKED",
			"the certificate of %s (serial %s) has been revoked", c.Name, c.Serial).With("serial", c.Serial)
	}
	if c.Agent == nil {
		return nil
	}
	if node, ok := s.Nodes[c.Agent.Node]; ok && c.Agent.Replaced(node.Value.GetEnrolledAt().AsTime()) {
		return errdefs.New(errdefs.Unauthenticated, "NODE_REPLACED",
			"node %q was enrolled anew after the certificate of %s (serial %s) was issued", c.Agent.Node, c.Name, c.Serial).
			With("node", c.Agent.Node).With("serial", c.Serial)
	}
	return nil
}

func noCertificate() error {
	return errdefs.New(errdefs.Unauthenticated, "NO_IDENTITY",
		"this call needs an identity: connect with a client certificate of this cluster's CA")
}

type callerKey struct{}

// With gives a context whose call is made by c.
func With(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From tells who makes a call; nil for the few calls that need no identity.
func From(ctx context.Context) *Caller {
	c, _ := ctx.Value(callerKey{}).(*Caller)
	return c
}
