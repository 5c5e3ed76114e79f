package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// verifyChain is the standard check: the chain ends in one of the roots, every
// certificate is valid at the time, the leaf is for the usage.
func verifyChain(roots *x509.CertPool, leaf *x509.Certificate, chain *x509.CertPool, usage x509.ExtKeyUsage, at time.Time) error {
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: chain,
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	return err
}

func verifyClient(m *material, leaf *x509.Certificate, chain *x509.CertPool, now time.Time) error {
	return verifyChain(m.roots, leaf, chain, x509.ExtKeyUsageClientAuth, now)
}

// verifyReplica accepts replicas of the cluster.
func verifyReplica(cluster string) peerCheck {
	prefix := ReplicaURI(cluster, "").String()
	return func(m *material, leaf *x509.Certificate, chain *x509.CertPool, now time.Time) error {
		if err := verifyChain(m.roots, leaf, chain, x509.ExtKeyUsageClientAuth, now); err != nil {
			return err
		}
		if len(leaf.URIs) != 1 || !strings.HasPrefix(leaf.URIs[0].String(), prefix) {
			return fmt.Errorf("the certificate is not a replica's of cluster %q", cluster)
		}
		return nil
	}
}

// verifyEither accepts what one of two checks accepts, and tells why the first
// does not.
func verifyEither(first, second peerCheck) peerCheck {
	return func(m *material, leaf *x509.Certificate, chain *x509.CertPool, now time.Time) error {
		err := first(m, leaf, chain, now)
		if err != nil && second(m, leaf, chain, now) == nil {
			return nil
		}
		return err
	}
}

// verifyAgent accepts agents of the cluster, until grace after their
// certificate's end.
func verifyAgent(cluster string, grace time.Duration) peerCheck {
	prefix := AgentURI(cluster, "").String()
	return func(m *material, leaf *x509.Certificate, chain *x509.CertPool, now time.Time) error {
		at := now
		if now.After(leaf.NotAfter) && now.Before(leaf.NotAfter.Add(grace)) {
			at = leaf.NotAfter
		}
		if err := verifyChain(m.roots, leaf, chain, x509.ExtKeyUsageClientAuth, at); err != nil {
			return err
		}
		if len(leaf.URIs) != 1 || !strings.HasPrefix(leaf.URIs[0].String(), prefix) {
			return fmt.Errorf("the certificate is not an agent's of cluster %q", cluster)
		}
		return nil
	}
}

func verifyHost(host string) peerCheck {
	return func(m *material, leaf *x509.Certificate, chain *x509.CertPool, now time.Time) error {
		if err := verifyChain(m.roots, leaf, chain, x509.ExtKeyUsageServerAuth, now); err != nil {
			return err
		}
		return checkHost(leaf, host)
	}
}

func verifyNode(cluster, node string) peerCheck {
	want := AgentURI(cluster, node).String()
	return func(m *material, leaf *x509.Certificate, chain *x509.CertPool, now time.Time) error {
		if err := verifyChain(m.roots, leaf, chain, x509.ExtKeyUsageServerAuth, now); err != nil {
			return err
		}
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
			return fmt.Errorf("the server is not the agent of node %q (it is %s)", node, leaf.Subject)
		}
		return nil
	}
}

// checkHost is needed beside crypto/tls because a ConnectionState carries no
// server name when the server was dialled by address.
func checkHost(leaf *x509.Certificate, host string) error {
	if host == "" {
		return errors.New("no host to check the server's certificate against")
	}
	return leaf.VerifyHostname(host)
}
