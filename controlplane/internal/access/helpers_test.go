package access_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// noon is when the tests' changes are made.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// policyFile is what the access file of the tests says.
const policyFile = `
principals:
  filed: {roles: [viewer], tenant: filers}
roles:
  auditor: {permissions: ["audit:*"]}
tenants:
  filers: {storage: [{backend: zfs, pool: tank, name: filers}]}
keys:
  filed-key: {sha256: "0000000000000000000000000000000000000000000000000000000000000001", principal: filed}
`

// lab is a real etcd, seen as a replica sees it.
type lab struct {
	t      *testing.T
	client *clientv3.Client
	store  *store.Store
	view   *store.View
	policy *authz.Authorizer
	file   *accessfile.File
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, client: storetest.Client(t)}
	l.store = store.New(l.client)
	l.view = store.NewView(l.client, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.view.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	<-l.view.Ready()
	path := filepath.Join(t.TempDir(), "access.yaml")
	if err := os.WriteFile(path, []byte(policyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.file, err = accessfile.Open(accessfile.Config{Path: path, Log: hclog.NewNullLogger()}); err != nil {
		t.Fatal(err)
	}
	l.policy = authz.New(authz.Config{Founders: []string{"operator"}, File: l.file})
	return l
}

// now is the world as the replica sees it.
func (l *lab) now() access.World {
	return access.World{Snapshot: l.view.Current(), Policy: l.policy, File: l.file}
}

// world makes the store hold these records and no others, each in a line:
//
//	principal ci storage viewer,developer    in the tenant storage ("-": none), with these roles
//	names ci text                            what the apikey_id of ci is, as it stands
//	role backup storage:snapshot:create
//	tenant acme zfs:tank/acme rbd:vms
//	key k1 ci 24h                            of ci ("-": its record does not say), ends in a day ("-": never)
//	plain k1 text                            a key as the manual set-up puts it
//	used k1 1m                               a minute ago
//	vm web acme
//	revoked 0a lost
func (l *lab) world(records string) access.World {
	l.t.Helper()
	if _, err := l.client.Delete(l.t.Context(), "/debvisor/rpc/", clientv3.WithPrefix()); err != nil {
		l.t.Fatal(err)
	}
	principals := map[string]*storev1.Principal{}
	var change store.Change
	for line := range strings.Lines(records) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch f[0] {
		case "principal":
			principals[f[1]] = &storev1.Principal{Roles: strings.Split(f[3], ","), Tenant: strings.Trim(f[2], "-")}
		case "names":
			principals[f[1]].ApikeyId = f[2]
		default:
			change.Puts = append(change.Puts, l.record(f))
		}
	}
	for name, p := range principals {
		change.Puts = append(change.Puts, store.PutJSON(store.PrincipalKey(name), p))
	}
	return l.commit(change)
}

func (l *lab) record(f []string) store.Put {
	l.t.Helper()
	switch f[0] {
	case "role":
		return store.PutJSON(store.RoleKey(f[1]), &storev1.Role{Permissions: f[2:]})
	case "tenant":
		return store.PutJSON(store.TenantKey(f[1]), &storev1.Tenant{Storage: storages(f[2:])})
	case "key":
		return store.PutJSON(store.APIKeyKey(f[1]), l.key(f))
	case "plain":
		return store.PutString(store.APIKeyKey(f[1]), f[2])
	case "used":
		return store.PutProto(store.KeyUseKey(f[1]), &storev1.KeyUse{At: timestamppb.New(noon.Add(-l.span(f[2]))), From: "192.0.2.9"})
	case "vm":
		policy, err := proto.Marshal(&debvisorv1.VMPolicy{Tenant: f[2]})
		if err != nil {
			l.t.Fatal(err)
		}
		return store.PutProto(store.VMKey("uuid-"+f[1]), &storev1.VM{Uuid: "uuid-" + f[1], Name: f[1], Policy: policy})
	case "revoked":
		return store.PutString(store.RevokedKey(f[1]), f[2])
	default:
		l.t.Fatalf("what is %q?", f)
		return store.Put{}
	}
}

func (l *lab) key(f []string) *storev1.APIKey {
	l.t.Helper()
	k := &storev1.APIKey{
		Sha256: strings.Repeat("ab", 32), CreatedAt: timestamppb.New(noon.Add(-time.Hour)), Source: "hvctl", Principal: strings.Trim(f[2], "-"),
	}
	if f[3] != "-" {
		k.ExpiresAt = timestamppb.New(noon.Add(l.span(f[3])))
	}
	return k
}

func (l *lab) span(text string) time.Duration {
	l.t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

// commit makes a change and gives the world after it.
func (l *lab) commit(c store.Change) access.World {
	l.t.Helper()
	revision, err := l.store.Commit(l.t.Context(), c)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.view.Await(l.t.Context(), revision); err != nil {
		l.t.Fatal(err)
	}
	return l.now()
}

// done makes a change that is not refused and gives the world after it.
func (l *lab) done(c store.Change, err error) access.World {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	return l.commit(c)
}

func storages(words []string) []*storev1.TenantStorage {
	var list []*storev1.TenantStorage
	for _, word := range words {
		backend, place, _ := strings.Cut(word, ":")
		pool, name, _ := strings.Cut(place, "/")
		list = append(list, &storev1.TenantStorage{Backend: backend, Pool: pool, Name: name})
	}
	return list
}

// asked is storage as a caller says it.
func asked(words ...string) []*debvisorv1.TenantStorage {
	var list []*debvisorv1.TenantStorage
	for _, s := range storages(words) {
		backend := debvisorv1.StorageBackend_BACKEND_ZFS
		if s.GetBackend() == "rbd" {
			backend = debvisorv1.StorageBackend_BACKEND_RBD
		}
		list = append(list, &debvisorv1.TenantStorage{Backend: backend, Pool: s.GetPool(), Name: s.GetName()})
	}
	return list
}

// refused wants an error of a kind, with a code, that says all the words.
func refused(t *testing.T, what string, err error, kind errdefs.Kind, code string, words ...string) {
	t.Helper()
	var e *errdefs.Error
	if !errors.As(err, &e) || e.Kind != kind || e.Code != code {
		t.Errorf("%s: %v; want kind %d, %s", what, err, kind, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Message, word) {
			t.Errorf("%s: %q does not say %q", what, e.Message, word)
		}
	}
}
