package pki

import (
	"crypto"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// NewPrincipal is a principal's certificate in the making.
type NewPrincipal struct {
	Name string
	Key  crypto.PublicKey
	// Serial is one of certs.NewSerial's.
	Serial string
	// Life is how long it is good; 0: certs.ClientLife.
	Life time.Duration
	By   string
	At   time.Time
}

// Issue signs it. The same one, signed again by the same CA, says the same.
func (p NewPrincipal) Issue(ring *certs.Ring) (certPEM []byte, put store.Put, record *storev1.Certificate, err error) {
	leaf := certs.ClientLeaf(p.Name, p.Life).WithSerial(p.Serial)
	if certPEM, err = ring.Issue(p.Key, leaf, p.At); err != nil {
		return nil, put, nil, err
	}
	put, record, err = Issued(certPEM, Holder{Principal, p.Name}, p.By)
	return certPEM, put, record, err
}
