package accessfile_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/identity"
)

// example is a file that has everything.
func example(t testing.TB) []byte {
	t.Helper()
	content, err := os.ReadFile("testdata/access.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestParse(t *testing.T) {
	p, err := accessfile.Parse("f", example(t))
	if err != nil {
		t.Fatal(err)
	}
	ci := p.Principals["ci-system"]
	if ci.GetType() != "service" || ci.GetTenant() != "shop" || strings.Join(ci.GetPermissions(), " ") != "vm:list storage:*" ||
		ci.GetLimit().GetPerMinute() != 600 || ci.GetLimit().GetBurst() != 100 {
		t.Errorf("ci-system came out as %v", ci)
	}
	if !p.Principals["1234"].GetLimit().GetUnlimited() {
		t.Errorf("1234 came out as %v", p.Principals["1234"])
	}
	key := p.Keys["1234567890123456"]
	if key.GetPrincipal() != "ci-system" || key.GetExpiresAt().GetSeconds() != 1801353600 || key.GetSource() != accessfile.Source {
		t.Errorf("the key came out as %v", key)
	}
	if len(p.Roles) != 2 || len(p.Tenants) != 2 || len(p.Tenants["shop"].GetStorage()) != 2 {
		t.Errorf("%d roles, tenants %v", len(p.Roles), p.Tenants)
	}
	for _, empty := range []string{"", "# nothing\n", "---\n", "principals:\nkeys: {}\n"} {
		if p, err := accessfile.Parse("f", []byte(empty)); err != nil || len(p.Principals) != 0 {
			t.Errorf("%q: %v, %v", empty, p, err)
		}
	}
}

// TestTheGuidesFile takes the example of the guide as it stands there.
func TestTheGuidesFile(t *testing.T) {
	guide, err := os.ReadFile("../../../docs/guide.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(guide), "### The access file")
	_, after, _ = strings.Cut(after, "```yaml\n")
	content, _, found := strings.Cut(after, "```")
	if !found {
		t.Fatal("the guide has no access file")
	}
	p, err := accessfile.Parse("f", []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Principals) != 1 || len(p.Roles) != 1 || len(p.Tenants) != 1 || len(p.Keys) != 1 {
		t.Errorf("it came out as %+v", p)
	}
}

// faults are contents that are refused, each with how.
func faults() map[string]string {
	const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	return map[string]string{
		"- a":                         `f:1: the file is a list; expected a mapping`,
		"hello":                       `f:1: the file is "hello"; expected a mapping`,
		"principal: {}":               `f:1: the file has no field "principal"; expected one of principals, roles, tenants, keys`,
		"roles: {}\n\nroles: {}":      `f:3: "roles" is in the file twice, first in line 1`,
		"principals:\n  a: {}\n  a: ": `f:3: "a" is in principals twice, first in line 2`,
		"principals:\n  a b: {}":      `f:2: the name of a principal: "a b" is not accepted; expected 1 to 128 printable ASCII characters without space, ':' and '/'`,
		"principals:\n  agent:x: {}":  `f:2: the name of a principal: "agent:x" is not accepted; expected 1 to 128 printable ASCII characters without space, ':' and '/'`,
		"principals:\n  a:\n    role: x": `f:3: principal a has no field "role"; ` +
			`expected one of type, roles, permissions, tenant, limit`,
		"principals:\n  a:\n    roles: x":                     `f:3: principal a: roles is "x"; expected a list`,
		"principals:\n  a:\n    roles:\n      - x\n      - x": `f:5: "x" is in principal a: roles twice`,
		"principals:\n  a: {roles: [X]}":                      `f:2: principal a: roles: "X" is not accepted; expected 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit`,
		"principals:\n  a: {roles: [[x]]}":                    `f:2: principal a: roles is a list; expected 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit`,
		"principals:\n  a: {permissions: ['*']}":              `f:2: principal a: permissions: "*" is not accepted; expected a permission such as vm:list, or vm:* for all below vm`,
		"principals:\n  a: {permissions: [vm:**]}":            `f:2: principal a: permissions: "vm:**" is not accepted; expected a permission such as vm:list, or vm:* for all below vm`,
		"principals:\n  a: {tenant: }":                        `f:2: principal a: tenant is nothing; expected 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit`,
		"principals:\n  a: {tenant: ../b}":                    `f:2: principal a: tenant: "../b" is not accepted; expected 1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit`,
		"principals:\n  a: {limit: 5}":                        `f:2: principal a: limit is "5"; expected a mapping`,
		"principals:\n  a: {limit: {per_minute: -1}}":         `f:2: principal a: limit: per_minute: "-1" is not accepted; expected a whole number from 0 to 10000000`,
		"principals:\n  a: {limit: {burst: 10000001}}":        `f:2: principal a: limit: burst: "10000001" is not accepted; expected a whole number from 0 to 10000000`,
		"principals:\n  a: {limit: {unlimited: yes}}":         `f:2: principal a: limit: unlimited: "yes" is not accepted; expected true or false`,
		"roles:\n  a: {limit: {unlimited: true, burst: 1}}":   `f:2: role a: limit: unlimited goes with neither per_minute nor burst`,
		"principals:\n  a: {type: " + strings.Repeat("x", 33): `f:2: it is no YAML: did not find expected ',' or '}'`,
		"principals:\n  a: {type: " + strings.Repeat("x", 90): `f:2: it is no YAML: did not find expected ',' or '}'`,
		"principals:\n  a:\n    type: " + strings.Repeat("x", 33): `f:3: principal a: type: "` + strings.Repeat("x", 33) +
			`" is not accepted; expected at most 32 characters`,
		"principals:\n  a: &x {}\n  b: *x":                      `f:3: principal b is an alias; expected a mapping`,
		"principals:\n  a: {type: !!binary aGk=}":               `f:2: principal a: type is a value with a tag; expected at most 32 characters`,
		"principals:\n  <<: {a: {}}":                            `f:2: a key of principals is "<<"; expected a name`,
		"principals:\n  [a]: {}":                                `f:2: a key of principals is a list; expected a name`,
		"principals:\n  a: {}\n---\nroles: {}":                  `f:3: a second document begins; expected one only`,
		"principals:\n\t- a":                                    `f:2: it is no YAML: found character that cannot start any token`,
		"# x\na: \xff":                                          `f:2: it is not UTF-8 text`,
		"# x\n\na: \x01":                                        `f:3: it holds the control character 0x1`,
		"roles:\n  a:\n    permissions: [vm:list\nkeys: {}":     `f:3: it is no YAML: did not find expected ',' or ']'`,
		"roles:\n  a:\n   limit: {}\n  permissions: []\n b: {}": `f:5: it is no YAML: did not find expected key`,
		"a: 'b":                                                    `f:1: it is no YAML: found unexpected end of stream`,
		"roles:\n  a: {permission: [x]}":                           `f:2: role a has no field "permission"; expected one of permissions, limit`,
		"tenants:\n  a: {storage: [{pool: p}]}":                    `f:2: tenant a: storage lacks its backend`,
		"tenants:\n  a: {storage: [{backend: zfs}]}":               `f:2: tenant a: storage lacks its pool`,
		"tenants:\n  a: {storage: [{backend: nfs, pool: p}]}":      `f:2: tenant a: storage: backend: "nfs" is not accepted; expected zfs or rbd`,
		"tenants:\n  a: {storage: [{backend: zfs, pool: p, x: 1}]": `f:2: it is no YAML: did not find expected ',' or '}'`,
		"tenants:\n  a:\n    storage:\n    - {backend: zfs, pool: p}\n    - {backend: zfs, pool: p}": `f:5: tenant a: storage: zfs pool p is tenant a's already, in line 4`,
		"tenants:\n  b: {storage: [{backend: zfs, pool: p, name: x/y/z}]}\n  a: {storage: [{backend: zfs, pool: p, name: x}]}": `f:2: ` +
			`tenant b: storage: zfs p/x/y/z lies within zfs p/x, which is tenant a's (line 3)`,
		"tenants:\n  a: {storage: [{backend: rbd, pool: p}]}\n  b: {storage: [{backend: rbd, pool: p, name: x}]}": `f:3: ` +
			`tenant b: storage: rbd p/x lies within rbd pool p, which is tenant a's (line 2)`,
		"tenants:\n  a: {storage: [{backend: zfs, pool: p/x}]}":           `f:2: tenant a: storage: pool: "p/x" is not accepted; expected a pool's name, without '/' and what lies below it`,
		"tenants:\n  a: {storage: [{backend: zfs, pool: p, name: x//y}]}": `f:2: tenant a: storage: name: "x//y" is not accepted; expected a dataset below the pool, or a namespace; without it the whole pool`,
		"tenants:\n  a: {storage: [{backend: zfs, pool: p, name: x@y}]}":  `f:2: tenant a: storage: name: "x@y" is not accepted; expected a dataset below the pool, or a namespace; without it the whole pool`,
		"tenants:\n  a: {storage: [{backend: rbd, pool: p, name: x/y}]}":  `f:2: tenant a: storage: name: "x/y" is not accepted; expected a namespace of the pool, without '/'`,
		"tenants:\n  a:\n    storage:\n    - {backend: zfs, pool: p, name: x}\n    - {backend: zfs, pool: p}": `f:4: ` +
			`tenant a: storage: zfs p/x lies within zfs pool p, which is tenant a's (line 5)`,
		"keys:\n  a: {principal: p}":                             `f:2: key a lacks its sha256`,
		"keys:\n  a: {sha256: " + hash + "}":                     `f:2: key a lacks its principal`,
		"keys:\n  a: {sha256: s3cret, principal: p}":             `f:2: key a: sha256: what stands there is not accepted; expected 64 lower-case hex digits: what sha256sum prints of the whole key`,
		"keys:\n  a: s3cret":                                     `f:2: key a is what stands there; expected a mapping`,
		"keys:\n  a: {sha256: " + hash + ", principal: s3:cret}": `f:2: key a: principal: what stands there is not accepted; expected 1 to 128 printable ASCII characters without space, ':' and '/'`,
		"keys:\n  a: {sha256: " + hash + ", principal: p, expires: 2027-01-31}": `f:2: key a: expires: what stands there is not accepted; ` +
			`expected a time such as 2027-01-31T00:00:00Z`,
		"keys:\n  a: {sha256: " + hash + ", principal: p}\n  b: {sha256: " + hash + ", principal: q}": `f:3: key b has the same sha256 as key a`,
		"keys:\n  a: &a {sha256: " + hash + ", principal: p}\n  b: *a":                                `f:3: key b is an alias; expected a mapping`,
	}
}

// TestFaults holds every refusal to its line and its words.
func TestFaults(t *testing.T) {
	for content, want := range faults() {
		p, err := accessfile.Parse("f", []byte(content))
		switch {
		case p != nil || err == nil:
			t.Errorf("%q was taken", content)
		case err.Error() != want:
			t.Errorf("%q:\ngot  %s\nwant %s", content, err, want)
		case strings.Contains(err.Error(), "cret"):
			t.Errorf("%q: what may be a key is in %s", content, err)
		}
	}
	// A key in the place of its id is not told either.
	const pasted = "dvk_0123456789abcdef_000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f_00000000"
	if _, err := accessfile.Parse("f", []byte("keys:\n  "+pasted+": {}")); err == nil || strings.Contains(err.Error(), "0405060708") {
		t.Errorf("a key as an id: %v", err)
	}
	if _, err := accessfile.Parse("f", make([]byte, accessfile.MaxBytes+1)); err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") {
		t.Errorf("a large file: %v", err)
	}
}

// TestNothingTakesLong gives the worst of what fits.
func TestNothingTakesLong(t *testing.T) {
	for name, content := range map[string]string{
		"nested":      "principals: " + strings.Repeat("[", 100_000),
		"nested maps": "principals: " + strings.Repeat("{a: ", 100_000),
		"aliases":     "a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b,*b,*b]\n",
		"one place in the other": func() string {
			var b strings.Builder
			b.WriteString("tenants:\n")
			for i := range 3000 {
				fmt.Fprintf(&b, "  t%d: {storage: [{backend: zfs, pool: p, name: %s%d}]}\n", i, strings.Repeat("a/", 100), i)
			}
			return b.String()
		}(),
	} {
		t.Run(name, func(*testing.T) {
			_, _ = accessfile.Parse("f", []byte(content)) // the test's own deadline is the check
		})
	}
}

// accepted holds what was read against the rules of the contract's messages:
// a file accepts nothing that a call would not.
func accepted(t *testing.T, check protovalidate.Validator, p *accessfile.Policy) {
	t.Helper()
	valid := func(m proto.Message) {
		if err := check.Validate(m); err != nil {
			t.Errorf("%v is taken, and no call would: %v", m, err)
		}
	}
	limit := func(l *storev1.RateLimit) *debvisorv1.RateLimit {
		return &debvisorv1.RateLimit{PerMinute: l.GetPerMinute(), Burst: l.GetBurst(), Unlimited: l.GetUnlimited()}
	}
	for name, r := range p.Principals {
		valid(&debvisorv1.Principal{
			Name: name, Type: r.GetType(), Roles: r.GetRoles(), Permissions: r.GetPermissions(), Tenant: r.GetTenant(), Limit: limit(r.GetLimit()),
		})
		if err := identity.CheckPrincipal(name); err != nil {
			t.Error(err)
		}
	}
	for name, r := range p.Roles {
		valid(&debvisorv1.Role{Name: name, Permissions: r.GetPermissions(), Limit: limit(r.GetLimit())})
	}
	for name, r := range p.Tenants {
		m := &debvisorv1.Tenant{Name: name, Description: r.GetDescription()}
		for _, s := range r.GetStorage() {
			backend := map[string]debvisorv1.StorageBackend{"zfs": debvisorv1.StorageBackend_BACKEND_ZFS, "rbd": debvisorv1.StorageBackend_BACKEND_RBD}[s.GetBackend()]
			m.Storage = append(m.Storage, &debvisorv1.TenantStorage{Backend: backend, Pool: s.GetPool(), Name: s.GetName()})
		}
		valid(m)
	}
	hashes := map[string]bool{}
	for id, k := range p.Keys {
		valid(&debvisorv1.KeyRequest{Principal: k.GetPrincipal(), Description: k.GetDescription()})
		valid(&debvisorv1.KeyRef{Id: id})
		if len(k.GetSha256()) != 64 || hashes[k.GetSha256()] {
			t.Errorf("key %s: %v", id, k)
		}
		hashes[k.GetSha256()] = true
	}
}

func FuzzFile(f *testing.F) {
	check, err := protovalidate.New()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example(f))
	for content := range faults() {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		p, err := accessfile.Parse("f", content)
		switch {
		case (p == nil) == (err == nil):
			t.Fatalf("a policy %v and an error %v", p, err)
		case err == nil:
			accepted(t, check, p)
		case !strings.HasPrefix(err.Error(), "f:") || strings.ContainsAny(err.Error(), "\n\r"):
			t.Errorf("the error is no line of ours: %q", err)
		}
	})
}
