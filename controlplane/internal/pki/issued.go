package pki

import (
	"crypto/x509"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// The kinds of holders.
const (
	Principal = debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_PRINCIPAL
	Agent     = debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT
	Replica   = debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_REPLICA
)

// Holder is whose a certificate is.
type Holder struct {
	Kind debvisorv1.CertificateHolder
	Name string
}

// String names a holder as leave_behind does: "node/n1".
func (h Holder) String() string {
	switch h.Kind {
	case Agent:
		return "node/" + h.Name
	case Replica:
		return "replica/" + h.Name
	default:
		return "principal/" + h.Name
	}
}

// Issued gives the record of a certificate, for the transaction with which it
// is handed out. certPEM is the leaf followed by the CA that signed it; by is
// who asked for it, "" for the holder itself.
func Issued(certPEM []byte, h Holder, by string) (store.Put, *storev1.Certificate, error) {
	list, err := certs.ParseCertificates(certPEM)
	if err != nil {
		return store.Put{}, nil, fmt.Errorf("note a certificate: %w", err)
	}
	record := Note(list[0], certs.IssuedBy(list[0], list[1:]), h, by)
	return store.PutProto(store.CertificateKey(record.GetSerial()), record), record, nil
}

// Note is the record of a certificate; ca may be nil: it is not known.
func Note(leaf, ca *x509.Certificate, h Holder, by string) *storev1.Certificate {
	r := &storev1.Certificate{
		Serial: certs.Serial(leaf), Holder: uint32(h.Kind), Name: h.Name, IssuedBy: by,
		IssuedAt: timestamppb.New(certs.IssuedAt(leaf)), ExpiresAt: timestamppb.New(leaf.NotAfter),
	}
	if ca != nil {
		r.Ca = certs.Fingerprint(ca)
	}
	return r
}

func holderOf(r *storev1.Certificate) Holder {
	return Holder{debvisorv1.CertificateHolder(r.GetHolder()), r.GetName()}
}

// account is what is known of all certificates at a moment.
type account struct {
	s   *cluster.Snapshot
	now time.Time
	// last is the revision of each agent's and replica's last certificate.
	last map[Holder]int64
}

func newAccount(s *cluster.Snapshot, now time.Time) account {
	a := account{s: s, now: now, last: map[Holder]int64{}}
	for _, e := range s.Certificates {
		if h := holderOf(e.Value); h.Kind != Principal {
			a.last[h] = max(a.last[h], e.ModRevision)
		}
	}
	return a
}

func (a account) superseded(e cluster.Entry[*storev1.Certificate]) bool {
	h := holderOf(e.Value)
	return h.Kind != Principal && e.ModRevision < a.last[h]
}

func (a account) revoked(serial string) (reason string, revoked bool) {
	r, revoked := a.s.Revoked[serial]
	return r.Value, revoked
}

func (a account) ended(r *storev1.Certificate) bool { return !a.now.Before(r.GetExpiresAt().AsTime()) }

// valid tells whether the certificate opens anything, however old it is.
func (a account) valid(r *storev1.Certificate) bool {
	_, revoked := a.revoked(r.GetSerial())
	return !revoked && !a.ended(r)
}

// live is valid, and not taken the place of.
func (a account) live(e cluster.Entry[*storev1.Certificate]) bool {
	return a.valid(e.Value) && !a.superseded(e)
}
