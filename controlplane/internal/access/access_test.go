package access_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func names[M interface{ GetName() string }](list []M) string {
	var words []string
	for _, m := range list {
		words = append(words, m.GetName())
	}
	return strings.Join(words, " ")
}

func TestRoles(t *testing.T) {
	w := world(t, `
		principal ann - backup
		role backup storage:snapshot:create storage:snapshot:create a:*
		role viewer vm:list
		role idle node:list
		role auditor vm:list`)
	list := w.ListRoles().GetRoles()
	if got := names(list); got != "auditor backup developer idle monitor operator viewer" {
		t.Errorf("the roles are %s", got)
	}
	for _, c := range []struct{ name, want string }{
		{"auditor", "file false [audit:*]"}, // the file's counts, whatever etcd says
		{"backup", "etcd false [a:* storage:snapshot:create]"},
		{"viewer", "etcd true [vm:list]"},
		{"monitor", "built-in true [node:list]"},
	} {
		r, err := w.GetRole(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(r.GetSource(), " ", r.GetBuiltIn(), " ", r.GetPermissions()); got != c.want {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
	}
	_, err := w.GetRole("none")
	refused(t, "an unknown role", err, errdefs.NotFound, "ROLE_NOT_FOUND", `"none"`, "backup")

	change, err := w.SetRole(&debvisorv1.Role{Name: "new", Permissions: []string{"vm:list", "a:*"}, Limit: &debvisorv1.RateLimit{PerMinute: 5, Burst: 2}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := after(w, change).GetRole("new")
	if err != nil || fmt.Sprint(r.GetPermissions()) != "[a:* vm:list]" || r.GetLimit().GetPerMinute() != 5 || r.GetLimit().GetBurst() != 2 {
		t.Errorf("the new role is %v, %v", r, err)
	}
	_, err = w.SetRole(&debvisorv1.Role{Name: "auditor"})
	refused(t, "a role of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "/etc/access.yaml", `"auditor"`)
	_, err = w.SetRole(&debvisorv1.Role{Name: "x", Limit: &debvisorv1.RateLimit{PerMinute: 1, Unlimited: true}})
	refused(t, "a limit that is none", err, errdefs.InvalidArgument, "INVALID_FIELD", "limit.unlimited")

	for _, c := range []struct {
		name string
		kind errdefs.Kind
		code string
	}{
		{"none", errdefs.NotFound, "ROLE_NOT_FOUND"},
		{"auditor", errdefs.FailedPrecondition, "IN_ACCESS_FILE"},
		{"monitor", errdefs.FailedPrecondition, "ROLE_BUILT_IN"},
		{"backup", errdefs.FailedPrecondition, "ROLE_IN_USE"},
	} {
		_, err := w.DeleteRole(c.name)
		refused(t, "deleting "+c.name, err, c.kind, c.code, c.name)
	}
	change, err = w.DeleteRole("idle")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := after(w, change).GetRole("idle"); err == nil {
		t.Error("the deleted role is there")
	}
	// It is the file's principal's too, but stays a role.
	change, err = w.DeleteRole("viewer")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := after(w, change).GetRole("viewer"); err != nil || r.GetSource() != "built-in" || r.GetPermissions()[0] != "node:list" {
		t.Errorf("viewer became %v, %v", r, err)
	}
}

func TestPrincipals(t *testing.T) {
	w := world(t, `
		tenant acme
		principal ann acme backup
		names ann sha256:aa
		principal filed - operator
		role backup storage:snapshot:create`)
	all := w.ListPrincipals(&debvisorv1.PrincipalFilter{}).GetPrincipals()
	if got := names(all); got != "ann filed operator" {
		t.Errorf("the principals are %s", got)
	}
	for i, source := range []string{"etcd", "file", "founder"} {
		if all[i].GetSource() != source {
			t.Errorf("%s comes from %q", all[i].GetName(), all[i].GetSource())
		}
	}
	if p := all[1]; p.GetTenant() != "filers" || p.GetRoles()[0] != "viewer" {
		t.Errorf("not the file's word counts: %v", p)
	}
	for filter, want := range map[*debvisorv1.PrincipalFilter]string{
		{Tenant: "acme"}: "ann", {Role: "viewer"}: "filed", {Role: "operator"}: "operator", {Role: "operator", Tenant: "acme"}: "",
	} {
		if got := names(w.ListPrincipals(filter).GetPrincipals()); got != want {
			t.Errorf("%v: %s; want %s", filter, got, want)
		}
	}
	_, err := w.GetPrincipal("none")
	refused(t, "an unknown principal", err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND", `"none"`)

	change, err := w.SetPrincipal(&debvisorv1.Principal{
		Name: "ann", Type: "user", Roles: []string{"auditor", "viewer"}, Permissions: []string{"vm:*", "a:b"}, Tenant: "filers",
		Limit: &debvisorv1.RateLimit{Unlimited: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &storev1.Principal{
		Type: "user", ApikeyId: "sha256:aa", Roles: []string{"auditor", "viewer"}, Permissions: []string{"a:b", "vm:*"}, Tenant: "filers",
		Limit: &storev1.RateLimit{Unlimited: true},
	}
	if got := change.After.Principals["ann"].Value; !proto.Equal(got, want) {
		t.Errorf("the record became %v", got)
	}
	// What the request leaves out is gone, but for the key's name.
	change, err = w.SetPrincipal(&debvisorv1.Principal{Name: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	if got := change.After.Principals["ann"].Value; !proto.Equal(got, &storev1.Principal{ApikeyId: "sha256:aa"}) {
		t.Errorf("the record became %v", got)
	}
	for _, c := range []struct {
		p     *debvisorv1.Principal
		kind  errdefs.Kind
		code  string
		words []string
	}{
		{&debvisorv1.Principal{Name: "a b"}, errdefs.InvalidArgument, "INVALID_FIELD", []string{"name", `"a b"`}},
		{&debvisorv1.Principal{Name: "system:x"}, errdefs.InvalidArgument, "INVALID_FIELD", []string{"name"}},
		{&debvisorv1.Principal{Name: "bob", Roles: []string{"viewer", "nobody"}}, errdefs.InvalidArgument, "INVALID_FIELD", []string{"roles[1]", `"nobody"`, "auditor, backup"}},
		{&debvisorv1.Principal{Name: "bob", Tenant: "void"}, errdefs.InvalidArgument, "INVALID_FIELD", []string{"tenant", `"void"`, "acme, filers"}},
		{&debvisorv1.Principal{Name: "filed"}, errdefs.FailedPrecondition, "IN_ACCESS_FILE", []string{"/etc/access.yaml"}},
		{&debvisorv1.Principal{Name: "bob", Limit: &debvisorv1.RateLimit{Burst: 1, Unlimited: true}}, errdefs.InvalidArgument, "INVALID_FIELD", []string{"limit.unlimited"}},
	} {
		_, err := w.SetPrincipal(c.p)
		refused(t, c.p.String(), err, c.kind, c.code, c.words...)
	}
}

func TestPrincipalLimit(t *testing.T) {
	w := world(t, "principal ann - viewer\nnames ann sha256:aa")
	limit := &debvisorv1.RateLimit{PerMinute: 7}
	for name, want := range map[string]*storev1.Principal{
		"ann": {Roles: []string{"viewer"}, ApikeyId: "sha256:aa", Limit: &storev1.RateLimit{PerMinute: 7}},
		// Its first record must not take a founder's power away.
		"operator": {Roles: []string{"operator"}, Limit: &storev1.RateLimit{PerMinute: 7}},
	} {
		change, err := w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: name, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		if got := change.After.Principals[name].Value; !proto.Equal(got, want) {
			t.Errorf("%s became %v", name, got)
		}
		change, err = after(w, change).SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: name})
		if err != nil || change.After.Principals[name].Value.GetLimit() != nil {
			t.Errorf("%s: no limit became %v, %v", name, change.After.Principals[name].Value, err)
		}
	}
	_, err := w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "none"})
	refused(t, "an unknown principal", err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND")
	_, err = w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "filed"})
	refused(t, "a principal of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE")
	_, err = w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "ann", Limit: &debvisorv1.RateLimit{PerMinute: 1, Unlimited: true}})
	refused(t, "a limit that is none", err, errdefs.InvalidArgument, "INVALID_FIELD")
}

func TestDeletePrincipal(t *testing.T) {
	w := world(t, `
		principal ann - viewer
		names ann 0123456789abcdef
		principal bob - viewer
		key 0123456789abcdef - -
		key k-ann ann -1h
		key k-bob bob -`)
	change, err := w.DeletePrincipal("ann")
	if err != nil {
		t.Fatal(err)
	}
	left := after(w, change)
	if _, err := left.GetPrincipal("ann"); err == nil {
		t.Error("the principal is there")
	}
	if keys := left.ListKeys(&debvisorv1.KeyFilter{}).GetKeys(); len(keys) != 2 || keys[0].GetId() != "k-bob" || keys[1].GetId() != "filed-key" {
		t.Errorf("the keys are %v", keys)
	}
	for name, code := range map[string]string{"filed": "IN_ACCESS_FILE", "operator": "PRINCIPAL_FOUNDER"} {
		_, err := w.DeletePrincipal(name)
		refused(t, name, err, errdefs.FailedPrecondition, code, name)
	}
	_, err = w.DeletePrincipal("none")
	refused(t, "none", err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND")
}

func TestTenants(t *testing.T) {
	w := world(t, `
		tenant acme zfs:tank/acme rbd:vms/acme rbd:own
		tenant void
		tenant vmless
		principal ann acme viewer
		vm web vmless`)
	if got := names(w.ListTenants().GetTenants()); got != "acme filers vmless void" {
		t.Errorf("the tenants are %s", got)
	}
	for _, c := range []struct {
		tenant string
		places []string
		code   string
		words  []string
	}{
		// Neighbours that are not inside of each other.
		{"new", []string{"zfs:tank/acm", "zfs:tank/acme2", "zfs:tank/a/cme", "rbd:tank/acme", "rbd:vms/acme2", "zfs:vms/acme", "zfs:own", "zfs:tan"}, "", nil},
		{"acme", []string{"zfs:tank/acme/sub", "rbd:own", "rbd:vms/x"}, "", nil}, // its own gives way
		{"new", nil, "", nil},
		{"new", []string{"zfs:tank/acme"}, "STORAGE_OF_ANOTHER_TENANT", []string{"zfs:tank/acme", `acme`}},
		{"new", []string{"zfs:ok", "zfs:tank/acme/deep/er"}, "STORAGE_OF_ANOTHER_TENANT", []string{"zfs:tank/acme/deep/er"}},
		{"new", []string{"zfs:tank"}, "STORAGE_OF_ANOTHER_TENANT", []string{"zfs:tank cannot"}},
		{"new", []string{"rbd:vms"}, "STORAGE_OF_ANOTHER_TENANT", []string{"rbd:vms/acme"}},
		{"new", []string{"rbd:own/ns"}, "STORAGE_OF_ANOTHER_TENANT", []string{"rbd:own is"}},
		{"acme", []string{"zfs:tank/filers/x"}, "STORAGE_OF_ANOTHER_TENANT", []string{"filers"}}, // the file's
		{"new", []string{"zfs:a/b", "zfs:a/b"}, "INVALID_FIELD", []string{"storage[1]"}},
		{"new", []string{"zfs:a/b/c", "zfs:b", "zfs:a"}, "INVALID_FIELD", []string{"storage[2]", "zfs:a/b/c"}},
		{"new", []string{"rbd:a/b/c"}, "INVALID_FIELD", []string{"storage[0].name", "namespace"}},
		{"new", []string{"zfs:a/b@snap"}, "INVALID_FIELD", []string{"storage[0].name"}},
		{"new", []string{"zfs:a//b"}, "INVALID_FIELD", []string{"storage[0].name", "dataset"}},
		{"new", []string{"zfs:a/b/"}, "INVALID_FIELD", []string{"storage[0].name"}},
		{"new", []string{"zfs:a\tb"}, "INVALID_FIELD", []string{"storage[0].pool"}},
		{"filers", nil, "IN_ACCESS_FILE", []string{"/etc/access.yaml"}},
	} {
		change, err := w.SetTenant(&debvisorv1.Tenant{Name: c.tenant, Description: "d", Storage: asked(c.places...)})
		what := c.tenant + " " + strings.Join(c.places, " ")
		if c.code != "" {
			kind := errdefs.FailedPrecondition
			if c.code == "INVALID_FIELD" {
				kind = errdefs.InvalidArgument
			}
			refused(t, what, err, kind, c.code, c.words...)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		m, err := after(w, change).GetTenant(c.tenant)
		if err != nil || !proto.Equal(m, &debvisorv1.Tenant{Name: c.tenant, Description: "d", Storage: asked(c.places...), Source: "etcd"}) {
			t.Errorf("%s became %v, %v", what, m, err)
		}
	}
	slash := &debvisorv1.Tenant{Name: "new", Storage: []*debvisorv1.TenantStorage{{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: "tank/acme"}}}
	_, err := w.SetTenant(slash)
	refused(t, "a dataset in the place of a pool", err, errdefs.InvalidArgument, "INVALID_FIELD", "storage[0].pool")

	for name, word := range map[string]string{"acme": "principal ann", "vmless": "VM web"} {
		_, err := w.DeleteTenant(name)
		refused(t, "deleting "+name, err, errdefs.FailedPrecondition, "TENANT_IN_USE", word)
	}
	_, err = w.DeleteTenant("filers")
	refused(t, "deleting the file's", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE")
	_, err = w.DeleteTenant("none")
	refused(t, "deleting none", err, errdefs.NotFound, "TENANT_NOT_FOUND", "acme")
	change, err := w.DeleteTenant("void")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := after(w, change).GetTenant("void"); err == nil {
		t.Error("the deleted tenant is there")
	}
}

func TestCertificates(t *testing.T) {
	for text, want := range map[string]string{"0A": "0a", "a": "0a", "00ff": "ff", "ABCDEF": "abcdef", "7b00": "7b00"} {
		if got, err := access.Serial(text); got != want || err != nil {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "00", "g", "-1", "+1", "a_b"} {
		_, err := access.Serial(text)
		refused(t, text, err, errdefs.InvalidArgument, "INVALID_FIELD", "serial")
	}
	w := world(t, "revoked ff lost\nrevoked 0a stolen")
	list := w.ListRevokedCertificates().GetCertificates()
	if len(list) != 2 || list[0].GetSerial() != "0a" || list[1].GetReason() != "lost" {
		t.Errorf("revoked are %v", list)
	}
	for _, c := range []struct{ serial, reason, want string }{{"bb", "why", "why"}, {"ff", "", "lost"}, {"ff", "burnt", "burnt"}} {
		change, err := w.RevokeCertificate(c.serial, c.reason, "cc")
		if err != nil || change.After.Revoked[c.serial].Value != c.want {
			t.Errorf("%+v: %v, %v", c, change.After.Revoked, err)
		}
	}
	_, err := w.RevokeCertificate("cc", "", "cc")
	refused(t, "the own one", err, errdefs.FailedPrecondition, "OWN_CERTIFICATE", "cc")
}
