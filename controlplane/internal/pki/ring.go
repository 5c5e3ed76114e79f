package pki

import (
	"crypto/ecdh"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/debvisor/debvisor/certs"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// The phases of an exchange.
const (
	Stable   = debvisorv1.CAPhase_CA_PHASE_STABLE
	Trusting = debvisorv1.CAPhase_CA_PHASE_TRUSTING
	Signing  = debvisorv1.CAPhase_CA_PHASE_SIGNING
)

// phaseOf is how far an exchange is.
func phaseOf(record *storev1.CARotation) debvisorv1.CAPhase {
	if p := debvisorv1.CAPhase(record.GetPhase()); p == Trusting || p == Signing {
		return p
	}
	return Stable
}

// RingOf is the ring that the CAs' record calls for, of a replica that has had
// one until now. The keys that it lacks are in the record, sealed to its seal
// key. It refuses a CA that none which the replica trusts has vouched for: the
// replica was off through more than one exchange, or somebody has written to
// etcd who has no CA's key.
func RingOf(record *storev1.CARotation, until *certs.Ring, replica string, key *ecdh.PrivateKey, now time.Time) (*certs.Ring, error) {
	var cross []*x509.Certificate
	for _, data := range [][]byte{record.GetNextByCurrent(), record.GetCurrentByNext()} {
		if c := one(data); c != nil {
			cross = append(cross, c)
		}
	}
	first, second := record.GetCurrent(), record.GetNext()
	if phaseOf(record) == Signing {
		first, second = second, first
	}
	for _, data := range [][]byte{first, second} {
		if len(data) == 0 {
			continue
		}
		if c := one(data); c == nil || !vouched(c, until.Trusted(), cross) {
			return nil, fmt.Errorf("no CA that replica %s trusts has vouched for the cluster's CA %s: it was off through more than one exchange; remove it and let it join anew",
				replica, fingerprint(data))
		}
	}
	keys, err := keysFor(record, until, replica, key)
	if err != nil {
		return nil, err
	}
	signing, err := certs.NewAuthorityFrom(first, keys)
	if err != nil {
		return nil, fmt.Errorf("the CA %s: %w", fingerprint(first), err)
	}
	var other *certs.Authority
	if len(second) > 0 {
		if other, err = certs.NewAuthorityFrom(second, keys); err != nil {
			return nil, fmt.Errorf("the CA %s: %w", fingerprint(second), err)
		}
	}
	cross = slices.DeleteFunc(cross, func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
	return certs.NewRing(signing, other, cross...), nil
}

// vouched tells whether a CA is one of the trusted, or one of them has certified
// it.
func vouched(ca *x509.Certificate, trusted, cross []*x509.Certificate) bool {
	if slices.ContainsFunc(trusted, ca.Equal) {
		return true
	}
	return slices.ContainsFunc(cross, func(c *x509.Certificate) bool {
		return c.IsCA && samePublicKey(c, ca) && certs.IssuedBy(c, trusted) != nil
	})
}

func samePublicKey(a, b *x509.Certificate) bool {
	return slices.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo)
}

// keysFor are the keys that a replica has and those that are sealed to it.
func keysFor(record *storev1.CARotation, until *certs.Ring, replica string, key *ecdh.PrivateKey) ([]byte, error) {
	keys, err := until.Keys()
	if err != nil {
		return nil, err
	}
	if key == nil {
		return keys, nil
	}
	sealed, ok := record.GetSealedKeys()[slot(replica, key.PublicKey().Bytes())]
	if !ok {
		return keys, nil // it may have them all
	}
	more, err := OpenSealed(key, sealed, exchangeInfo)
	return append(keys, more...), err
}

// one reads the first certificate of PEM data; nil: there is none.
func one(data []byte) *x509.Certificate {
	list, err := certs.ParseCertificates(data)
	if err != nil {
		return nil
	}
	return list[0]
}

// fingerprint is that of the first certificate of PEM data; "": there is none.
func fingerprint(data []byte) string {
	if c := one(data); c != nil {
		return certs.Fingerprint(c)
	}
	return ""
}
