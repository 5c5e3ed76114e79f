package api_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// soon is within what a change must be in force everywhere.
const soon = time.Second

// bearing connects without a certificate, with a key.
func (r *replica) bearing(key string) func() error {
	r.t.Helper()
	conn := r.anonymous()
	return func() error {
		ctx := metadata.AppendToOutgoingContext(r.t.Context(), "authorization", "Bearer "+key)
		_, err := debvisorv1.NewNodeServiceClient(conn).ListNodes(ctx, &debvisorv1.Empty{})
		return err
	}
}

// within waits until a call's error is of the code that is wanted ("": none),
// and no longer than a change may take.
func within(t *testing.T, what, want string, call func() error) {
	t.Helper()
	// What is refused is counted by its address: not too often.
	for began := time.Now(); ; <-time.After(100 * time.Millisecond) {
		err := call()
		if got := code(err); got == want {
			return
		} else if time.Since(began) > soon {
			t.Errorf("%s: %v after %v; want %q", what, err, soon, want)
			return
		}
	}
}

// named is a call's context with a request id.
func named(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "debvisor-request-id", id)
}

// unlike gives a key of the same id and with another secret.
func unlike(t *testing.T, key *debvisorv1.APIKey) identity.APIKey {
	t.Helper()
	other, err := identity.NewAPIKey()
	if err != nil {
		t.Fatal(err)
	}
	other.ID = key.GetId()
	return other
}

const notAccepted = "KEY_NOT_ACCEPTED"

