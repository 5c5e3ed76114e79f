package access_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/access"
	"github.com/debvisor/debvisor/controlplane/internal/store"
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
	l := newLab(t)
	const records = `
		principal ann - backup
		role backup storage:snapshot:create storage:snapshot:create a:*
		role viewer vm:list
		role idle node:list
		role auditor vm:list`
	w := l.world(records)
	if got := names(w.ListRoles().GetRoles()); got != "auditor backup developer idle monitor operator viewer" {
		t.Errorf("the roles are %s", got)
	}
	for _, c := range []struct{ name, want string }{
		{"auditor", "file false [audit:*]"}, // the file's counts, whatever etcd says
		{"backup", "etcd false [a:* storage:snapshot:create]"},
		{"viewer", "etcd true [vm:list]"},
		{"monitor", "built-in true [node:heartbeat node:list]"},
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
	_, err = w.SetRole(&debvisorv1.Role{Name: "auditor"})
	refused(t, "a role of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE", "access.yaml", `"auditor"`)
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

	r, err := l.done(w.SetRole(&debvisorv1.Role{
		Name: "new", Permissions: []string{"vm:list", "a:*"}, Limit: &debvisorv1.RateLimit{PerMinute: 5, Burst: 2},
	})).GetRole("new")
	if err != nil || fmt.Sprint(r.GetPermissions()) != "[a:* vm:list]" || r.GetLimit().GetPerMinute() != 5 || r.GetLimit().GetBurst() != 2 {
		t.Errorf("the new role is %v, %v", r, err)
	}
	w = l.now()
	if _, err := l.done(w.DeleteRole("idle")).GetRole("idle"); err == nil {
		t.Error("the deleted role is there")
	}
	// It is the file's principal's too, but stays a role.
	w = l.now()
	if r, err := l.done(w.DeleteRole("viewer")).GetRole("viewer"); err != nil || r.GetSource() != "built-in" || len(r.GetPermissions()) < 5 {
		t.Errorf("viewer became %v, %v", r, err)
	}
}

func TestPrincipals(t *testing.T) {
	l := newLab(t)
	w := l.world(`
		tenant acme
		principal ann acme backup
		names ann 0123456789abcdef
		principal filed - operator
		role backup storage:snapshot:create`)
	all := w.ListPrincipals(&debvisorv1.PrincipalFilter{}).GetPrincipals()
	if got := names(all); got != "ann filed operator" {
		t.Fatalf("the principals are %s", got)
	}
	for i, source := range []string{"etcd", "file", "founder"} {
		if all[i].GetSource() != source {
			t.Errorf("%s comes from %q", all[i].GetName(), all[i].GetSource())
		}
	}
	if p := all[1]; p.GetTenant() != "filers" || p.GetRoles()[0] != "viewer" {
		t.Errorf("not the file's word counts: %v", p)
	}
	for _, c := range []struct {
		filter *debvisorv1.PrincipalFilter
		want   string
	}{
		{&debvisorv1.PrincipalFilter{Tenant: "acme"}, "ann"},
		{&debvisorv1.PrincipalFilter{Role: "viewer"}, "filed"},
		{&debvisorv1.PrincipalFilter{Role: "operator"}, "operator"},
		{&debvisorv1.PrincipalFilter{Role: "operator", Tenant: "acme"}, ""},
	} {
		if got := names(w.ListPrincipals(c.filter).GetPrincipals()); got != c.want {
			t.Errorf("%v: %s; want %s", c.filter, got, c.want)
		}
	}
	_, err := w.GetPrincipal("none")
	refused(t, "an unknown principal", err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND", `"none"`)
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
		{&debvisorv1.Principal{Name: "filed"}, errdefs.FailedPrecondition, "IN_ACCESS_FILE", []string{"access.yaml"}},
		{&debvisorv1.Principal{Name: "bob", Limit: &debvisorv1.RateLimit{Burst: 1, Unlimited: true}}, errdefs.InvalidArgument, "INVALID_FIELD", []string{"limit.unlimited"}},
	} {
		_, err := w.SetPrincipal(c.p)
		refused(t, c.p.String(), err, c.kind, c.code, c.words...)
	}

	got := l.done(w.SetPrincipal(&debvisorv1.Principal{
		Name: "ann", Type: "user", Roles: []string{"auditor", "viewer"}, Permissions: []string{"vm:*", "a:b"}, Tenant: "filers",
		Limit: &debvisorv1.RateLimit{Unlimited: true},
	})).Principals["ann"].Value
	want := &storev1.Principal{
		Type: "user", ApikeyId: "0123456789abcdef", Roles: []string{"auditor", "viewer"}, Permissions: []string{"a:b", "vm:*"}, Tenant: "filers",
		Limit: &storev1.RateLimit{Unlimited: true},
	}
	if !proto.Equal(got, want) {
		t.Errorf("the record became %v", got)
	}
	// What the request leaves out is gone, but for the key's name.
	w = l.now()
	got = l.done(w.SetPrincipal(&debvisorv1.Principal{Name: "ann"})).Principals["ann"].Value
	if !proto.Equal(got, &storev1.Principal{ApikeyId: "0123456789abcdef"}) {
		t.Errorf("the record became %v", got)
	}
}

