package api

import (
	"context"
	"strings"
	"time"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/pki"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// certificateService issues, lists and revokes certificates, and exchanges the
// CA. All of it is about who may do what, so that it takes the turns of such
// changes.
type certificateService struct {
	debvisorv1.UnimplementedCertificateServiceServer
	access  *accessService
	store   *store.Store
	cluster string
	ring    func() *certs.Ring
}

// certificateResource begins the name of the resource that issuing a certificate
// holds.
const certificateResource = "certificate/"

// IssueCertificate signs a principal's certificate. A request that is repeated is
// answered with the same certificate, signed anew.
func (s *certificateService) IssueCertificate(ctx context.Context, req *debvisorv1.CertificateRequest) (*debvisorv1.IssuedCertificate, error) {
	if err := identity.CheckPrincipal(req.GetPrincipal()); err != nil {
		return nil, errdefs.Field("principal", req.GetPrincipal(), "a principal's name: no ':', no space, at most 128 characters")
	}
	key, err := certs.ParseRequest(req.GetCsr())
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "csr: %v", err).With("field", "csr")
	}
	serial, err := certs.NewSerial()
	if err != nil {
		return nil, err
	}
	made := pki.NewPrincipal{
		Name: req.GetPrincipal(), Key: key, Serial: serial, Life: time.Duration(req.GetTtlSeconds()) * time.Second,
		By: authn.From(ctx).Name, At: time.Now(),
	}
	ring := s.ring()
	op, err := s.access.change(ctx, "certificate.issue", req, certificateResource+serial, func(w access.World) (store.Change, error) {
		c, err := w.IssueFor(req.GetPrincipal())
		if err != nil {
			return c, err
		}
		_, put, _, err := made.Issue(ring)
		c.Puts = append(c.Puts, put)
		return c, err
	})
	if err != nil {
		return nil, err
	}
	if first, ok := strings.CutPrefix(op.GetResources()[0], certificateResource); ok && first != serial {
		record := s.access.view.Current().Certificates[first].Value
		if record.GetCa() != certs.Fingerprint(ring.Signing().Certificate()) {
			return nil, errdefs.New(errdefs.FailedPrecondition, "CERTIFICATE_SHOWN_ONCE",
				"this request has made certificate %s before, and another CA signs now; revoke that one and make another with a new debvisor-request-id", first).
				With("operation", op.GetId())
		}
		made.Serial, made.At = first, record.GetIssuedAt().AsTime()
	}
	certPEM, _, record, err := made.Issue(ring)
	if err != nil {
		return nil, err
	}
	return &debvisorv1.IssuedCertificate{Certificate: certPEM, Ca: ring.Bundle(), Info: pki.Message(record), OperationId: op.GetId()}, nil
}

// ListCertificates answers the certificates that were issued.
func (s *certificateService) ListCertificates(_ context.Context, f *debvisorv1.CertificateFilter) (*debvisorv1.CertificateList, error) {
	return pki.List(s.access.view.Current(), f, time.Now()), nil
}

// RevokeHolder ends every certificate of one holder.
func (s *certificateService) RevokeHolder(ctx context.Context, req *debvisorv1.HolderRevocation) (*debvisorv1.HolderRevoked, error) {
	r := pki.Revocation{
		Holder: pki.Holder{Kind: req.GetHolder(), Name: req.GetName()}, Reason: req.GetReason(),
		Own: authn.From(ctx).Serial, Now: time.Now(),
	}
	if r.Reason == "" {
		r.Reason = "all of " + r.String()
	}
	answer := &debvisorv1.HolderRevoked{}
	op, err := s.access.change(ctx, "certificate.revoke-holder", req, "certificates/"+r.String(), func(w access.World) (store.Change, error) {
		c := w.Turn()
		serials, err := r.Change(w.Snapshot, &c)
		answer.Serials = serials
		return c, err
	})
	if err != nil {
		return nil, err
	}
	answer.OperationId = op.GetId()
	for range maxRevocations {
		c, more := r.Unfinished(s.access.view.Current())
		if len(more) == 0 {
			break
		}
		revision, err := s.store.Commit(ctx, c)
		if err != nil {
			return nil, err
		}
		if err := s.access.view.Await(ctx, revision); err != nil {
			return nil, err
		}
		answer.Serials = append(answer.Serials, more...)
	}
	return answer, nil
}

// maxRevocations bounds how often the certificates that came in between are
// looked for.
const maxRevocations = 50

// GetCA answers the CAs that are trusted.
func (s *certificateService) GetCA(context.Context, *debvisorv1.Empty) (*debvisorv1.CAStatus, error) {
	return pki.Status(s.access.view.Current(), s.ring(), time.Now()), nil
}

// RotateCA takes the exchange of the CA one phase on, or back.
func (s *certificateService) RotateCA(ctx context.Context, req *debvisorv1.CARotationRequest) (*debvisorv1.CAStatus, error) {
	action := strings.ToLower(strings.TrimPrefix(req.GetAction().String(), "CA_ACTION_"))
	op, err := s.access.change(ctx, "ca."+action, req, "ca", func(w access.World) (store.Change, error) {
		x := pki.Exchange{
			Cluster: s.cluster, Ring: s.ring(), Action: req.GetAction(), LeaveBehind: req.GetLeaveBehind(),
			By: authn.From(ctx).Name, Now: time.Now(),
		}
		c, err := x.Change(w.Snapshot)
		if err != nil {
			return c, err
		}
		turn := w.Turn()
		c.Require, c.Puts = append(c.Require, turn.Require...), append(c.Puts, turn.Puts...)
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	m := pki.Status(s.access.view.Current(), s.ring(), time.Now())
	m.OperationId = op.GetId()
	return m, nil
}
