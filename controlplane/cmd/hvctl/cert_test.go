package main

import (
	"context"
	"slices"
	"time"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// fakeCertificates answers what hvctl shows; the rules are the server's, and tested there.
type fakeCertificates struct {
	debvisorv1.UnimplementedCertificateServiceServer
}

func (fakeCertificates) IssueCertificate(_ context.Context, req *debvisorv1.CertificateRequest) (*debvisorv1.IssuedCertificate, error) {
	if req.GetPrincipal() == "nobody" {
		return nil, notThere("principal", req.GetPrincipal())
	}
	return &debvisorv1.IssuedCertificate{
		Certificate: []byte("leaf"), Ca: []byte("ca"),
		Info: &debvisorv1.Certificate{Serial: "0a", Name: req.GetPrincipal(), ExpiresAt: madeTime(int64(req.GetTtlSeconds()))},
	}, nil
}

func (fakeCertificates) ListCertificates(_ context.Context, f *debvisorv1.CertificateFilter) (*debvisorv1.CertificateList, error) {
	at := func(d time.Duration) *debvisorv1.Timestamp {
		return &debvisorv1.Timestamp{Seconds: time.Now().Add(d).Unix()}
	}
	day := 24 * time.Hour
	all := []*debvisorv1.Certificate{
		{Serial: "01", Holder: debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT, Name: "n1", IssuedAt: at(-9 * day), ExpiresAt: at(21*day + time.Minute)},
		{Serial: "02", Holder: debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_PRINCIPAL, Name: "ci", IssuedAt: at(-80 * day), ExpiresAt: at(10*day + time.Minute), IssuedBy: "operator"},
		{Serial: "03", Holder: debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_REPLICA, Name: "r1", IssuedAt: at(-9 * day), ExpiresAt: at(day), Superseded: true},
		{Serial: "04", Holder: debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT, Name: "n2", IssuedAt: at(-9 * day), ExpiresAt: at(day), Revoked: true, RevokedReason: "stolen"},
	}
	return &debvisorv1.CertificateList{Certificates: slices.DeleteFunc(all, func(c *debvisorv1.Certificate) bool {
		return f.GetHolder() != 0 && f.GetHolder() != c.GetHolder() || f.GetName() != "" && f.GetName() != c.GetName()
	})}, nil
}

func (fakeCertificates) RevokeHolder(_ context.Context, req *debvisorv1.HolderRevocation) (*debvisorv1.HolderRevoked, error) {
	if req.GetHolder() != debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT {
		return nil, notThere("node", req.GetName())
	}
	return &debvisorv1.HolderRevoked{Serials: []string{"01", "05"}}, nil
}

func (fakeCertificates) GetCA(context.Context, *debvisorv1.Empty) (*debvisorv1.CAStatus, error) {
	return &debvisorv1.CAStatus{
		Phase: debvisorv1.CAPhase_CA_PHASE_TRUSTING, Current: "aaaa", Next: "bbbb", Bundle: []byte("both"),
		WaitingFor: []*debvisorv1.CALaggard{{Who: "node/n2", Why: "it is off"}},
	}, nil
}

func (fakeCertificates) RotateCA(_ context.Context, req *debvisorv1.CARotationRequest) (*debvisorv1.CAStatus, error) {
	if !slices.Equal(req.GetLeaveBehind(), []string{"node/n2", "principal/ci"}) {
		return nil, errdefs.New(errdefs.FailedPrecondition, "CA_NOT_READY", "the new CA cannot sign yet: node/n2: it is off")
	}
	return &debvisorv1.CAStatus{Phase: debvisorv1.CAPhase_CA_PHASE_SIGNING, Current: "aaaa", Next: "bbbb"}, nil
}
