package certs

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"time"
)

// Ring is the cluster's CAs as who holds their keys has them: one signs, and
// while the CA is exchanged another one is trusted as well. It never changes,
// and is safe for concurrent use.
type Ring struct {
	signing *Authority
	// other is nil where one CA is all there is.
	other *Authority
	// trusted are CAs of which there is no key.
	trusted []*x509.Certificate
	// cross are certificates of one of our CAs by another.
	cross []*x509.Certificate
}

// RingFiles says where a ring is kept: Cert holds the CAs in PEM, the signing
// one first; Key their keys, sealed; Cross the certificates of one by another,
// and may be missing.
type RingFiles struct {
	AuthorityFiles
	Cross string
}

// NewRing makes a ring. other is nil where there is no other CA; cross are what
// travels with leaves besides the CAs.
func NewRing(signing, other *Authority, cross ...*x509.Certificate) *Ring {
	return &Ring{signing: signing, other: other, cross: cross}
}

// LoadRing reads a ring and checks that the CA that signs has not expired.
func LoadRing(files RingFiles, wrap WrapKey, now time.Time) (*Ring, error) {
	if _, err := LoadAuthority(files.AuthorityFiles, wrap, now); err != nil {
		return nil, err
	}
	certPEM, keyPEM, err := readAuthorities(files.AuthorityFiles, wrap)
	if err != nil {
		return nil, err
	}
	r, err := NewRingFrom(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA %s with key %s: %w", files.Cert, files.Key, err)
	}
	data, err := os.ReadFile(files.Cross)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the CAs' certificates by one another: %w", err)
	}
	if len(bytes.TrimSpace(data)) > 0 {
		if r.cross, err = ParseCertificates(data); err != nil {
			return nil, fmt.Errorf("%s is damaged: %w: remove it", files.Cross, err)
		}
	}
	return r, nil
}

