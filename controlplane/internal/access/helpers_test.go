package access_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
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
  filed-key: {sha256: ` + "0000000000000000000000000000000000000000000000000000000000000001" + `, principal: filed}
`

// world makes a world of records, each in a line:
//
//	principal ci storage viewer,developer    in the tenant storage ("-": none), with these roles
//	role backup storage:snapshot:create
//	tenant acme zfs:tank/acme rbd:vms
//	key k1 ci 24h                            of ci ("-": its record does not say), ends in a day ("-": never)
//	vm web acme
//	revoked 0a lost
//	names ci sha256:… | id                   the record of ci names a key
func world(t *testing.T, records string) access.World {
	t.Helper()
	d := cluster.Empty().Draft()
	revision := int64(10)
	for line := range strings.Lines(records) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		revision++
		switch f[0] {
		case "principal":
			p := &storev1.Principal{Roles: strings.Split(f[3], ",")}
			if f[2] != "-" {
				p.Tenant = f[2]
			}
			d.Principals.Put(f[1], p, revision)
		case "names":
			s := d.Snapshot(revision)
			d = s.Draft()
			p := proto.CloneOf(s.Principals[f[1]].Value)
			p.ApikeyId = f[2]
			d.Principals.Put(f[1], p, revision)
		case "role":
			d.Roles.Put(f[1], &storev1.Role{Permissions: f[2:]}, revision)
		case "tenant":
			d.Tenants.Put(f[1], &storev1.Tenant{Storage: storages(f[2:])}, revision)
		case "key":
			d.APIKeys.Put(f[1], key(t, f), revision)
		case "vm":
			policy, err := proto.Marshal(&debvisorv1.VMPolicy{Tenant: f[2]})
			if err != nil {
				t.Fatal(err)
			}
			d.VMs.Put("uuid-"+f[1], &storev1.VM{Uuid: "uuid-" + f[1], Name: f[1], Policy: policy}, revision)
		case "revoked":
			d.Revoked.Put(f[1], f[2], revision)
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	file, err := accessfile.Parse("access.yaml", []byte(policyFile))
	if err != nil {
		t.Fatal(err)
	}
	return access.World{
		Snapshot: d.Snapshot(revision), File: file, FileName: "/etc/access.yaml",
		BuiltIn: map[string][]string{
			"operator": {"node:*", "vm:*"}, "developer": {"node:list"}, "monitor": {"node:list"}, "viewer": {"node:list"},
		},
		Founders: []string{"operator"},
	}
}

func key(t *testing.T, f []string) *storev1.APIKey {
	t.Helper()
	k := &storev1.APIKey{Sha256: strings.Repeat("ab", 32), CreatedAt: timestamppb.New(noon.Add(-time.Hour)), Source: "hvctl"}
	if f[2] != "-" {
		k.Principal = f[2]
	}
	if f[3] != "-" {
		life, err := time.ParseDuration(f[3])
		if err != nil {
			t.Fatal(err)
		}
		k.ExpiresAt = timestamppb.New(noon.Add(life))
	}
	return k
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

// after gives the world as a change leaves it.
func after(w access.World, change access.Change) access.World {
	w.Snapshot = change.After
	return w
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

// uses is a key's last use.
func uses(at time.Time) cluster.Entry[*storev1.KeyUse] {
	return cluster.Entry[*storev1.KeyUse]{Value: &storev1.KeyUse{At: timestamppb.New(at), From: "192.0.2.9"}, ModRevision: 5}
}
