package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"
)

// Files names what a Reloader serves: the CA certificates that it trusts, its
// own certificate (followed by the CA's, so that newcomers can check it by
// fingerprint) and the certificate's key, all in PEM.
type Files struct {
	CA, Cert, Key string
	// Remedy says what to do about an expired certificate, as the end of an
	// error line: "enrol the node again with a --replace token".
	Remedy string
	// Grace is how long after its end the own certificate may still be loaded.
	// It is RenewalGrace for an agent, which can renew with it, and else zero.
	Grace time.Duration
}

// material is what the files held at one moment. It never changes.
type material struct {
	roots *x509.CertPool
	cas   []*x509.Certificate
	own   tls.Certificate
	// issuer is the CA among cas that signed the own certificate.
	issuer  *x509.Certificate
	version string
}

func (f Files) pair() Pair { return Pair{Cert: f.Cert, Key: f.Key} }

// load reads and checks the files. Each error is one line that names the file.
func (f Files) load(now time.Time) (*material, error) {
	version := f.version()
	caPEM, err := readFile("CA certificate", f.CA)
	if err != nil {
		return nil, err
	}
	cas, err := ParseCertificates(caPEM)
	if err != nil {
		return nil, fmt.Errorf("CA certificate %s is damaged: %w: copy it from a replica", f.CA, err)
	}
	own, err := f.pair().load()
	if err != nil {
		return nil, err
	}
	m := &material{roots: anchors(cas), cas: cas, own: own, issuer: IssuedBy(own.Leaf, cas), version: version}
	if err := f.check(m, now); err != nil {
		return nil, err
	}
	return m, nil
}

func (f Files) check(m *material, now time.Time) error {
	leaf := m.own.Leaf
	if now.Before(leaf.NotBefore) {
		return fmt.Errorf("certificate %s is valid from %s only: set the clock (now %s)", f.Cert, stamp(leaf.NotBefore), stamp(now))
	}
	if now.After(leaf.NotAfter.Add(f.Grace)) {
		remedy := f.Remedy
		if remedy == "" {
			remedy = "issue a new one"
		}
		return fmt.Errorf("certificate %s expired on %s: %s", f.Cert, stamp(leaf.NotAfter), remedy)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots:         m.roots,
		Intermediates: chainPool(m.own.Certificate),
		CurrentTime:   earlier(now, leaf.NotAfter),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("certificate %s does not come from the CA in %s (%w): use files of one cluster", f.Cert, f.CA, err)
	}
	return nil
}

// version changes whenever one of the files is replaced or written.
func (f Files) version() string {
	var b strings.Builder
	for _, path := range []string{f.CA, f.Cert, f.Key, f.pair().nextKey()} {
		st, err := os.Stat(path)
		if err != nil {
			fmt.Fprintf(&b, "%v;", err)
			continue
		}
		fmt.Fprintf(&b, "%d.%d.%v;", st.ModTime().UnixNano(), st.Size(), st.Sys())
	}
	return b.String()
}

func chainPool(chain [][]byte) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, der := range chain[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(c)
		}
	}
	return pool
}