// NewRingFrom makes a ring from CAs and keys in PEM: the first CA whose key is
// there signs.
func NewRingFrom(certPEM, keyPEM []byte) (*Ring, error) {
	first, err := NewAuthorityFrom(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	list, err := ParseCertificates(certPEM)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(keyPEM)
	if err != nil {
		return nil, err
	}
	r := &Ring{signing: first}
	for _, c := range list {
		i := slices.IndexFunc(keys, func(k crypto.Signer) bool { return samePublicKey(c.PublicKey, k.Public()) })
		switch {
		case c.Equal(first.cert):
		case i >= 0 && r.other == nil:
			r.other = &Authority{name: c.Subject.CommonName, cert: c, key: keys[i]}
		default:
			r.trusted = append(r.trusted, c)
		}
	}
	return r, nil
}

func readAuthorities(files AuthorityFiles, wrap WrapKey) (certPEM, keyPEM []byte, err error) {
	certPEM, err = readFile("CA certificate", files.Cert)
	if err != nil {
		return nil, nil, err
	}
	sealed, err := readFile("CA key", files.Key)
	if err != nil {
		return nil, nil, err
	}
	if keyPEM, err = wrap.open(sealed, sealLabel); err != nil {
		return nil, nil, fmt.Errorf("CA key %s: %w", files.Key, err)
	}
	return certPEM, keyPEM, nil
}

// Save replaces the files, so that after a crash between any two of them a ring
// can be loaded that signs with one of the CAs that were there before or are
// now: keys that go away go last.
func (r *Ring) Save(files RingFiles, wrap WrapKey) error {
	keep, err := r.Keys()
	if err != nil {
		return err
	}
	all := slices.Clone(keep)
	if sealed, err := os.ReadFile(files.Key); err == nil {
		former, err := wrap.open(sealed, sealLabel)
		if err != nil {
			return fmt.Errorf("CA key %s: %w", files.Key, err)
		}
		all = append(all, former...)
	}
	cross := EncodeCertificates(r.cross...)
	for _, step := range []func() error{
		func() error { return writeSealed(files.Key, all, wrap) },
		func() error { return WriteFile(files.Cross, cross, PublicMode) },
		func() error { return WriteFile(files.Cert, r.Bundle(), PublicMode) },
		func() error { return writeSealed(files.Key, keep, wrap) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func writeSealed(path string, secret []byte, wrap WrapKey) error {
	sealed, err := wrap.seal(secret, sealLabel)
	if err != nil {
		return err
	}
	return WriteFile(path, sealed, SecretMode)
}

// Signing is the CA that signs.
func (r *Ring) Signing() *Authority { return r.signing }

// Other is the other CA whose key there is; nil: there is none.
func (r *Ring) Other() *Authority { return r.other }

// Cross are the certificates of one CA by another.
func (r *Ring) Cross() []*x509.Certificate { return r.cross }

// Trusted are all CAs that are to be trusted, the signing one first.
func (r *Ring) Trusted() []*x509.Certificate {
	list := []*x509.Certificate{r.signing.cert}
	if r.other != nil {
		list = append(list, r.other.cert)
	}
	return append(list, r.trusted...)
}

// Bundle are the CAs that are to be trusted, the signing one first, in PEM.
func (r *Ring) Bundle() []byte { return EncodeCertificates(r.Trusted()...) }

// Fingerprints are those of the CAs that are to be trusted, sorted.
func (r *Ring) Fingerprints() []string { return Fingerprints(r.Trusted()) }

// Keys are the CAs' keys in PEM, unsealed: for sealing them to a replica and
// for nothing else.
func (r *Ring) Keys() ([]byte, error) {
	keys, err := r.signing.KeyPEM()
	if err != nil || r.other == nil {
		return keys, err
	}
	more, err := r.other.KeyPEM()
	return append(keys, more...), err
}

// Issue signs as Authority.Issue does. What travels with the leaf lets whoever
// trusts any CA that is told here, or knows its fingerprint, verify it.
func (r *Ring) Issue(pub crypto.PublicKey, leaf Leaf, now time.Time) ([]byte, error) {
	certPEM, err := r.signing.Issue(pub, leaf, now)
	if err != nil {
		return nil, err
	}
	return append(certPEM, EncodeCertificates(append(r.Trusted()[1:], r.cross...)...)...), nil
}

// With gives a ring that signs with next's CA and trusts this one's as well.
func (r *Ring) With(next *Ring) *Ring {
	u := &Ring{signing: next.signing, other: next.other, trusted: slices.Clone(next.trusted), cross: next.cross}
	if u.other == nil && !r.signing.cert.Equal(u.signing.cert) {
		u.other = r.signing
	}
	for _, c := range r.Trusted() {
		if !slices.ContainsFunc(u.Trusted(), c.Equal) {
			u.trusted = append(u.trusted, c)
		}
	}
	return u
}

// Equal tells whether both say the same in the same order.
func (r *Ring) Equal(o *Ring) bool {
	same := func(a, b *x509.Certificate) bool { return a.Equal(b) }
	return slices.EqualFunc(r.Trusted(), o.Trusted(), same) && slices.EqualFunc(r.cross, o.cross, same) && (r.other == nil) == (o.other == nil)
}

// Fingerprints are those of certificates, sorted.
func Fingerprints(list []*x509.Certificate) []string {
	var prints []string
	for _, c := range list {
		prints = append(prints, Fingerprint(c))
	}
	slices.Sort(prints)
	return prints
}

// Certify gives another CA's certificate by this one: with it whoever trusts
// this CA alone can verify a server whose certificate the other one signed. It
// is good for nothing else, so that nobody becomes a client by it.
func (a *Authority) Certify(other *x509.Certificate, now time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               other.Subject,
		NotBefore:             now.Add(-skew),
		NotAfter:              earlier(earlier(now.Add(life), a.cert.NotAfter), other.NotAfter),
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		SubjectKeyId:          other.SubjectKeyId,
	}, a.cert, other.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certify the CA %q: %w", other.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

// IssuedBy finds the CA that signed a certificate; nil: none of these.
func IssuedBy(c *x509.Certificate, cas []*x509.Certificate) *x509.Certificate {
	for _, ca := range cas {
		if c.CheckSignatureFrom(ca) == nil {
			return ca
		}
	}
	return nil
}

// anchors is a pool of CAs that are trusted as they are. What a CA says of how
// many others may follow it holds for those below it, not for who trusts it
// (RFC 5280, 6.1.1 d): the CAs of former versions allowed none, and could not
// be exchanged otherwise.
func anchors(list []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range list {
		free := *c
		free.MaxPathLen, free.MaxPathLenZero = -1, false
		pool.AddCert(&free)
	}
	return pool
}

// NewSerial makes a certificate's serial, in hex as Serial gives it.
func NewSerial() (string, error) {
	n, err := newSerial()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", n.Bytes()), nil
}

// WithSerial gives the leaf a serial of NewSerial's.
func (l Leaf) WithSerial(serial string) Leaf {
	if n, ok := new(big.Int).SetString(serial, 16); ok {
		l.serial = n
	}
	return l
}
