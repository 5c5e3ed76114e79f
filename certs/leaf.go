package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"time"
)

// Default lives of leaves, and their limits where a limit is set.
const (
	// ServerLife is the life of a replica's certificate.
	ServerLife = 30 * 24 * time.Hour
	// AgentLife is the default and the longest life of an agent's certificate.
	AgentLife = 30 * 24 * time.Hour
	// ClientLife is the life of a principal's certificate.
	ClientLife = 90 * 24 * time.Hour
	// RenewalGrace is how long after its end an agent's certificate still
	// entitles to a renewal, and to nothing else.
	RenewalGrace = 90 * 24 * time.Hour
)

// skew is how far a certificate's start is put back at most, for clocks that
// are behind.
const skew = 5 * time.Minute

// backdating is what a life's start is put back by: a tenth of it, in whole
// seconds, up to skew.
func backdating(life time.Duration) time.Duration {
	return min(skew, (life / 10).Truncate(time.Second))
}

// IssuedAt returns the moment, to the second, at which a leaf of this package
// was issued: its start without what the start was put back by.
func IssuedAt(leaf *x509.Certificate) time.Time {
	total := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(min(skew, (total / 11).Truncate(time.Second)))
}

// Leaf says what a certificate states about its holder.
type Leaf struct {
	commonName string
	hosts      []string
	uri        *url.URL
	usages     []x509.ExtKeyUsage
	life       time.Duration
	// serial is nil for one that is made when it is issued.
	serial *big.Int
}

// ServerLeaf is the certificate of a replica: it serves under the hosts (names
// or addresses; 127.0.0.1 and localhost are added) and may act as a client.
// A life of zero is ServerLife.
func ServerLeaf(cluster, replica string, hosts []string, life time.Duration) Leaf {
	return Leaf{
		commonName: "replica:" + replica,
		hosts:      withLoopback(hosts),
		uri:        ReplicaURI(cluster, replica),
		usages:     bothUsages(),
		life:       orDefault(life, ServerLife),
	}
}

// AgentLeaf is the certificate of a node's agent, both as client and as
// server towards other agents. It names no host: nobody can take an agent for
// a replica. A life of zero, or above AgentLife, is AgentLife.
func AgentLeaf(cluster, node string, life time.Duration) Leaf {
	return Leaf{
		commonName: "agent:" + node,
		uri:        AgentURI(cluster, node),
		usages:     bothUsages(),
		life:       min(orDefault(life, AgentLife), AgentLife),
	}
}

// ClientLeaf is the certificate of a principal. A life of zero is ClientLife.
func ClientLeaf(principal string, life time.Duration) Leaf {
	return Leaf{
		commonName: principal,
		usages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		life:       orDefault(life, ClientLife),
	}
}

// EtcdPeerLeaf is the certificate of one etcd member towards the others, to be
// issued by etcd's own authority. A life of zero is ServerLife.
func EtcdPeerLeaf(replica string, hosts []string, life time.Duration) Leaf {
	return Leaf{
		commonName: "etcd:" + replica,
		hosts:      withLoopback(hosts),
		usages:     bothUsages(),
		life:       orDefault(life, ServerLife),
	}
}

// Issue signs a certificate for the public key and returns it followed by the
// CA's own, in PEM: the CA travels with every handshake, so that a newcomer
// can compare it with the fingerprint in its join token. The life ends with
// the CA's at the latest.
func (a *Authority) Issue(pub crypto.PublicKey, leaf Leaf, now time.Time) ([]byte, error) {
	if leaf.commonName == "" || leaf.life <= 0 {
		return nil, errors.New("issue a certificate: it has no name or no life")
	}
	serial, err := leaf.serial, error(nil)
	if serial == nil {
		serial, err = newSerial()
	}
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: leaf.commonName},
		NotBefore:             now.Truncate(time.Second).Add(-backdating(leaf.life)),
		NotAfter:              earlier(now.Add(leaf.life), a.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           leaf.usages,
		BasicConstraintsValid: true,
	}
	if leaf.uri != nil {
		template.URIs = []*url.URL{leaf.uri}
	}
	for _, host := range leaf.hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", leaf.commonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", leaf.commonName, err)
	}
	return EncodeCertificates(cert, a.cert), nil
}

func bothUsages() []x509.ExtKeyUsage {
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
}

func withLoopback(hosts []string) []string {
	all := slices.Clone(hosts)
	for _, h := range []string{"127.0.0.1", "localhost"} {
		if !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	return all
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
