package pki

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// maxListed is how many certificates one list holds.
const maxListed = 10_000

// List gives the certificates that the filter lets through, by their ends.
func List(s *cluster.Snapshot, f *debvisorv1.CertificateFilter, now time.Time) *debvisorv1.CertificateList {
	a := newAccount(s, now)
	var found []cluster.Entry[*storev1.Certificate]
	for _, e := range s.Certificates {
		if a.passes(e, f) {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(x, y cluster.Entry[*storev1.Certificate]) int {
		return cmp.Or(x.Value.GetExpiresAt().AsTime().Compare(y.Value.GetExpiresAt().AsTime()), strings.Compare(x.Value.GetSerial(), y.Value.GetSerial()))
	})
	list := &debvisorv1.CertificateList{}
	if len(found) > maxListed {
		found, list.Truncated = found[:maxListed], true
	}
	for _, e := range found {
		list.Certificates = append(list.Certificates, a.message(e))
	}
	return list
}

func (a account) passes(e cluster.Entry[*storev1.Certificate], f *debvisorv1.CertificateFilter) bool {
	h, within := holderOf(e.Value), time.Duration(f.GetExpiresWithinSeconds())*time.Second
	switch {
	case f.GetHolder() != 0 && f.GetHolder() != h.Kind, f.GetName() != "" && f.GetName() != h.Name:
		return false
	case !f.GetAll() && !a.live(e):
		return false
	}
	return within == 0 || e.Value.GetExpiresAt().AsTime().Before(a.now.Add(within))
}

func (a account) message(e cluster.Entry[*storev1.Certificate]) *debvisorv1.Certificate {
	m := Message(e.Value)
	m.RevokedReason, m.Revoked = a.revoked(e.Value.GetSerial())
	m.Superseded = a.superseded(e)
	return m
}

// Message is a certificate that has just been issued, as callers see it.
func Message(r *storev1.Certificate) *debvisorv1.Certificate {
	return &debvisorv1.Certificate{
		Serial: r.GetSerial(), Holder: debvisorv1.CertificateHolder(r.GetHolder()), Name: r.GetName(),
		IssuedAt: moment(r.GetIssuedAt()), ExpiresAt: moment(r.GetExpiresAt()), IssuedBy: r.GetIssuedBy(), Ca: r.GetCa(),
	}
}

func moment(t *timestamppb.Timestamp) *debvisorv1.Timestamp {
	if t == nil {
		return nil
	}
	return &debvisorv1.Timestamp{Seconds: t.GetSeconds(), Nanos: t.GetNanos()}
}
