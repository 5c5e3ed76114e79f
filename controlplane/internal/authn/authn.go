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

// Kind is how a caller says who it is.
type Kind int

// The kinds.
const (
	Certificate Kind = iota
	APIKey
	JWT
)

// String is the kind's name in logs and audit.
func (k Kind) String() string {
	switch k {
	case APIKey:
		return "api key"
	case JWT:
		return "jwt"
	default:
		return "certificate"
	}
}

// Caller is who makes a call. It is never changed: all calls of a connection
// that come with the same credential share one.
type Caller struct {
	identity.Identity
	// Name is the principal's, or "agent:<node>".
	Name string
	// Serial is that of the certificate, in hex; empty without one.
	Serial string
	Kind   Kind
	// CredentialID names the credential: a certificate's serial, a key's id, the
	// first 16 hex digits of a token's SHA-256.
	CredentialID string
	// Expires is when the credential ends; zero: never. An agent may renew an
	// ended one, so that it is authz that refuses it everything else.
	Expires time.Time
	// Permissions are those that a trusted issuer wrote into a token.
	Permissions []string
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

// Config says what an Authenticator accepts.
type Config struct {
	// Cluster is the trust domain of agents' certificates.
	Cluster string
}

// Authenticator tells callers by the credentials of one cluster.
type Authenticator struct{ cfg Config }

// New makes an authenticator.
func New(cfg Config) *Authenticator { return &Authenticator{cfg: cfg} }

// verdict is what one connection's certificate came to.
type verdict struct {
	caller *Caller
	err    error
}

// Authenticate tells who makes the call of this context. What a certificate
// says is found once a connection; first says whether this was that time. The
// error is Unauthenticated. Whether the credential still holds is Check's to
// say.
func (a *Authenticator) Authenticate(ctx context.Context, _ *cluster.Snapshot, _ time.Time) (caller *Caller, first bool, err error) {
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
	id, err := identity.FromCertificate(leaf, a.cfg.Cluster)
	if err != nil {
		return verdict{err: err}
	}
	c := &Caller{Identity: id, Name: id.String(), Kind: Certificate, Expires: leaf.NotAfter}
	if id.Agent != nil {
		c.Serial = id.Agent.Serial
	} else {
		c.Serial = id.Principal.Serial
	}
	c.CredentialID = c.Serial
	return verdict{caller: c}
}

// Check tells whether a caller's credential still holds at that moment, by a
// snapshot; nil: it does. It refuses (Unauthenticated) a certificate that has
// been revoked, a principal's that has ended, and that of an agent whose node
// was enrolled anew after it was issued: whoever holds that one speaks for the
// node no more.
func (a *Authenticator) Check(c *Caller, s *cluster.Snapshot, now time.Time) error {
	if _, revoked := s.Revoked[c.Serial]; revoked {
		return errdefs.New(errdefs.Unauthenticated, "CERTIFICATE_REVOKED",
			"the certificate of %s (serial %s) has been revoked", c.Name, c.Serial).With("serial", c.Serial)
	}
	if c.Agent == nil {
		return checkExpiry(c, now)
	}
	if node, ok := s.Nodes[c.Agent.Node]; ok && c.Agent.Replaced(node.Value.GetEnrolledAt().AsTime()) {
		return errdefs.New(errdefs.Unauthenticated, "NODE_REPLACED",
			"node %q was enrolled anew after the certificate of %s (serial %s) was issued", c.Agent.Node, c.Name, c.Serial).
			With("node", c.Agent.Node).With("serial", c.Serial)
	}
	return nil
}

// checkExpiry refuses a certificate that ended after the handshake had
// accepted it.
func checkExpiry(c *Caller, now time.Time) error {
	if c.Expires.IsZero() || !now.After(c.Expires) {
		return nil
	}
	return errdefs.New(errdefs.Unauthenticated, "CERTIFICATE_EXPIRED",
		"the certificate of %s (serial %s) ended at %s: connect anew with a new one", c.Name, c.Serial, c.Expires.UTC().Format(time.RFC3339)).
		With("serial", c.Serial)
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
