package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
)

// NewRequest returns a CSR (PKCS #10, DER) for the key. The name is for whoever
// reads the request; the authority decides every name itself.
func NewRequest(key crypto.Signer, name string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}

// ParseRequest reads a CSR (DER) and returns its public key. The request must
// be signed by that key, which proves that the asker holds it, and the key must
// be on P-256. Subject and SANs of the request are ignored.
func ParseRequest(csr []byte) (*ecdsa.PublicKey, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check the certificate request's signature: %w", err)
	}
	key, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the certificate request's key is not ECDSA on P-256")
	}
	return key, nil
}

// KeyHash returns the SHA-256 of the public key's PKIX encoding: it says which
// key a token was used with.
func KeyHash(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("hash a public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}
