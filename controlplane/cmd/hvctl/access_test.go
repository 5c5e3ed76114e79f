package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// fakeAccess holds what hvctl sets and little more: the rules are the server's,
// and tested there.
type fakeAccess struct {
	debvisorv1.UnimplementedAccessServiceServer
	mu         sync.Mutex
	roles      map[string]*debvisorv1.Role
	principals map[string]*debvisorv1.Principal
	tenants    map[string]*debvisorv1.Tenant
	keys       []*debvisorv1.APIKey
	revoked    []*debvisorv1.RevokedCertificate
}

func newFakeAccess() *fakeAccess {
	now := time.Now()
	at := func(d time.Duration) *debvisorv1.Timestamp { return &debvisorv1.Timestamp{Seconds: now.Add(d).Unix()} }
	return &fakeAccess{
		roles: map[string]*debvisorv1.Role{
			"viewer":  {Name: "viewer", Permissions: []string{"node:list", "vm:list"}, BuiltIn: true, Source: "built-in"},
			"auditor": {Name: "auditor", Permissions: []string{"audit:*"}, Source: "file"},
		},
		principals: map[string]*debvisorv1.Principal{
			"operator": {Name: "operator", Roles: []string{"operator"}, Source: "founder"},
			"ci": {
				Name: "ci", Type: "service", Roles: []string{"viewer"}, Permissions: []string{"vm:start", "vm:list"}, Tenant: "acme",
				Limit: &debvisorv1.RateLimit{PerMinute: 600, Burst: 50}, Source: "etcd",
			},
		},
		tenants: map[string]*debvisorv1.Tenant{"acme": {Name: "acme", Description: "the first", Source: "etcd", Storage: []*debvisorv1.TenantStorage{
			{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: "tank", Name: "vms/acme"}, {Backend: debvisorv1.StorageBackend_BACKEND_RBD, Pool: "acme"},
		}}},
		keys: []*debvisorv1.APIKey{
			{Id: "aaaaaaaaaaaaaaaa", Principal: "ci", CreatedAt: at(-40 * 24 * time.Hour), CreatedBy: "operator", ExpiresAt: at(50*24*time.Hour + time.Minute), LastUsedAt: at(-5*time.Minute - time.Second), LastUsedFrom: "192.0.2.7", Source: "hvctl", Description: "builds"},
			{Id: "bbbbbbbbbbbbbbbb", Principal: "ci", CreatedAt: at(-80 * 24 * time.Hour), ExpiresAt: at(10*24*time.Hour + time.Minute), Source: "hvctl"},
			{Id: "cccccccccccccccc", Principal: "ci", CreatedAt: at(-80 * 24 * time.Hour), ExpiresAt: at(-24*time.Hour - time.Minute), Source: "hvctl"},
			{Id: "ci-system", Principal: "legacy", CreatedAt: at(-3 * time.Hour), Source: "etcd", MustRotate: true},
			{Id: "lost", Source: "etcd"},
		},
	}
}

func notThere(what, name string) error {
	return errdefs.New(errdefs.NotFound, strings.ToUpper(what)+"_NOT_FOUND", "no %s %q", what, name)
}

func (f *fakeAccess) WhoAmI(context.Context, *debvisorv1.Empty) (*debvisorv1.CallerIdentity, error) {
	return &debvisorv1.CallerIdentity{
		Principal: "ci", Credential: debvisorv1.CredentialKind_CREDENTIAL_KIND_API_KEY, CredentialId: "aaaaaaaaaaaaaaaa", ExpiresAt: madeTime(0),
		Tenant: "acme", Roles: []string{"viewer"}, Permissions: []string{"node:list", "vm:list"},
		Limit: &debvisorv1.RateLimit{PerMinute: 600, Burst: 50}, AnsweredBy: "r1",
	}, nil
}

func (f *fakeAccess) CheckAccess(_ context.Context, req *debvisorv1.AccessCheck) (*debvisorv1.AccessDecision, error) {
	d := &debvisorv1.AccessDecision{Permission: req.GetPermission(), Principal: orWord(req.GetPrincipal(), "operator"), Reason: "none of its roles covers it"}
	if d.GetPrincipal() == "operator" {
		d.Allowed, d.Role, d.Granted, d.Reason = true, "operator", "vm:*", "its role operator has vm:*"
	}
	return d, nil
}

