package authn

import (
	"bytes"
	"encoding/hex"
	"slices"
	"sync/atomic"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// retirement remembers which CAs exchanges have ended: connections that stand
// since before were let in with their certificates, and may stand for long. It
// begins with the process, as they do.
type retirement struct{ last atomic.Pointer[retired] }

type retired struct {
	record *storev1.CARotation
	// trusted are the key ids, in hex, of the CAs of the record; authorities are
	// those which certificates of CAs that have gone name as their authority's.
	trusted, authorities []string
}

// ended tells whether a certificate that names this authority is of a CA that is
// trusted no more.
func (r *retirement) ended(s *cluster.Snapshot, authority string) bool {
	record := s.CA.Value
	if record == nil || authority == "" {
		return false
	}
	known := r.last.Load()
	if known == nil || known.record != record {
		known = known.after(record)
		r.last.Store(known)
	}
	return slices.Contains(known.authorities, authority)
}

// after is what is known once the record is another one: what had gone is gone,
// though the record tells of the last exchange only.
func (k *retired) after(record *storev1.CARotation) *retired {
	next := &retired{record: record, authorities: retiredBy(record)}
	for _, data := range [][]byte{record.GetCurrent(), record.GetNext()} {
		if list, err := certs.ParseCertificates(data); err == nil {
			next.trusted = append(next.trusted, hex.EncodeToString(list[0].SubjectKeyId))
		}
	}
	if k != nil {
		next.authorities = slices.Concat(next.authorities, k.authorities, k.trusted)
	}
	slices.Sort(next.authorities)
	next.authorities = slices.DeleteFunc(slices.Compact(next.authorities), func(id string) bool { return slices.Contains(next.trusted, id) })
	return next
}

// retiredBy finds them in what is left of an exchange that has ended: the
// certificate of the CA that stayed by the one that went.
func retiredBy(record *storev1.CARotation) (ids []string) {
	current, err := certs.ParseCertificates(record.GetCurrent())
	if p := debvisorv1.CAPhase(record.GetPhase()); err != nil || p != debvisorv1.CAPhase_CA_PHASE_STABLE {
		return nil
	}
	for _, data := range [][]byte{record.GetNextByCurrent(), record.GetCurrentByNext()} {
		list, err := certs.ParseCertificates(data)
		if err == nil && bytes.Equal(list[0].RawSubjectPublicKeyInfo, current[0].RawSubjectPublicKeyInfo) {
			ids = append(ids, hex.EncodeToString(list[0].AuthorityKeyId))
		}
	}
	return ids
}
