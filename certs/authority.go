package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// AuthorityLife is how long a CA certificate is valid: ten years.
const AuthorityLife = 10 * 365 * 24 * time.Hour

// Authority is a certificate authority: the cluster's own, or etcd's. It is
// safe for concurrent use.
type Authority struct {
	name string
	cert *x509.Certificate
	key  crypto.Signer
}

// AuthorityFiles says where an authority is kept. Cert is PEM and may hold
// more than one CA (during a rotation); Key is sealed with the wrap key.
type AuthorityFiles struct {
	Cert, Key string
}

// NewAuthority makes an authority with a key of its own. The name becomes the
// common name of its certificate.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"DebVisor"}, CommonName: name},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(AuthorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		// Another CA, while it takes this one's place: see Certify.
		MaxPathLen: 1,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the CA %q: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make the CA %q: %w", name, err)
	}
	return &Authority{name: name, cert: cert, key: key}, nil
}

// NewAuthorityFrom makes an authority from CA certificates and private keys,
// both in PEM, as a replica receives them when it joins: the first certificate
// that one of the keys belongs to counts.
func NewAuthorityFrom(certPEM, keyPEM []byte) (*Authority, error) {
	list, err := ParseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read the CA's certificate: %w", err)
	}
	keys, err := parseKeys(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read the CA's key: %w", err)
	}
	for _, c := range list {
		for _, key := range keys {
			if c.IsCA && samePublicKey(c.PublicKey, key.Public()) {
				return &Authority{name: c.Subject.CommonName, cert: c, key: key}, nil
			}
		}
	}
	return nil, errors.New("the CA's key belongs to none of the CA's certificates")
}

// LoadAuthority reads an authority from its files and checks that key and
// certificate belong together and that the certificate has not expired.
func LoadAuthority(files AuthorityFiles, wrap WrapKey, now time.Time) (*Authority, error) {
	certPEM, err := readFile("CA certificate", files.Cert)
	if err != nil {
		return nil, err
	}
	sealed, err := readFile("CA key", files.Key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := wrap.open(sealed, sealLabel)
	if err != nil {
		return nil, fmt.Errorf("CA key %s: %w", files.Key, err)
	}
	a, err := NewAuthorityFrom(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA %s with key %s: %w: restore both from one backup", files.Cert, files.Key, err)
	}
	if now.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("CA %s expired on %s: the cluster needs a new CA", files.Cert, stamp(a.cert.NotAfter))
	}
	return a, nil
}

// sealLabel binds a sealed CA key to its purpose.
const sealLabel = "debvisor CA key"

// Save writes the authority's files, the key sealed. bundle is what goes into
// the certificate's file; nil: the authority's certificate alone.
func (a *Authority) Save(files AuthorityFiles, wrap WrapKey, bundle []byte) error {
	keyPEM, err := EncodeKey(a.key)
	if err != nil {
		return err
	}
	sealed, err := wrap.seal(keyPEM, sealLabel)
	if err != nil {
		return err
	}
	if bundle == nil {
		bundle = a.PEM()
	}
	if err := WriteFile(files.Key, sealed, SecretMode); err != nil {
		return err
	}
	return WriteFile(files.Cert, bundle, PublicMode)
}

// Certificate returns the CA's certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// PEM returns the CA's certificate in PEM.
func (a *Authority) PEM() []byte { return EncodeCertificates(a.cert) }

// KeyPEM returns the CA's private key, unsealed. It is for handing the CA to a
// joining replica and for nothing else.
func (a *Authority) KeyPEM() ([]byte, error) { return EncodeKey(a.key) }

// Name returns the common name of the CA's certificate.
func (a *Authority) Name() string { return a.name }

// newSerial returns 127 random bits, never zero: within RFC 5280's 20 octets.
func newSerial() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 127)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// stamp formats a time for messages.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