func (f *fakeAccess) CreateKey(_ context.Context, req *debvisorv1.KeyRequest) (*debvisorv1.APIKey, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.principals[req.GetPrincipal()]; !ok {
		return nil, errdefs.New(errdefs.NotFound, "PRINCIPAL_NOT_FOUND", "no principal %q has a record", req.GetPrincipal())
	}
	if req.GetDescription() == "third" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "TOO_MANY_KEYS", "principal %q has 2 live keys already", req.GetPrincipal()).With("principal", req.GetPrincipal())
	}
	return &debvisorv1.APIKey{Id: "dddddddddddddddd", Principal: req.GetPrincipal(), Key: "dvk_dddddddddddddddd_secret_0", ExpiresAt: madeTime(int64(req.GetTtlSeconds()))}, nil
}

func (f *fakeAccess) ListKeys(_ context.Context, filter *debvisorv1.KeyFilter) (*debvisorv1.APIKeyList, error) {
	list := &debvisorv1.APIKeyList{}
	for _, k := range f.keys {
		if filter.GetPrincipal() == "" || filter.GetPrincipal() == k.GetPrincipal() {
			list.Keys = append(list.Keys, k)
		}
	}
	return list, nil
}

// RotateKey tells in the key's end what it was asked.
func (f *fakeAccess) RotateKey(_ context.Context, req *debvisorv1.KeyRotation) (*debvisorv1.APIKey, error) {
	if req.GetNoOverlap() == (req.GetOverlapSeconds() > 0) {
		return nil, errdefs.New(errdefs.Internal, "TEST", "not as hvctl should ask: %v", req)
	}
	if req.GetId() != "aaaaaaaaaaaaaaaa" {
		return nil, notThere("key", req.GetId())
	}
	return &debvisorv1.APIKey{Id: "dddddddddddddddd", Principal: "ci", Key: "dvk_dddddddddddddddd_secret_0", ExpiresAt: madeTime(int64(req.GetOverlapSeconds()))}, nil
}

func (f *fakeAccess) RevokeKey(_ context.Context, ref *debvisorv1.KeyRef) (*debvisorv1.Empty, error) {
	if !slices.ContainsFunc(f.keys, func(k *debvisorv1.APIKey) bool { return k.GetId() == ref.GetId() }) {
		return nil, notThere("key", ref.GetId())
	}
	return &debvisorv1.Empty{}, nil
}

func (f *fakeAccess) RevokeCertificate(_ context.Context, req *debvisorv1.CertificateRevocation) (*debvisorv1.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked = append(f.revoked, &debvisorv1.RevokedCertificate{Serial: req.GetSerial(), Reason: req.GetReason()})
	return &debvisorv1.Empty{}, nil
}

func (f *fakeAccess) ListRevokedCertificates(context.Context, *debvisorv1.Empty) (*debvisorv1.RevokedCertificateList, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &debvisorv1.RevokedCertificateList{Certificates: slices.Clone(f.revoked)}, nil
}

// in gives a map's values, by name.
func in[M any](f *fakeAccess, of map[string]M) []M {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []M
	for _, name := range slices.Sorted(maps.Keys(of)) {
		list = append(list, of[name])
	}
	return list
}

func get[M any](f *fakeAccess, of map[string]M, what, name string) (M, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := of[name]
	if !ok {
		return m, notThere(what, name)
	}
	return m, nil
}

func set[M proto.Message](f *fakeAccess, of map[string]M, name string, m M) (M, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of[name] = proto.CloneOf(m)
	return m, nil
}

func remove[M any](f *fakeAccess, of map[string]M, what, name string) (*debvisorv1.Empty, error) {
	if _, err := get(f, of, what, name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(of, name)
	return &debvisorv1.Empty{}, nil
}

func (f *fakeAccess) ListRoles(context.Context, *debvisorv1.Empty) (*debvisorv1.RoleList, error) {
	return &debvisorv1.RoleList{Roles: in(f, f.roles)}, nil
}

func (f *fakeAccess) GetRole(_ context.Context, ref *debvisorv1.RoleRef) (*debvisorv1.Role, error) {
	return get(f, f.roles, "role", ref.GetName())
}

func (f *fakeAccess) SetRole(_ context.Context, m *debvisorv1.Role) (*debvisorv1.Role, error) {
	if m.GetName() == "auditor" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "IN_ACCESS_FILE", "role %q comes from the replicas' access file /etc/access.yaml", m.GetName())
	}
	return set(f, f.roles, m.GetName(), m)
}

