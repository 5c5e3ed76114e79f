package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// peerCheck judges a peer's certificate after the handshake has shown that the
// peer holds its key.
type peerCheck func(m *material, leaf *x509.Certificate, chain *x509.CertPool, now time.Time) error

// CallersServer is the configuration of the callers' listener: a client
// certificate is optional, but one that is given must be the CA's and valid.
//
// Connections accepted by any server configuration of this package carry the
// verified certificate in ConnectionState.PeerCertificates[0]; VerifiedChains
// stays empty, since the check is made by this package.
func (r *Reloader) CallersServer() *tls.Config {
	return r.server(tls.RequestClientCert, verifyClient)
}

// AgentsServer is the configuration of the replicas' listener for agents: only
// agents of the cluster get in, and its replicas, which must be told apart by
// whoever serves them. An agent whose certificate has expired at most
// RenewalGrace ago gets in too, so that it can renew: what it asks beyond that
// must be refused by whoever serves it (Expired tells).
func (r *Reloader) AgentsServer(cluster string) *tls.Config {
	return r.server(tls.RequireAnyClientCert, verifyEither(verifyAgent(cluster, RenewalGrace), verifyReplica(cluster)))
}

// PeersServer is the configuration of an agent's listener for other agents of
// its cluster.
func (r *Reloader) PeersServer(cluster string) *tls.Config {
	return r.server(tls.RequireAnyClientCert, verifyAgent(cluster, 0))
}

// ReplicaClient is the configuration for dialling a replica under the given
// host name or address (no port).
func (r *Reloader) ReplicaClient(host string) *tls.Config {
	return r.client(host, verifyHost(host))
}

// PeerClient is the configuration for dialling the agent of a node: whatever
// the address, only that node's agent is accepted.
func (r *Reloader) PeerClient(cluster, node string) *tls.Config {
	return r.client("", verifyNode(cluster, node))
}

// Expired tells whether the certificate has ended: an agent accepted with it
// may renew and do nothing else.
func Expired(leaf *x509.Certificate, now time.Time) bool { return now.After(leaf.NotAfter) }

func baseConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		// A resumed session would skip the checks below.
		SessionTicketsDisabled: true,
	}
}

func (r *Reloader) server(auth tls.ClientAuthType, check peerCheck) *tls.Config {
	outer := baseConfig()
	outer.ClientAuth = auth
	outer.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &r.current.Load().own, nil
	}
	// A configuration for each handshake: the refusal's log line needs the
	// remote address, and clients are told the names of the current CAs.
	outer.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		cfg := outer.Clone()
		cfg.GetConfigForClient = nil
		cfg.ClientCAs = r.current.Load().roots
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			err := r.verify(state, check)
			if err != nil {
				r.logRefusal(hello.Conn.RemoteAddr().String(), describe(state), err)
			}
			return err
		}
		return cfg, nil
	}
	return outer
}

// Refusals are logged refusalBurst at once and refusalsPerSecond after that, and
// the next line tells how many were left out: who has no certificate of ours
// must not fill the log.
const (
	refusalsPerSecond = 1
	refusalBurst      = 60
)

func (r *Reloader) logRefusal(remote, certificate string, reason error) {
	if !r.refusals.Allow() {
		r.unlogged.Add(1)
		return
	}
	args := []any{"remote", remote, "certificate", certificate, "reason", reason}
	if n := r.unlogged.Swap(0); n > 0 {
		args = append(args, "not_logged_before", n)
	}
	r.log.Warn("connection refused: certificate not accepted", args...)
}

func (r *Reloader) client(host string, check peerCheck) *tls.Config {
	cfg := baseConfig()
	cfg.ServerName = host
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &r.current.Load().own, nil
	}
	// The standard check is bound to the roots of the moment the configuration
	// was made; VerifyConnection makes the same check with the current ones.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		return r.verify(state, check)
	}
	return cfg
}

func (r *Reloader) verify(state tls.ConnectionState, check peerCheck) error {
	if len(state.PeerCertificates) == 0 {
		return nil // only where the configuration's ClientAuth allows it
	}
	return check(r.current.Load(), state.PeerCertificates[0], pool(state.PeerCertificates[1:]), time.Now())
}

func describe(state tls.ConnectionState) string {
	if len(state.PeerCertificates) == 0 {
		return "none"
	}
	leaf := state.PeerCertificates[0]
	return fmt.Sprintf("%s serial %s issued by %s valid until %s",
		leaf.Subject, Serial(leaf), leaf.Issuer, stamp(leaf.NotAfter))
}

func pool(list []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range list {
		p.AddCert(c)
	}
	return p
}