func TestPrincipalLimit(t *testing.T) {
	l := newLab(t)
	limit := &debvisorv1.RateLimit{PerMinute: 7}
	for name, want := range map[string]*storev1.Principal{
		"ann": {Roles: []string{"viewer"}, ApikeyId: "0123456789abcdef", Limit: &storev1.RateLimit{PerMinute: 7}},
		// Its first record must not take a founder's power away.
		"operator": {Roles: []string{"operator"}, Limit: &storev1.RateLimit{PerMinute: 7}},
	} {
		w := l.world("principal ann - viewer\nnames ann 0123456789abcdef")
		w = l.done(w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: name, Limit: limit}))
		if got := w.Principals[name].Value; !proto.Equal(got, want) {
			t.Errorf("%s became %v", name, got)
		}
		w = l.done(w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: name}))
		if got := w.Principals[name].Value; got.GetLimit() != nil || len(got.GetRoles()) != 1 {
			t.Errorf("%s: no limit became %v", name, got)
		}
	}
	w := l.world("principal ann - viewer")
	_, err := w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "none"})
	refused(t, "an unknown principal", err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND")
	_, err = w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "filed"})
	refused(t, "a principal of the file", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE")
	_, err = w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "ann", Limit: &debvisorv1.RateLimit{PerMinute: 1, Unlimited: true}})
	refused(t, "a limit that is none", err, errdefs.InvalidArgument, "INVALID_FIELD")
}

func TestDeletePrincipal(t *testing.T) {
	l := newLab(t)
	w := l.world(`
		principal ann - viewer
		names ann 0123456789abcdef
		principal bob - viewer
		key 0123456789abcdef - -
		key k-ann ann -1h
		used k-ann 1m
		key k-bob bob -`)
	for name, code := range map[string]string{"filed": "IN_ACCESS_FILE", "operator": "PRINCIPAL_FOUNDER"} {
		_, err := w.DeletePrincipal(name)
		refused(t, name, err, errdefs.FailedPrecondition, code, name)
	}
	_, err := w.DeletePrincipal("none")
	refused(t, "none", err, errdefs.NotFound, "PRINCIPAL_NOT_FOUND")
	w = l.done(w.DeletePrincipal("ann"))
	if _, err := w.GetPrincipal("ann"); err == nil || len(w.KeyUses) != 0 {
		t.Errorf("the principal is there, or %v", w.KeyUses)
	}
	if got := ids(w, ""); got != "k-bob filed-key" {
		t.Errorf("the keys are %s", got)
	}
}

// TestAnOperatorIsLeft tries each change that could take the last one away.
func TestAnOperatorIsLeft(t *testing.T) {
	l := newLab(t)
	// The founder has a record, and so is no more than that says.
	const last = "principal operator - viewer\nprincipal boss - operator\nrole operator node:* migration:* storage:* vm:* operation:* token:* " +
		"replica:* cluster:* reflection:* key:* certificate:* role:* principal:* tenant:* audit:* ca:* event:* metrics:*\ntenant acme\n"
	lessen := map[string]func(access.World) (store.Change, error){
		"another role": func(w access.World) (store.Change, error) {
			return w.SetPrincipal(&debvisorv1.Principal{Name: "boss", Roles: []string{"viewer"}})
		},
		"a tenant": func(w access.World) (store.Change, error) {
			return w.SetPrincipal(&debvisorv1.Principal{Name: "boss", Roles: []string{"operator"}, Tenant: "acme"})
		},
		"its end": func(w access.World) (store.Change, error) { return w.DeletePrincipal("boss") },
		"a smaller role": func(w access.World) (store.Change, error) {
			return w.SetRole(&debvisorv1.Role{Name: "operator", Permissions: []string{"vm:*"}})
		},
	}
	for what, change := range lessen {
		_, err := change(l.world(last))
		refused(t, what, err, errdefs.FailedPrecondition, "NO_OPERATOR_LEFT")
		if what == "a smaller role" {
			continue // it is every operator's
		}
		if _, err := change(l.world(last + "principal other - operator")); err != nil {
			t.Errorf("%s, with another operator: %v", what, err)
		}
		// Of two who take each other's power at once, one is refused.
		w := l.world(last + "principal other - operator")
		first, err := w.SetPrincipal(&debvisorv1.Principal{Name: "other"})
		if err != nil {
			t.Fatal(err)
		}
		second, err := change(w)
		if err != nil {
			t.Fatal(err)
		}
		l.commit(first)
		var conflict *store.ConflictError
		if _, err := l.store.Commit(t.Context(), second); !errors.As(err, &conflict) {
			t.Errorf("%s at once with another: %v", what, err)
		}
	}
	w := l.world(last)
	if _, err := w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "boss"}); err != nil {
		t.Errorf("a limit: %v", err)
	}
}