func (f *fakeAccess) DeleteRole(_ context.Context, ref *debvisorv1.RoleRef) (*debvisorv1.Empty, error) {
	return remove(f, f.roles, "role", ref.GetName())
}

func (f *fakeAccess) ListPrincipals(_ context.Context, filter *debvisorv1.PrincipalFilter) (*debvisorv1.PrincipalList, error) {
	list := in(f, f.principals)
	return &debvisorv1.PrincipalList{Principals: slices.DeleteFunc(list, func(p *debvisorv1.Principal) bool {
		return filter.GetTenant() != "" && p.GetTenant() != filter.GetTenant() || filter.GetRole() != "" && !slices.Contains(p.GetRoles(), filter.GetRole())
	})}, nil
}

func (f *fakeAccess) GetPrincipal(_ context.Context, ref *debvisorv1.PrincipalRef) (*debvisorv1.Principal, error) {
	return get(f, f.principals, "principal", ref.GetName())
}

func (f *fakeAccess) SetPrincipal(_ context.Context, m *debvisorv1.Principal) (*debvisorv1.Principal, error) {
	return set(f, f.principals, m.GetName(), m)
}

func (f *fakeAccess) SetPrincipalLimit(_ context.Context, req *debvisorv1.PrincipalLimit) (*debvisorv1.Principal, error) {
	p, err := get(f, f.principals, "principal", req.GetName())
	if err != nil {
		return nil, err
	}
	p = proto.CloneOf(p)
	p.Limit = req.GetLimit()
	return set(f, f.principals, req.GetName(), p)
}

func (f *fakeAccess) DeletePrincipal(_ context.Context, ref *debvisorv1.PrincipalRef) (*debvisorv1.Empty, error) {
	if ref.GetName() == "operator" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "NO_OPERATOR_LEFT", "this change would leave no operator")
	}
	return remove(f, f.principals, "principal", ref.GetName())
}

func (f *fakeAccess) ListTenants(context.Context, *debvisorv1.Empty) (*debvisorv1.TenantList, error) {
	return &debvisorv1.TenantList{Tenants: in(f, f.tenants)}, nil
}

func (f *fakeAccess) SetTenant(_ context.Context, m *debvisorv1.Tenant) (*debvisorv1.Tenant, error) {
	return set(f, f.tenants, m.GetName(), m)
}

func (f *fakeAccess) DeleteTenant(_ context.Context, ref *debvisorv1.TenantRef) (*debvisorv1.Empty, error) {
	if ref.GetName() == "busy" {
		return nil, errdefs.New(errdefs.FailedPrecondition, "TENANT_IN_USE", "tenant %q cannot be deleted", ref.GetName()).With("tenant", ref.GetName())
	}
	return remove(f, f.tenants, "tenant", ref.GetName())
}

func TestSpan(t *testing.T) {
	day := 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"90d": 90 * day, "1d12h": 36 * time.Hour, "1d1s": day + time.Second, "12h": 12 * time.Hour, "90m": 90 * time.Minute, "1s": time.Second, "0d5s": 5 * time.Second,
	} {
		var s span
		if err := s.Set(text); err != nil || time.Duration(s) != want {
			t.Errorf("%s: %v, %v", text, time.Duration(s), err)
		}
		var again span
		if err := again.Set(s.String()); err != nil || again != s {
			t.Errorf("%s is written %s, which is %v, %v", text, s.String(), again, err)
		}
	}
	for _, text := range []string{"", "d", "90", "-1d", "1d-1h", "-5s", "0s", "500ms", "1.5d", "1d 2h", "99999999999d", "60000d", "1h1d", "1dd", "1w"} {
		var s span
		if err := s.Set(text); err == nil {
			t.Errorf("%q is taken as %v", text, time.Duration(s))
		}
	}
}
