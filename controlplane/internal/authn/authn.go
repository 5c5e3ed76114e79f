// Package authn tells who makes a call: a principal or a node's agent, from the
// certificate that the handshake verified; else a principal, from the API key
// or the JWT that the call carries. It asks nobody: all that it needs is in the
// snapshot, in the access file and in the keys of tokens, which it fetches
// beforehand. It grants nothing; authz does.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"sync/atomic"
	"time"

	"github.com/debvisor/debvisor/certs"
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
	// Identity is empty for a replica.
	identity.Identity
	// Replica is the replica that calls; empty: it is a principal or an agent.
	Replica string
	// Name is the principal's, or "agent:<node>", or "replica:<name>".
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

	// authority is the key id of the CA that signed the certificate, in hex.
	authority string
	// proof is what Check looks for: the SHA-256 of a key's text, or of the
	// public key that a token was signed with.
	proof [sha256.Size]byte
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
	// Replicas lets in replicas, which show the certificate that they serve with;
	// without it they are nobody.
	Replicas bool
	// Bearers lets in those who come without a certificate; nil: nobody, as on
	// the agents' listener.
	Bearers *Bearers
}

// Authenticator tells callers by the credentials of one cluster.
type Authenticator struct {
	cfg     Config
	retired *retirement
}

// New makes an authenticator.
func New(cfg Config) *Authenticator { return &Authenticator{cfg: cfg, retired: &retirement{}} }

// verdict is what one connection's certificate came to. Without a certificate
// it has neither a caller nor an error.
type verdict struct {
	caller *Caller
	err    error
	// last is the bearer that was last accepted on the connection.
	last atomic.Pointer[accepted]
}

// Authenticate tells who makes the call of this context. A certificate counts
// before all else, and what it says is found once a connection; without one the
// call's bearer counts. First says whether the credential is another than that
// of the call before on this connection. The error is Unauthenticated
// (Unavailable where a token's keys could not be fetched yet), and Reason tells
// more of it than the caller may know. Whether the credential still holds is
// Check's to say.
func (a *Authenticator) Authenticate(ctx context.Context, s *cluster.Snapshot, now time.Time) (caller *Caller, first bool, err error) {
	peer := rpc.PeerOf(ctx)
	if peer == nil {
		return nil, false, a.noIdentity()
	}
	made, first := peer.Once(a.judge)
	v, ok := made.(*verdict)
	switch {
	case !ok:
		return nil, first, a.noIdentity()
	case v.caller != nil || v.err != nil:
		return v.caller, first, v.err
	}
	text, err := bearer(ctx)
	if err != nil || text == "" || a.cfg.Bearers == nil {
		if err == nil || a.cfg.Bearers == nil {
			err = a.noIdentity()
		}
		return nil, first, err
	}
	return a.cfg.Bearers.authenticate(ctx, v, text, s, now)
}

// ByCertificate tells whom a certificate that a handshake has verified belongs
// to: for what is asked without gRPC. The error is Unauthenticated; nil: nobody
// showed one. Check is still to be asked.
func (a *Authenticator) ByCertificate(leaf *x509.Certificate) (*Caller, error) {
	if leaf == nil {
		return nil, errdefs.New(errdefs.Unauthenticated, "NO_IDENTITY", "this needs an identity: connect with a client certificate of this cluster's CA")
	}
	v, ok := a.judge(leaf).(*verdict)
	if !ok {
		return nil, a.noIdentity()
	}
	return v.caller, v.err
}

func (a *Authenticator) judge(leaf *x509.Certificate) any {
	if leaf == nil {
		return &verdict{}
	}
	if replica, ok := identity.ReplicaOf(leaf, a.cfg.Cluster); ok && a.cfg.Replicas {
		serial := certs.Serial(leaf)
		return &verdict{caller: &Caller{
			Replica: replica, Name: "replica:" + replica, Kind: Certificate, Serial: serial, CredentialID: serial, Expires: leaf.NotAfter,
			authority: hex.EncodeToString(leaf.AuthorityKeyId),
		}}
	}
	id, err := identity.FromCertificate(leaf, a.cfg.Cluster)
	if err != nil {
		return &verdict{err: err}
	}
	c := &Caller{Identity: id, Name: id.String(), Kind: Certificate, Expires: leaf.NotAfter, authority: hex.EncodeToString(leaf.AuthorityKeyId)}
	if id.Agent != nil {
		c.Serial = id.Agent.Serial
	} else {
		c.Serial = id.Principal.Serial
	}
	c.CredentialID = c.Serial
	return &verdict{caller: c}
}

// Check tells whether a caller's credential still holds at that moment; nil: it
// does. It refuses (Unauthenticated) a key or a token that Authenticate would
// refuse, a certificate that has been revoked, a principal's that has ended,
// and that of an agent whose node was enrolled anew after it was issued:
// whoever holds that one speaks for the node no more.
func (a *Authenticator) Check(c *Caller, s *cluster.Snapshot, now time.Time) error {
	switch {
	case c.Kind == Certificate:
		if a.retired.ended(s, c.authority) {
			return errdefs.New(errdefs.Unauthenticated, "CA_RETIRED",
				"the certificate of %s (serial %s) is of a CA that the cluster trusts no more: get a new one", c.Name, c.Serial).With("serial", c.Serial)
		}
		return checkCertificate(c, s, now)
	case a.cfg.Bearers == nil:
		return a.noIdentity()
	default:
		return a.cfg.Bearers.check(c, s, now)
	}
}

// Stamp is another one, by ==, as soon as Check may say something else of some
// caller without another snapshot, access file or time: when the issuer of
// tokens has other keys.
func (a *Authenticator) Stamp() any {
	if a.cfg.Bearers == nil || a.cfg.Bearers.tokens == nil {
		return nil
	}
	return a.cfg.Bearers.tokens.keys.Current()
}

func checkCertificate(c *Caller, s *cluster.Snapshot, now time.Time) error {
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

func (a *Authenticator) noIdentity() error {
	how := ""
	if a.cfg.Bearers != nil {
		how = ", or send \"authorization: Bearer <API key or JWT>\""
	}
	return errdefs.New(errdefs.Unauthenticated, "NO_IDENTITY",
		"this call needs an identity: connect with a client certificate of this cluster's CA%s", how)
}

type callerKey struct{}

// With gives a context whose call is made by c.
func With(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// IsCallerKey tells whether a key of a context's values asks for the call's
// *Caller: for contexts that carry it themselves.
func IsCallerKey(key any) bool {
	_, ok := key.(callerKey)
	return ok
}

// From tells who makes a call; nil for the few calls that need no identity.
func From(ctx context.Context) *Caller {
	c, _ := ctx.Value(callerKey{}).(*Caller)
	return c
}
