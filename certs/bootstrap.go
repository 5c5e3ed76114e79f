package certs

import (
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// BootstrapClient is the configuration for the first call of a node or replica
// that knows only the fingerprint of the cluster's CA, from its join token: the
// server must send that CA in its chain and have a valid certificate of it for
// the host name or address (no port) that was dialled.
func BootstrapClient(host, fingerprint string) *tls.Config {
	cfg := baseConfig()
	cfg.ServerName = host
	// The roots are known only once the chain has been seen: VerifyConnection
	// makes the standard check with the CA that has the fingerprint.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		ca, err := FindByFingerprint(state.PeerCertificates, fingerprint)
		if err != nil {
			return fmt.Errorf("the server at %s is not of the cluster that made the join token: %w", host, err)
		}
		leaf := state.PeerCertificates[0]
		// While the CA is exchanged, it vouches for the other one.
		roots, chain := anchors([]*x509.Certificate{ca}), pool(state.PeerCertificates[1:])
		if err := verifyChain(roots, leaf, chain, x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
			return err
		}
		return checkHost(leaf, host)
	}
	return cfg
}

// FindByFingerprint returns the CA certificate that has the fingerprint.
func FindByFingerprint(list []*x509.Certificate, fingerprint string) (*x509.Certificate, error) {
	for _, c := range list {
		if c.IsCA && subtle.ConstantTimeCompare([]byte(Fingerprint(c)), []byte(fingerprint)) == 1 {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no CA certificate with fingerprint sha256:%s", fingerprint)
}
