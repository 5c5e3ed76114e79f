package certs

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Pair names the files of a certificate and its private key.
//
// Two files cannot be replaced in one step. So a new key is first put beside
// the old one (Key + ".next"), then the certificate is replaced, then the new
// key takes the old one's place; whoever reads the pair in between, or after a
// crash in between, finds the key that belongs to the certificate.
type Pair struct {
	Cert, Key string
}

func (p Pair) nextKey() string { return p.Key + ".next" }

// NextKey returns the key that the next certificate is for: the one staged by
// an earlier attempt that has not ended, or a new one, staged. With it a
// request can be repeated after a crash with the same key.
func (p Pair) NextKey() (crypto.Signer, error) {
	if err := p.settle(); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(p.nextKey())
	if err == nil {
		if key, err := ParseKey(data); err == nil {
			return key, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the staged key: %w", err)
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	keyPEM, err := EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, WriteFile(p.nextKey(), keyPEM, SecretMode)
}

// Install puts a certificate issued for the staged key in place, with its key.
// A certificate for another key changes nothing.
func (p Pair) Install(certPEM []byte) error {
	list, err := ParseCertificates(certPEM)
	if err != nil {
		return fmt.Errorf("install %s: %w", p.Cert, err)
	}
	if !keyFileMatches(p.nextKey(), list[0]) {
		return fmt.Errorf("install %s: the certificate is not for the key that was asked for", p.Cert)
	}
	if err := WriteFile(p.Cert, certPEM, PublicMode); err != nil {
		return err
	}
	return p.settle()
}

// settle ends an exchange that was cut short after the certificate's
// replacement.
func (p Pair) settle() error {
	data, err := os.ReadFile(p.Cert)
	if err != nil {
		return nil //nolint:nilerr // without a readable certificate there is no exchange to end
	}
	list, err := ParseCertificates(data)
	if err != nil || !keyFileMatches(p.nextKey(), list[0]) {
		return nil //nolint:nilerr // likewise; loading the pair reports a damaged certificate
	}
	return rename(p.nextKey(), p.Key)
}

func keyFileMatches(path string, cert *x509.Certificate) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	key, err := ParseKey(data)
	return err == nil && samePublicKey(key.Public(), cert.PublicKey)
}

// load reads the pair; its errors name the file and what to do.
func (p Pair) load() (tls.Certificate, error) {
	certPEM, err := readFile("certificate", p.Cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	list, err := ParseCertificates(certPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s is damaged: %w: restore it or issue a new one", p.Cert, err)
	}
	key, err := p.loadKey(list[0])
	if err != nil {
		return tls.Certificate{}, err
	}
	out := tls.Certificate{PrivateKey: key, Leaf: list[0]}
	for _, c := range list {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}

func (p Pair) loadKey(leaf *x509.Certificate) (crypto.Signer, error) {
	keyPEM, err := readFile("private key", p.Key)
	if err == nil {
		key, err := ParseKey(keyPEM)
		if err != nil {
			return nil, fmt.Errorf("private key %s is damaged: %w: restore it or issue a new pair", p.Key, err)
		}
		if samePublicKey(key.Public(), leaf.PublicKey) {
			return key, nil
		}
	}
	if keyFileMatches(p.nextKey(), leaf) {
		staged, err := os.ReadFile(p.nextKey())
		if err != nil {
			return nil, fmt.Errorf("private key %s: %w", p.nextKey(), err)
		}
		return ParseKey(staged)
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("private key %s does not match certificate %s: restore the pair or issue a new one", p.Key, p.Cert)
}
