package api_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// TestNoChangeByOneWhoMayNotAnyMore lets a principal make changes while its
// permission is taken away: none is made after that, however the two met.
func TestNoChangeByOneWhoMayNotAnyMore(t *testing.T) {
	r := start(t, 0)
	ctx := t.Context()
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	ann := debvisorv1.NewAccessServiceClient(r.principal("ann"))
	made, refused := 0, 0
	for round := range 20 {
		if _, err := admin.SetPrincipal(ctx, &debvisorv1.Principal{Name: "ann", Permissions: []string{"role:set"}}); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				_, _ = ann.SetRole(ctx, &debvisorv1.Role{Name: fmt.Sprintf("r%d-%d", round, i)})
			})
		}
		if _, err := admin.SetPrincipal(ctx, &debvisorv1.Principal{Name: "ann"}); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		now, err := r.client.Get(ctx, store.PrincipalKey("ann"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			role, err := r.client.Get(ctx, store.RoleKey(fmt.Sprintf("r%d-%d", round, i)))
			switch {
			case err != nil:
				t.Fatal(err)
			case len(role.Kvs) == 0:
				refused++
			case role.Kvs[0].ModRevision > now.Kvs[0].ModRevision:
				t.Errorf("round %d: a role of revision %d by one who had no permission since %d", round, role.Kvs[0].ModRevision, now.Kvs[0].ModRevision)
			default:
				made++
			}
		}
	}
	t.Logf("%d roles were made in time, %d were refused", made, refused)
}

// TestTwoKeysHoweverManyAsk makes keys through two replicas at once.
func TestTwoKeysHoweverManyAsk(t *testing.T) {
	r := start(t, 0)
	other := r.beside()
	ctx := t.Context()
	admins := []debvisorv1.AccessServiceClient{
		debvisorv1.NewAccessServiceClient(r.principal("operator")), debvisorv1.NewAccessServiceClient(other.principal("operator")),
	}
	if _, err := admins[0].SetPrincipal(ctx, &debvisorv1.Principal{Name: "ci"}); err != nil {
		t.Fatal(err)
	}
	within(t, "the principal", "", func() error {
		_, err := admins[1].GetPrincipal(ctx, &debvisorv1.PrincipalRef{Name: "ci"})
		return err
	})
	var all sync.WaitGroup
	var mu sync.Mutex
	codes := map[string]int{}
	for i := range 10 {
		all.Go(func() {
			_, err := admins[i%2].CreateKey(ctx, &debvisorv1.KeyRequest{Principal: "ci"})
			mu.Lock()
			defer mu.Unlock()
			codes[code(err)]++
		})
	}
	all.Wait()
	if codes[""] != 2 || codes["TOO_MANY_KEYS"] != 8 {
		t.Errorf("ten requests ended so: %v", codes)
	}
}

