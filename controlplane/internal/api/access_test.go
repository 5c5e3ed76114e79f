package api_test

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
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