// TestLifeOfAKey goes the way of a key through two replicas: made, used, rotated
// with an overlap, revoked, its principal's rights taken away.
func TestLifeOfAKey(t *testing.T) {
	r := start(t, 0)
	other := r.beside()
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	ctx := t.Context()
	set := func(m *debvisorv1.Principal) {
		t.Helper()
		if _, err := admin.SetPrincipal(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	set(&debvisorv1.Principal{Name: "ci", Type: "service", Roles: []string{"monitor"}})
	var header metadata.MD
	first, err := admin.CreateKey(ctx, &debvisorv1.KeyRequest{Principal: "ci", Description: "builds"}, grpc.Header(&header))
	if err != nil {
		t.Fatal(err)
	}
	if got := header.Get("debvisor-operation"); len(got) != 1 || got[0] != first.GetOperationId() {
		t.Errorf("the header tells of %v, the answer of %s", got, first.GetOperationId())
	}
	for _, replica := range []*replica{r, other} {
		within(t, "the key", "", replica.bearing(first.GetKey()))
		within(t, "another secret", notAccepted, replica.bearing(unlike(t, first).Text()))
	}
	second, err := admin.RotateKey(ctx, &debvisorv1.KeyRotation{Id: first.GetId(), OverlapSeconds: 3600})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the new key", "", other.bearing(second.GetKey()))
	within(t, "the old key", "", other.bearing(first.GetKey()))
	if _, err := admin.CreateKey(ctx, &debvisorv1.KeyRequest{Principal: "ci"}); code(err) != "TOO_MANY_KEYS" {
		t.Errorf("a third key: %v", err)
	}
	third, err := admin.RotateKey(ctx, &debvisorv1.KeyRotation{Id: second.GetId(), NoOverlap: true})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the key that ended at once", notAccepted, other.bearing(second.GetKey()))
	within(t, "the newest", "", other.bearing(third.GetKey()))
	if _, err := admin.RevokeKey(ctx, &debvisorv1.KeyRef{Id: first.GetId()}); err != nil {
		t.Fatal(err)
	}
	within(t, "the revoked key", notAccepted, other.bearing(first.GetKey()))
	if _, err := admin.RevokeKey(ctx, &debvisorv1.KeyRef{Id: first.GetId()}); code(err) != "KEY_NOT_FOUND" {
		t.Errorf("revoked twice: %v", err)
	}
	// After the overlap the old one ends by itself.
	short, err := admin.RotateKey(ctx, &debvisorv1.KeyRotation{Id: third.GetId(), OverlapSeconds: 1, TtlSeconds: 60})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(time.Unix(short.GetExpiresAt().GetSeconds(), 0)); left > time.Minute || left < 50*time.Second {
		t.Errorf("it ends in %v", left)
	}
	call := other.bearing(third.GetKey())
	for began := time.Now(); code(call()) != notAccepted; <-time.After(50 * time.Millisecond) {
		if time.Since(began) > 2*time.Second {
			t.Fatal("the old key works after the overlap of a second")
		}
	}
	set(&debvisorv1.Principal{Name: "ci", Type: "service"})
	within(t, "without a role", "PERMISSION_DENIED", other.bearing(short.GetKey()))
	set(&debvisorv1.Principal{Name: "ci", Permissions: []string{"node:*"}})
	within(t, "with a permission", "", other.bearing(short.GetKey()))
	if _, err := admin.DeletePrincipal(ctx, &debvisorv1.PrincipalRef{Name: "ci"}); err != nil {
		t.Fatal(err)
	}
	within(t, "of nobody", notAccepted, other.bearing(short.GetKey()))
	if list, err := admin.ListKeys(ctx, &debvisorv1.KeyFilter{}); err != nil || len(list.GetKeys()) != 0 {
		t.Errorf("keys that are left: %v, %v", list, err)
	}
	r.holdsNone(first, second, third, short)
	other.holdsNone(first, second, third, short)
}

// holdsNone looks for the secrets of keys wherever a replica writes.
func (r *replica) holdsNone(keys ...*debvisorv1.APIKey) {
	r.t.Helper()
	all, err := r.client.Get(r.t.Context(), "", clientv3.WithFromKey())
	if err != nil {
		r.t.Fatal(err)
	}
	trail, err := os.ReadFile(filepath.Join(r.dir, "audit.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	places := map[string]string{"the log": r.log.String(), "the audit log": string(trail)}
	operations := 0
	for _, kv := range all.Kvs {
		places[string(kv.Key)] = string(kv.Key) + string(kv.Value)
		if strings.HasPrefix(string(kv.Key), store.OperationKey("")) {
			operations++
		}
	}
	if operations < 2*len(keys) || len(trail) == 0 {
		r.t.Fatalf("%d operations and %d bytes of the audit log are too few to look into", operations, len(trail))
	}
	for _, k := range keys {
		secret := strings.Split(k.GetKey(), "_")[2]
		raw, err := hex.DecodeString(secret)
		if err != nil {
			r.t.Fatal(err)
		}
		for place, content := range places {
			if strings.Contains(content, secret) || strings.Contains(content, string(raw)) {
				r.t.Errorf("the secret of key %s is in %s", k.GetId(), place)
			}
		}
	}
}

// TestAKeyIsShownOnce repeats requests with their ids.
func TestAKeyIsShownOnce(t *testing.T) {
	r := start(t, 0)
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	ctx := t.Context()
	for range 2 {
		if _, err := admin.SetPrincipal(named(ctx, "set"), &debvisorv1.Principal{Name: "ci"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.SetPrincipal(named(ctx, "set"), &debvisorv1.Principal{Name: "other"}); code(err) != "REQUEST_ID_REUSED" {
		t.Errorf("another request with the id: %v", err)
	}
	made, err := admin.CreateKey(named(ctx, "make"), &debvisorv1.KeyRequest{Principal: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CreateKey(named(ctx, "make"), &debvisorv1.KeyRequest{Principal: "ci"}); code(err) != "KEY_SHOWN_ONCE" {
		t.Errorf("the same request to make a key: %v", err)
	}
	rotation := &debvisorv1.KeyRotation{Id: made.GetId(), NoOverlap: true}
	if _, err := admin.RotateKey(named(ctx, "rotate"), rotation); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RotateKey(named(ctx, "rotate"), rotation); code(err) != "KEY_SHOWN_ONCE" {
		t.Errorf("the same request to rotate: %v", err)
	}
	list, err := admin.ListKeys(ctx, &debvisorv1.KeyFilter{Principal: "ci"})
	if err != nil || len(list.GetKeys()) != 1 || list.GetKeys()[0].GetKey() != "" {
		t.Errorf("the keys are %v, %v", list, err)
	}
	id := list.GetKeys()[0].GetId()
	for range 2 {
		if _, err := admin.RevokeKey(named(ctx, "revoke"), &debvisorv1.KeyRef{Id: id}); err != nil {
			t.Error(err)
		}
	}
}

// TestAKeyRotatesItself does, with an overlap: without one its answer might be
// cut off with it.
func TestAKeyRotatesItself(t *testing.T) {
	r := start(t, 0)
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	ctx := t.Context()
	if _, err := admin.SetPrincipal(ctx, &debvisorv1.Principal{Name: "ci", Permissions: []string{"key:rotate"}}); err != nil {
		t.Fatal(err)
	}
	made, err := admin.CreateKey(ctx, &debvisorv1.KeyRequest{Principal: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	ci := debvisorv1.NewAccessServiceClient(r.anonymous())
	as := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+made.GetKey())
	if _, err := ci.RotateKey(as, &debvisorv1.KeyRotation{Id: made.GetId(), NoOverlap: true}); code(err) != "OWN_KEY" {
		t.Errorf("without an overlap: %v", err)
	}
	if _, err := ci.RotateKey(as, &debvisorv1.KeyRotation{Id: made.GetId(), NoOverlap: true, OverlapSeconds: 5}); code(err) != "INVALID_FIELD" {
		t.Errorf("with and without an overlap: %v", err)
	}
	next, err := ci.RotateKey(as, &debvisorv1.KeyRotation{Id: made.GetId()})
	if err != nil || next.GetCreatedBy() != "ci" {
		t.Fatalf("with an overlap: %v, %v", next, err)
	}
	as = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+next.GetKey())
	if _, err := ci.RotateKey(as, &debvisorv1.KeyRotation{Id: made.GetId(), NoOverlap: true}); err != nil {
		t.Errorf("the former key, at once: %v", err)
	}
}

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

// TestRevokedByTheAPI ends a certificate, but never the caller's own.
func TestRevokedByTheAPI(t *testing.T) {
	r := start(t, 0)
	other := r.beside()
	ctx := t.Context()
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	if _, err := admin.SetPrincipal(ctx, &debvisorv1.Principal{Name: "panel", Roles: []string{"monitor"}}); err != nil {
		t.Fatal(err)
	}
	nodes := debvisorv1.NewNodeServiceClient(other.as(certs.ClientLeaf("panel", 0), "panel"))
	list := func() error {
		_, err := nodes.ListNodes(ctx, &debvisorv1.Empty{})
		return err
	}
	within(t, "the certificate", "", list)
	serial := serialOf(t, filepath.Join(other.dir, "panel.pem"))
	// As openssl prints it.
	req := &debvisorv1.CertificateRevocation{Serial: strings.ToUpper(serial), Reason: "stolen"}
	if _, err := admin.RevokeCertificate(ctx, req); err != nil {
		t.Fatal(err)
	}
	within(t, "the revoked certificate", "CERTIFICATE_REVOKED", list)
	own := &debvisorv1.CertificateRevocation{Serial: serialOf(t, filepath.Join(r.dir, "operator.pem"))}
	if _, err := admin.RevokeCertificate(ctx, own); code(err) != "OWN_CERTIFICATE" {
		t.Errorf("the own certificate: %v", err)
	}
	answer, err := admin.ListRevokedCertificates(ctx, &debvisorv1.Empty{})
	if err != nil || len(answer.GetCertificates()) != 1 || answer.GetCertificates()[0].GetSerial() != serial || answer.GetCertificates()[0].GetReason() != "stolen" {
		t.Errorf("revoked are %v, %v", answer, err)
	}
}

// TestTheManualSetUp writes what the contract says to etcd.
func TestTheManualSetUp(t *testing.T) {
	r := start(t, 0)
	ctx := t.Context()
	r.put(
		store.PutString(store.APIKeyKey("ci-system"), "a-plain-key"),
		store.PutString(store.PrincipalKey("ci-system"), `{"type": "service", "apikey_id": "a-plain-key", "permissions": ["node:list", "storage:snapshot:list"]}`),
		store.PutProto(store.KeyUseKey("ci-system"), &storev1.KeyUse{From: "192.0.2.9"}),
	)
	within(t, "the plain key", "", r.bearing("a-plain-key"))
	admin := debvisorv1.NewAccessServiceClient(r.principal("operator"))
	list, err := admin.ListKeys(ctx, &debvisorv1.KeyFilter{Principal: "ci-system"})
	if err != nil || len(list.GetKeys()) != 1 {
		t.Fatal(list, err)
	}
	if k := list.GetKeys()[0]; k.GetId() != "ci-system" || !k.GetMustRotate() || k.GetSource() != "etcd" || k.GetLastUsedFrom() != "192.0.2.9" {
		t.Errorf("the key is %v", k)
	}
	made, err := admin.RotateKey(ctx, &debvisorv1.KeyRotation{Id: "ci-system"})
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the plain key in the overlap", "", r.bearing("a-plain-key"))
	within(t, "the new key", "", r.bearing(made.GetKey()))
	p, err := admin.GetPrincipal(ctx, &debvisorv1.PrincipalRef{Name: "ci-system"})
	if err != nil || p.GetType() != "service" || len(p.GetPermissions()) != 2 {
		t.Errorf("the principal is %v, %v", p, err)
	}
	all, err := r.client.Get(ctx, "", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range all.Kvs {
		if strings.Contains(string(kv.Value), "a-plain-key") {
			t.Errorf("the plain key is in %s", kv.Key)
		}
	}
}