// TestWhoMayChangeAccess keeps what a confined caller and one without
// permissions can reach from them, and a key from being given as its own id.
func TestWhoMayChangeAccess(t *testing.T) {
	r := start(t, 0)
	ctx := t.Context()
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	if _, err := admin.SetTenant(ctx, &debvisorv1.Tenant{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*debvisorv1.Principal{
		{Name: "tenants", Roles: []string{"operator"}, Tenant: "acme"}, {Name: "reader", Roles: []string{"viewer"}},
	} {
		if _, err := admin.SetPrincipal(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"tenants": "CONFINED", "reader": "PERMISSION_DENIED", "stranger": "PERMISSION_DENIED"} {
		c := debvisorv1.NewAccessServiceClient(r.principal(name))
		for what, call := range map[string]func() error{
			"key": func() error { _, err := c.CreateKey(ctx, &debvisorv1.KeyRequest{Principal: "reader"}); return err },
			"principal": func() error {
				_, err := c.SetPrincipal(ctx, &debvisorv1.Principal{Name: name, Roles: []string{"operator"}})
				return err
			},
			"role": func() error {
				_, err := c.SetRole(ctx, &debvisorv1.Role{Name: "viewer", Permissions: []string{"vm:*"}})
				return err
			},
			"limit": func() error {
				_, err := c.SetPrincipalLimit(ctx, &debvisorv1.PrincipalLimit{Name: name, Limit: &debvisorv1.RateLimit{Unlimited: true}})
				return err
			},
			"tenant": func() error { _, err := c.DeleteTenant(ctx, &debvisorv1.TenantRef{Name: "acme"}); return err },
		} {
			if err := call(); code(err) != want {
				t.Errorf("%s changes a %s: %v", name, what, err)
			}
		}
	}
	if _, err := admin.SetPrincipal(ctx, &debvisorv1.Principal{Name: "operator", Roles: []string{"viewer"}}); code(err) != "NO_OPERATOR_LEFT" {
		t.Errorf("the last operator: %v", err)
	}
	const whole = "dvk_0123456789abcdef_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef_00000000"
	_, revoke := admin.RevokeKey(ctx, &debvisorv1.KeyRef{Id: whole})
	_, rotate := admin.RotateKey(ctx, &debvisorv1.KeyRotation{Id: whole})
	for _, err := range []error{revoke, rotate} {
		if code(err) != "INVALID_FIELD" || strings.Contains(fmt.Sprint(err), "0123456789abcdef") {
			t.Errorf("a whole key as its id: %v", err)
		}
	}
}

// TestWhoAmI asks by a certificate and by a key.
func TestWhoAmI(t *testing.T) {
	r := start(t, 100)
	ctx := t.Context()
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	me, err := admin.WhoAmI(ctx, &debvisorv1.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	serial := serialOf(t, filepath.Join(r.dir, "operator.pem"))
	if me.GetPrincipal() != "operator" || me.GetCredentialId() != serial || me.GetCredential() != debvisorv1.CredentialKind_CREDENTIAL_KIND_CERTIFICATE ||
		me.GetExpiresAt() == nil || me.GetAnsweredBy() != "r1" || me.GetLimit().GetPerMinute() != 100 || me.GetRoles()[0] != "operator" {
		t.Errorf("the founder is %v", me)
	}
	for _, step := range []func() error{
		func() error { _, err := admin.SetTenant(ctx, &debvisorv1.Tenant{Name: "acme"}); return err },
		func() error {
			_, err := admin.SetRole(ctx, &debvisorv1.Role{Name: "builds", Permissions: []string{"vm:list", "storage:*"}})
			return err
		},
		func() error {
			_, err := admin.SetPrincipal(ctx, &debvisorv1.Principal{
				Name: "ci", Roles: []string{"builds"}, Permissions: []string{"a:b"}, Tenant: "acme", Limit: &debvisorv1.RateLimit{PerMinute: 60, Burst: 50},
			})
			return err
		},
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	key, err := admin.CreateKey(ctx, &debvisorv1.KeyRequest{Principal: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	ci := debvisorv1.NewAccessServiceClient(r.anonymous())
	as := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key.GetKey())
	me, err = ci.WhoAmI(as, &debvisorv1.Empty{})
	want := &debvisorv1.CallerIdentity{
		Principal: "ci", Credential: debvisorv1.CredentialKind_CREDENTIAL_KIND_API_KEY, CredentialId: key.GetId(), ExpiresAt: key.GetExpiresAt(),
		Tenant: "acme", Roles: []string{"builds"}, Permissions: []string{"a:b", "storage:*", "vm:list"},
		Limit: &debvisorv1.RateLimit{PerMinute: 60, Burst: 50}, AnsweredBy: "r1",
	}
	if err != nil || !proto.Equal(me, want) {
		t.Errorf("ci is %v, %v", me, err)
	}

	// May I? Of oneself anybody may ask, of others who may read principals.
	for _, c := range []struct {
		of, permission string
		allowed        bool
		word           string
	}{
		{"", "storage:snapshot:create", true, "storage:*"},
		{"ci", "vm:list", true, "builds"},
		{"", "vm:start", false, "vm:start"},
		{"", "key:create", false, "key:create"},
	} {
		d, err := ci.CheckAccess(as, &debvisorv1.AccessCheck{Permission: c.permission, Principal: c.of})
		if err != nil || d.GetAllowed() != c.allowed || d.GetPrincipal() != "ci" || d.GetTenant() != "acme" || !strings.Contains(d.GetReason(), c.word) {
			t.Errorf("ci of itself: %v, %v", d, err)
		}
		d, err = admin.CheckAccess(ctx, &debvisorv1.AccessCheck{Permission: c.permission, Principal: "ci"})
		if err != nil || d.GetAllowed() != c.allowed || d.GetPrincipal() != "ci" {
			t.Errorf("the operator of ci: %v, %v", d, err)
		}
	}
	there, errThere := ci.CheckAccess(as, &debvisorv1.AccessCheck{Permission: "vm:list", Principal: "operator"})
	gone, errGone := ci.CheckAccess(as, &debvisorv1.AccessCheck{Permission: "vm:list", Principal: "gone"})
	if there != nil || gone != nil || errdefs.FromStatus(errThere).Message != errdefs.FromStatus(errGone).Message {
		t.Errorf("ci of others: %v, %v", errThere, errGone)
	}
	d, err := admin.CheckAccess(ctx, &debvisorv1.AccessCheck{Permission: "vm:list", Principal: "gone"})
	if err != nil || d.GetAllowed() || !strings.Contains(d.GetReason(), "no record") {
		t.Errorf("the operator of one without a record: %v, %v", d, err)
	}
}
