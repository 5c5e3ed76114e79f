// Package identity says who a verified certificate speaks for: a principal, or
// the agent of a node, and never both. It does not verify certificates
// (package certs has done that) and grants nothing (authz does).
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Principal is a person, a service or a program that calls the API.
type Principal struct {
	// Name is the certificate's common name.
	Name string
	// Serial is the certificate's serial number in hex.
	Serial string
}

// AgentIdentity is the agent of one node.
type AgentIdentity struct {
	// Node is the node's id.
	Node string
	// Cluster is the trust domain.
	Cluster string
	// Serial is the certificate's serial number in hex.
	Serial string
	// IssuedAt is when the certificate was issued, to the second.
	IssuedAt time.Time
	// NotAfter is the certificate's end.
	NotAfter time.Time
}

// Expired tells whether the agent's certificate has ended: the agent may then
// renew it and must be refused everything else.
func (a AgentIdentity) Expired(now time.Time) bool { return now.After(a.NotAfter) }

// Replaced tells whether the node was enrolled anew, at the given moment, after
// the agent's certificate was issued: whoever holds it is the node's agent no
// more.
func (a AgentIdentity) Replaced(enrolled time.Time) bool {
	return a.IssuedAt.Before(enrolled.Truncate(time.Second))
}

// Identity is who a certificate speaks for: exactly one of the two is set.
type Identity struct {
	Principal *Principal
	Agent     *AgentIdentity
}

// String names the identity for logs and audit: a principal by its name, an
// agent as "agent:<node>", which no principal can be called.
func (i Identity) String() string {
	switch {
	case i.Agent != nil:
		return agentPrefix + i.Agent.Node
	case i.Principal != nil:
		return i.Principal.Name
	default:
		return "nobody"
	}
}

const agentPrefix = "agent:"

// FromCertificate tells who a verified certificate speaks for. One with the
// URI SAN of an agent of the cluster is that agent, whatever its common name;
// one without any URI SAN is the principal of its common name. Everything else
// (another cluster's agent, a replica, several names) is Unauthenticated.
func FromCertificate(cert *x509.Certificate, cluster string) (Identity, error) {
	switch len(cert.URIs) {
	case 0:
		if err := CheckPrincipal(cert.Subject.CommonName); err != nil {
			return Identity{}, refuse(cert, "its common name cannot be a principal's")
		}
		return Identity{Principal: &Principal{Name: cert.Subject.CommonName, Serial: certs.Serial(cert)}}, nil
	case 1:
	default:
		return Identity{}, refuse(cert, "it has more than one URI SAN")
	}
	uri := cert.URIs[0].String()
	node, ok := strings.CutPrefix(uri, certs.AgentURI(cluster, "").String())
	if !ok {
		return Identity{}, refuse(cert, "its URI SAN "+uri+" is no agent's of cluster "+cluster)
	}
	if err := certs.CheckName("node", node); err != nil {
		return Identity{}, refuse(cert, "its URI SAN names no node")
	}
	return Identity{Agent: &AgentIdentity{
		Node: node, Cluster: cluster, Serial: certs.Serial(cert),
		IssuedAt: certs.IssuedAt(cert), NotAfter: cert.NotAfter,
	}}, nil
}

// ReplicaOf tells which replica of the cluster a verified certificate speaks for;
// ok is false where it speaks for none. No replica is an Identity: only what is
// served to replicas asks for it.
func ReplicaOf(cert *x509.Certificate, cluster string) (replica string, ok bool) {
	if len(cert.URIs) != 1 {
		return "", false
	}
	replica, ok = strings.CutPrefix(cert.URIs[0].String(), certs.ReplicaURI(cluster, "").String())
	if !ok || certs.CheckName("replica", replica) != nil {
		return "", false
	}
	return replica, true
}

// FromConnection tells who is at the other end of a TLS connection that a
// configuration of package certs accepted; ok is false where the peer gave no
// certificate. For connections of other configurations it must not be used:
// their certificate may be unverified.
func FromConnection(state tls.ConnectionState, cluster string) (id Identity, ok bool, err error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, false, nil
	}
	id, err = FromCertificate(state.PeerCertificates[0], cluster)
	return id, err == nil, err
}

// CheckPrincipal refuses names that a principal cannot have: empty, longer than
// 128 bytes, with a colon (agents, replicas and the system's own parts are
// called "agent:", "replica:", "system:"), a slash or anything unprintable.
func CheckPrincipal(name string) error {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f || r == ':' || r == '/' || r > 0x7f }
	if name == "" || len(name) > 128 || strings.ContainsFunc(name, bad) {
		return errdefs.Field("principal", name, "1 to 128 printable ASCII characters without space, ':' and '/'")
	}
	return nil
}

func refuse(cert *x509.Certificate, why string) error {
	return errdefs.New(errdefs.Unauthenticated, "CERTIFICATE_NOT_ACCEPTED", "certificate %q is not accepted: %s", cert.Subject.CommonName, why).
		With("serial", certs.Serial(cert))
}
