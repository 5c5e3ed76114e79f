package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/golang-jwt/jwt/v5"
)

// The sizes of RSA keys that are accepted, bits. A larger one would make every
// refusal of a token expensive.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// maxKeys is how many keys an issuer may have at once.
const maxKeys = 32

// verifyKey is one of an issuer's public keys.
type verifyKey struct {
	// kid is its id; empty: none, as with keys from a file.
	kid string
	// alg is the one algorithm that it is for.
	alg    string
	public crypto.PublicKey
	// print is the SHA-256 of the key, as PKIX writes it.
	print [sha256.Size]byte
}

// keySet is all of an issuer's keys at one time. It is never changed.
type keySet struct {
	keys   []verifyKey
	prints map[[sha256.Size]byte]struct{}
	// named says that tokens name their key by its kid.
	named bool
}

func newKeySet(keys []verifyKey, named bool) *keySet {
	s := &keySet{keys: keys, prints: map[[sha256.Size]byte]struct{}{}, named: named}
	for _, k := range keys {
		s.prints[k.print] = struct{}{}
	}
	return s
}

// candidates are the keys that may have signed a token of this form. Where keys
// are named, a token without a kid needs no name only while there is no choice.
func (s *keySet) candidates(form tokenForm) []verifyKey {
	var fit []verifyKey
	for _, k := range s.keys {
		if k.alg == form.alg && (!s.named || form.kid == "" || k.kid == form.kid) {
			fit = append(fit, k)
		}
	}
	if s.named && form.kid == "" && len(fit) > 1 {
		return nil
	}
	return fit
}

// same tells whether both hold the same keys by the same names.
func (s *keySet) same(other *keySet) bool {
	return slices.EqualFunc(s.keys, other.keys, func(a, b verifyKey) bool {
		return a.kid == b.kid && a.alg == b.alg && a.print == b.print
	})
}

// newVerifyKey makes a key for the algorithm of its type, which must be among
// those that are configured.
func newVerifyKey(kid string, public crypto.PublicKey, algorithms []string) (verifyKey, error) {
	k := verifyKey{kid: kid, public: public}
	switch key := public.(type) {
	case *rsa.PublicKey:
		k.alg = jwt.SigningMethodRS256.Alg()
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return verifyKey{}, fmt.Errorf("an RSA key of %d bits; expected %d to %d", bits, minRSABits, maxRSABits)
		}
		if key.E < 3 || key.E%2 == 0 {
			return verifyKey{}, fmt.Errorf("an RSA key with the exponent %d; expected an odd one from 3 on", key.E)
		}
	case *ecdsa.PublicKey:
		k.alg = jwt.SigningMethodES256.Alg()
		if key.Curve != elliptic.P256() {
			return verifyKey{}, fmt.Errorf("an EC key on the curve %s; expected P-256", key.Curve.Params().Name)
		}
	default:
		return verifyKey{}, errors.New("a key that is neither RSA nor EC")
	}
	if !slices.Contains(algorithms, k.alg) {
		return verifyKey{}, fmt.Errorf("a key for %s, which --jwt-algorithms does not list", k.alg)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return verifyKey{}, fmt.Errorf("a key that cannot be encoded: %w", err)
	}
	k.print = sha256.Sum256(der)
	return k, nil
}
