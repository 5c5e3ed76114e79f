package lab

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/debvisor/debvisor/certs"
)

// ClusterName is what the lab calls its cluster.
const ClusterName = "lab"

// Authority is the cluster's CA with its key, as the first replica keeps it: for certificates that no good member would have.
func (l *Lab) Authority() (*certs.Authority, error) {
	first := l.Replicas[0]
	wrap, err := certs.ReadWrapKey(first.PKI("wrap.key"))
	if err != nil {
		return nil, err
	}
	return certs.LoadAuthority(certs.AuthorityFiles{Cert: first.PKI("ca.pem"), Key: first.PKI("ca-key.pem")}, wrap, time.Now())
}

// Issue makes a key and a certificate for it, issued by the CA as if it were at.
func Issue(ca *certs.Authority, leaf certs.Leaf, at time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := certs.NewKey()
	if err != nil {
		return nil, nil, err
	}
	if certPEM, err = ca.Issue(key.Public(), leaf, at); err != nil {
		return nil, nil, err
	}
	keyPEM, err = certs.EncodeKey(key)
	return certPEM, keyPEM, err
}

// TLSWith is a client configuration towards any replica with a certificate and its key, both in PEM. It shows the certificate to
// servers that would not want it, too.
func (l *Lab) TLSWith(certPEM, keyPEM []byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	pem, err := os.ReadFile(l.Replicas[0].PKI("ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("cluster's CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	show := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, GetClientCertificate: show, RootCAs: pool, MinVersion: tls.VersionTLS13,
	}, nil
}

// AgentTLS is the client configuration of an agent of the node, as good as the node's own.
func (l *Lab) AgentTLS(node string) (*tls.Config, error) {
	ca, err := l.Authority()
	if err != nil {
		return nil, err
	}
	certPEM, keyPEM, err := Issue(ca, certs.AgentLeaf(ClusterName, node, time.Hour), time.Now())
	if err != nil {
		return nil, err
	}
	return l.TLSWith(certPEM, keyPEM)
}
