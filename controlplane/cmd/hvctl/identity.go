package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"strings"
	"time"
)

// tls makes the configuration of the connection: TLS 1.3, the server verified
// against the CA, the client certificate where there is one.
func (e endpoint) tls() (*tls.Config, error) {
	if e.CA == "" {
		return nil, badConfig("no CA certificate to check the server with: give --ca, HVCTL_CA or a context")
	}
	roots, err := anchors(e.CA)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	if e.Cert == "" {
		return cfg, nil
	}
	pair, err := loadPair(e.Cert, e.Key)
	if err != nil {
		return nil, badConfig("reading the client certificate %s with the key %s: %v", e.Cert, e.Key, err)
	}
	if now := time.Now(); now.After(pair.Leaf.NotAfter) {
		return nil, badConfig("the client certificate %s expired on %s; make a new one with hvctl cert issue, or debvisor-rpcd client",
			e.Cert, moment(pair.Leaf.NotAfter))
	}
	// The server is offered the certificate whichever CAs it names, so that
	// it, and not a silent omission, says what is wrong with it.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return cfg, nil
}

// anchors reads the CAs to trust. What a CA says of how many others may follow it
// is for those below it, not for who trusts it (RFC 5280, 6.1.1 d): the CAs of
// former versions allowed none, and vouch for the one that takes their place.
func anchors(path string) (*x509.CertPool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, badConfig("reading the CA certificate: %v", err)
	}
	roots, found := x509.NewCertPool(), false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			continue
		}
		ca.MaxPathLen, ca.MaxPathLenZero, found = -1, false, true
		roots.AddCert(ca)
	}
	if !found {
		return nil, badConfig("the CA file %s holds no PEM certificate", path)
	}
	return roots, nil
}

// bearer gives the API key or token that calls carry; empty for none.
func (e endpoint) bearer() (string, error) {
	secret := e.APIKey + e.Token // check refuses both at once
	if path, ok := strings.CutPrefix(secret, "@"); ok {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", badConfig("reading the %s: %v", e.identity(), err)
		}
		secret = strings.TrimSpace(string(data))
		if secret == "" {
			return "", badConfig("the %s file %s is empty", e.identity(), path)
		}
	}
	if strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", badConfig("the %s holds characters that no %s has", e.identity(), e.identity())
	}
	return secret, nil
}

// bearer is an API key or a JWT, sent with each call, over TLS only.
type bearer string

// GetRequestMetadata gives the header that carries it.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is always so.
func (bearer) RequireTransportSecurity() bool { return true }

// hostOf gives a server's host, as its certificate names it.
func hostOf(server string) string {
	if host, _, err := net.SplitHostPort(server); err == nil {
		return host
	}
	return server
}
