package api

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/operations"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

type accessService struct {
	debvisorv1.UnimplementedAccessServiceServer
	view       *store.View
	operations *operations.Operations
	authz      *authz.Authorizer
	file       *accessfile.File
	replica    string
}

func newAccessService(cfg Config) *accessService {
	s := &accessService{view: cfg.View, operations: cfg.Operations, authz: cfg.Authz, file: cfg.AccessFile, replica: cfg.Replica}
	if s.file == nil {
		s.file = accessfile.None()
	}
	return s
}

// WhoAmI answers who the caller is taken for, and what it may do.
func (s *accessService) WhoAmI(ctx context.Context, _ *debvisorv1.Empty) (*debvisorv1.CallerIdentity, error) {
	caller, grant := authn.From(ctx), grantOf(ctx)
	perMinute, burst, unlimited := grant.Limit()
	m := &debvisorv1.CallerIdentity{
		Principal: caller.Name, Credential: credentialKind(caller.Kind), CredentialId: caller.CredentialID,
		Tenant: grant.Tenant(), Roles: grant.Roles(), Permissions: grant.Permissions(),
		Limit:      &debvisorv1.RateLimit{PerMinute: uint32(perMinute), Burst: uint32(burst), Unlimited: unlimited},
		AnsweredBy: s.replica,
	}
	if !caller.Expires.IsZero() {
		m.ExpiresAt = moment(caller.Expires)
	}
	return m, nil
}

func credentialKind(kind authn.Kind) debvisorv1.CredentialKind {
	switch kind {
	case authn.APIKey:
		return debvisorv1.CredentialKind_CREDENTIAL_KIND_API_KEY
	case authn.JWT:
		return debvisorv1.CredentialKind_CREDENTIAL_KIND_JWT
	default:
		return debvisorv1.CredentialKind_CREDENTIAL_KIND_CERTIFICATE
	}
}

// readPrincipals is what is needed to ask of another principal.
const readPrincipals = "principal:get"

// CheckAccess answers whether a principal has a permission: the caller itself,
// or another one for those who may read principals.
func (s *accessService) CheckAccess(ctx context.Context, req *debvisorv1.AccessCheck) (*debvisorv1.AccessDecision, error) {
	snapshot, caller := s.view.Current(), authn.From(ctx)
	m := &debvisorv1.AccessDecision{Principal: caller.Name, Permission: req.GetPermission()}
	var d authz.Decision
	if of := req.GetPrincipal(); of == "" || of == caller.Name {
		d = s.authz.ExplainCaller(snapshot, caller, req.GetPermission())
	} else {
		if err := s.authz.Require(snapshot, caller, readPrincipals); err != nil {
			return nil, err
		}
		m.Principal, d = of, s.authz.Explain(snapshot, of, req.GetPermission())
	}
	m.Allowed, m.Reason, m.Role, m.Granted, m.Tenant = d.Allowed, d.Reason, d.Role, d.Granted, d.Tenant
	return m, nil
}

// world is all that says who may do what.
func (s *accessService) world(snapshot *cluster.Snapshot) access.World {
	return access.World{Snapshot: snapshot, Policy: s.authz, File: s.file}
}

// change makes a change of who may do what in one transaction, with its
// operation. It is judged again by each snapshot that it is made from: the
// change that another one had to give way to may be of the caller itself.
func (s *accessService) change(
	ctx context.Context, kind string, request proto.Message, resource string, make func(access.World) (store.Change, error),
) (*storev1.Operation, error) {
	spec, err := specOf(ctx, scopeOf(ctx, s.view.Current()), kind, request)
	if err != nil {
		return nil, err
	}
	spec.Resources = []string{resource}
	op, err := s.operations.Apply(ctx, spec, func(snapshot *cluster.Snapshot) (store.Change, error) {
		if k := callOf(ctx); k != nil {
			if err := s.authz.Authorize(snapshot, k.caller, k.method, k.began); err != nil {
				return store.Change{}, err
			}
		}
		return make(s.world(snapshot))
	})
	if err != nil {
		return nil, err
	}
	tellOperation(ctx, op.GetId())
	return op, nil
}

// RevokeCertificate ends a certificate at once.
func (s *accessService) RevokeCertificate(ctx context.Context, req *debvisorv1.CertificateRevocation) (*debvisorv1.Empty, error) {
	serial, err := access.Serial(req.GetSerial())
	if err != nil {
		return nil, err
	}
	_, err = s.change(ctx, "certificate.revoke", req, "certificate/"+serial, func(w access.World) (store.Change, error) {
		return w.RevokeCertificate(serial, req.GetReason(), authn.From(ctx).Serial)
	})
	return &debvisorv1.Empty{}, err
}

// ListRevokedCertificates answers them.
func (s *accessService) ListRevokedCertificates(context.Context, *debvisorv1.Empty) (*debvisorv1.RevokedCertificateList, error) {
	return s.world(s.view.Current()).ListRevokedCertificates(), nil
}

// ListTenants answers every tenant.
func (s *accessService) ListTenants(context.Context, *debvisorv1.Empty) (*debvisorv1.TenantList, error) {
	return s.world(s.view.Current()).ListTenants(), nil
}

// SetTenant makes or replaces a tenant.
func (s *accessService) SetTenant(ctx context.Context, req *debvisorv1.Tenant) (*debvisorv1.Tenant, error) {
	op, err := s.change(ctx, "tenant.set", req, "tenant/"+req.GetName(), func(w access.World) (store.Change, error) { return w.SetTenant(req) })
	if err != nil {
		return nil, err
	}
	m, err := s.world(s.view.Current()).GetTenant(req.GetName())
	if err != nil {
		return nil, err
	}
	m.OperationId = op.GetId()
	return m, nil
}

// DeleteTenant takes a tenant away.
func (s *accessService) DeleteTenant(ctx context.Context, ref *debvisorv1.TenantRef) (*debvisorv1.Empty, error) {
	_, err := s.change(ctx, "tenant.delete", ref, "tenant/"+ref.GetName(), func(w access.World) (store.Change, error) {
		return w.DeleteTenant(ref.GetName())
	})
	return &debvisorv1.Empty{}, err
}

// shownOnce refuses to repeat a request whose answer held a secret.
func shownOnce(op *storev1.Operation) error {
	return errdefs.New(errdefs.FailedPrecondition, "KEY_SHOWN_ONCE",
		"this request has made its key before (operation %s), and a key is shown once; revoke that one (%s) and make another with a new debvisor-request-id",
		op.GetId(), op.GetResources()[0]).With("operation", op.GetId())
}
