package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// NewRequest returns a CSR in PEM for the key. The name is for whoever reads
// the request; the authority decides every name itself.
func NewRequest(key crypto.Signer, name string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: name},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}), nil
}

// ParseRequest reads a CSR (PEM, or bare DER) and returns its public key. The
// request must be signed by that key, which proves that the asker holds it,
// and the key must be on P-256. Subject and SANs of the request are ignored.
func ParseRequest(csr []byte) (*ecdsa.PublicKey, error) {
	if block, _ := pem.Decode(csr); block != nil {
		if block.Type != requestBlock {
			return nil, fmt.Errorf("a PEM block of type %q is not a certificate request", block.Type)
		}
		csr = block.Bytes
	}
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

// KeyHash returns the SHA-256, in hex, of the public key's PKIX encoding: it
// says which key a token was used with.
func KeyHash(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("hash a public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}