func TestTenants(t *testing.T) {
	l := newLab(t)
	const records = `
		tenant acme zfs:tank/acme rbd:vms/acme rbd:own
		tenant void
		tenant vmless
		principal ann acme viewer
		vm web vmless`
	w := l.world(records)
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
		{"filers", nil, "IN_ACCESS_FILE", []string{"access.yaml"}},
	} {
		w := l.world(records)
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
		m, err := l.commit(change).GetTenant(c.tenant)
		if err != nil || !proto.Equal(m, &debvisorv1.Tenant{Name: c.tenant, Description: "d", Storage: asked(c.places...), Source: "etcd"}) {
			t.Errorf("%s became %v, %v", what, m, err)
		}
	}
	slash := &debvisorv1.Tenant{Name: "new", Storage: []*debvisorv1.TenantStorage{{Backend: debvisorv1.StorageBackend_BACKEND_ZFS, Pool: "tank/acme"}}}
	_, err := w.SetTenant(slash)
	refused(t, "a dataset in the place of a pool", err, errdefs.InvalidArgument, "INVALID_FIELD", "storage[0].pool")

	w = l.world(records)
	for name, word := range map[string]string{"acme": "principal ann", "vmless": "VM web"} {
		_, err := w.DeleteTenant(name)
		refused(t, "deleting "+name, err, errdefs.FailedPrecondition, "TENANT_IN_USE", word)
	}
	_, err = w.DeleteTenant("filers")
	refused(t, "deleting the file's", err, errdefs.FailedPrecondition, "IN_ACCESS_FILE")
	_, err = w.DeleteTenant("none")
	refused(t, "deleting none", err, errdefs.NotFound, "TENANT_NOT_FOUND", "acme")
	if _, err := l.done(w.DeleteTenant("void")).GetTenant("void"); err == nil {
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
	l := newLab(t)
	w := l.world("revoked ff lost\nrevoked 0a stolen")
	list := w.ListRevokedCertificates().GetCertificates()
	if len(list) != 2 || list[0].GetSerial() != "0a" || list[1].GetReason() != "lost" {
		t.Errorf("revoked are %v", list)
	}
	for _, c := range []struct{ serial, reason, want string }{{"bb", "why", "why"}, {"ff", "", "lost"}, {"ff", "burnt", "burnt"}} {
		w = l.done(w.RevokeCertificate(c.serial, c.reason, "cc"))
		if got := w.Revoked[c.serial].Value; got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	_, err := w.RevokeCertificate("cc", "", "cc")
	refused(t, "the own one", err, errdefs.FailedPrecondition, "OWN_CERTIFICATE", "cc")
}

// TestOneChangeAtATime makes every pair of changes from one snapshot: the second
// is refused by the store and has to be made anew.
func TestOneChangeAtATime(t *testing.T) {
	l := newLab(t)
	records := "principal ci - viewer\nkey k ci -\nkey k2 ci -1h\nrole r vm:list\ntenant t"
	changes := map[string]func(access.World) (store.Change, error){
		"create key":    func(w access.World) (store.Change, error) { return made(t, 0).Create(w, "ci", "") },
		"rotate key":    func(w access.World) (store.Change, error) { return made(t, 0).Rotate(w, "k2", 1) },
		"revoke key":    func(w access.World) (store.Change, error) { return w.RevokeKey("k") },
		"set role":      func(w access.World) (store.Change, error) { return w.SetRole(&debvisorv1.Role{Name: "new"}) },
		"delete role":   func(w access.World) (store.Change, error) { return w.DeleteRole("r") },
		"set principal": func(w access.World) (store.Change, error) { return w.SetPrincipal(&debvisorv1.Principal{Name: "new"}) },
		"limit": func(w access.World) (store.Change, error) {
			return w.SetPrincipalLimit(&debvisorv1.PrincipalLimit{Name: "ci"})
		},
		"delete principal": func(w access.World) (store.Change, error) { return w.DeletePrincipal("ci") },
		"set tenant":       func(w access.World) (store.Change, error) { return w.SetTenant(&debvisorv1.Tenant{Name: "new"}) },
		"delete tenant":    func(w access.World) (store.Change, error) { return w.DeleteTenant("t") },
		"revoke":           func(w access.World) (store.Change, error) { return w.RevokeCertificate("aa", "", "") },
	}
	for one, first := range changes {
		for other, second := range changes {
			w := l.world(records)
			change, err := second(w)
			if err != nil {
				t.Fatal(other, err)
			}
			l.done(first(w))
			var conflict *store.ConflictError
			if _, err := l.store.Commit(t.Context(), change); !errors.As(err, &conflict) || conflict.Key != store.AccessTurnKey() {
				t.Errorf("%s, then %s: %v", one, other, err)
			}
		}
	}
}
