package authz_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// edit makes the next snapshot.
func edit(s *cluster.Snapshot, change func(*cluster.Draft)) *cluster.Snapshot {
	d := s.Draft()
	change(d)
	return d.Snapshot(s.Revision + 1)
}

func code(err error) string {
	if err == nil {
		return ""
	}
	return errdefs.FromStatus(errdefs.ToStatus(err, "")).Code
}

// TestChangesTakeEffectWithTheNextSnapshot follows one principal through
// changes of its record, of its role, of a built-in role, and of the file.
func TestChangesTakeEffectWithTheNextSnapshot(t *testing.T) {
	file := &fileOf{policy: accessfile.None().Current()}
	a := authz.New(authz.Config{File: file})
	s := cluster.Empty()
	expect := func(when, permission string, want bool) {
		t.Helper()
		if got := a.Grant(s, principal("p")).Has(permission); got != want {
			t.Errorf("%s: %s is %v", when, permission, got)
		}
	}
	expect("without a record", "node:list", false)
	s = edit(s, func(d *cluster.Draft) {
		d.Principals.Put("p", &storev1.Principal{Roles: []string{"viewer", "mover"}}, 1)
	})
	expect("as a viewer", "node:list", true)
	expect("with a role that is not there", "migration:execute", false)
	s = edit(s, func(d *cluster.Draft) { d.Roles.Put("mover", &storev1.Role{Permissions: []string{"migration:*"}}, 2) })
	expect("with a role that is there", "migration:execute", true)
	s = edit(s, func(d *cluster.Draft) { d.Roles.Put("viewer", &storev1.Role{Permissions: []string{"vm:list"}}, 3) })
	expect("with a record in viewer's place", "node:list", false)
	expect("with a record in viewer's place", "vm:list", true)
	s = edit(s, func(d *cluster.Draft) { d.Roles.Delete("viewer") })
	expect("with viewer restored", "node:list", true)
	before := s
	s = edit(s, func(d *cluster.Draft) { d.Principals.Delete("p") })
	expect("deleted", "node:list", false)
	if !a.Grant(before, principal("p")).Has("node:list") {
		t.Error("an older snapshot says what a newer one does")
	}
	file.policy = &accessfile.Policy{Principals: map[string]*storev1.Principal{"p": {Permissions: []string{"node:list"}}}}
	expect("from the file", "node:list", true)
	s = edit(s, func(d *cluster.Draft) { d.Principals.Put("p", &storev1.Principal{Roles: []string{"operator"}}, 9) })
	expect("with the file's in force", "vm:list", false)
	file.policy = &accessfile.Policy{}
	expect("with the file's taken away", "vm:list", true)
	s = edit(s, func(d *cluster.Draft) { d.SetEpoch(1); d.Principals.Delete("p") })
	expect("in another epoch", "vm:list", false)
}

func TestConfined(t *testing.T) {
	s := edit(cluster.Empty(), func(d *cluster.Draft) {
		d.Principals.Put("shop", &storev1.Principal{Roles: []string{"operator"}, Tenant: "shop"}, 1)
	})
	a := authz.New(authz.Config{})
	shop := principal("shop")
	for method, want := range map[string]string{
		debvisorv1.VMService_ListVMs_FullMethodName: "",
		migrate:   "",
		listNodes: "",
		debvisorv1.AccessService_WhoAmI_FullMethodName: "",
		token: "CONFINED",
		debvisorv1.NodeService_EvacuateNode_FullMethodName:       "CONFINED",
		debvisorv1.MigrationService_PlanRebalance_FullMethodName: "CONFINED",
		debvisorv1.AccessService_SetPrincipal_FullMethodName:     "CONFINED",
		connect: "AGENTS_ONLY",
	} {
		if got := code(a.Authorize(s, shop, method, time.Now())); got != want {
			t.Errorf("%s: %q, want %q", method, got, want)
		}
	}
	// What handlers ask for themselves is refused for the same reason.
	for permission, want := range map[string]string{
		authz.EvacuateNode: "CONFINED", authz.JoinReplica: "CONFINED", "migration:plan": "", "backup:run": "PERMISSION_DENIED",
	} {
		if got := code(a.Require(s, shop, permission)); got != want {
			t.Errorf("%s: %q, want %q", permission, got, want)
		}
	}
	// A token adds permissions and takes no tenant away.
	shop.Kind, shop.Permissions = authn.JWT, []string{"token:create"}
	if got := code(a.Require(s, shop, "token:create")); got != "CONFINED" {
		t.Errorf("with a token: %q", got)
	}
	if g := a.Grant(s, shop); g.Tenant() != "shop" || len(g.Permissions()) != 19 {
		t.Errorf("tenant %q, permissions %v", g.Tenant(), g.Permissions())
	}
}

func TestLimits(t *testing.T) {
	limit := func(perMinute, burst uint32) *storev1.RateLimit {
		return &storev1.RateLimit{PerMinute: perMinute, Burst: burst}
	}
	free := &storev1.RateLimit{Unlimited: true}
	s := edit(cluster.Empty(), func(d *cluster.Draft) {
		d.Roles.Put("slow", &storev1.Role{Limit: limit(10, 0)}, 1)
		d.Roles.Put("fast", &storev1.Role{Limit: limit(500, 50)}, 1)
		d.Roles.Put("burst", &storev1.Role{Limit: limit(500, 900)}, 1)
		d.Roles.Put("free", &storev1.Role{Limit: free}, 1)
		for name, p := range map[string]*storev1.Principal{
			"plain":       {Roles: []string{"viewer"}},
			"slow":        {Roles: []string{"viewer", "slow"}},
			"fast":        {Roles: []string{"slow", "fast", "viewer"}},
			"burst":       {Roles: []string{"burst", "fast"}},
			"free":        {Roles: []string{"slow", "free", "fast"}},
			"own":         {Roles: []string{"free"}, Limit: limit(7, 3)},
			"own-free":    {Roles: []string{"slow"}, Limit: free},
			"own-default": {Roles: []string{"free"}, Limit: limit(0, 20)},
		} {
			d.Principals.Put(name, p, 1)
		}
	})
	type rate struct {
		PerMinute, Burst int
		Unlimited        bool
	}
	for perMinute, cases := range map[int]map[string]rate{
		100: {
			"plain": {100, 100, false}, "stranger": {100, 100, false}, "slow": {10, 10, false}, "fast": {500, 50, false},
			"burst": {500, 900, false}, "free": {0, 0, true}, "own": {7, 3, false}, "own-free": {0, 0, true}, "own-default": {100, 20, false},
		},
		0: {"plain": {0, 0, true}, "slow": {10, 10, false}, "own-default": {0, 0, true}},
	} {
		a := authz.New(authz.Config{DefaultPerMinute: perMinute})
		for name, want := range cases {
			var got rate
			got.PerMinute, got.Burst, got.Unlimited = a.Grant(s, principal(name)).Limit()
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("default %d, %s (-want +got):\n%s", perMinute, name, diff)
			}
		}
	}
}

func TestFounders(t *testing.T) {
	a := authz.New(authz.Config{Founders: []string{"operator"}})
	s := cluster.Empty()
	for kind, want := range map[authn.Kind]bool{authn.Certificate: true, authn.APIKey: false, authn.JWT: false} {
		caller := principal("operator")
		caller.Kind = kind
		for range 2 { // the second time from memory
			if got := a.Grant(s, caller).Has("vm:list"); got != want {
				t.Errorf("by %v: %v, want %v", kind, got, want)
			}
		}
	}
	if r, ok := a.Principal(s, "operator"); !ok || r.Source != authz.SourceFounder {
		t.Errorf("listed as %+v", r)
	}
	if _, ok := a.Principal(s, "stranger"); ok {
		t.Error("a stranger is listed")
	}
}

func TestExplain(t *testing.T) {
	s := edit(cluster.Empty(), func(d *cluster.Draft) {
		d.Principals.Put("ci", &storev1.Principal{Roles: []string{"wizard", "developer"}, Permissions: []string{"vm:*"}}, 1)
		d.Principals.Put("shop", &storev1.Principal{Roles: []string{"operator"}, Tenant: "shop"}, 1)
	})
	a := authz.New(authz.Config{Founders: []string{"operator"}})
	for _, c := range []struct {
		principal, permission string
		want                  authz.Decision
	}{
		{"ci", "storage:clone:create", authz.Decision{Allowed: true, Role: "developer", Granted: "storage:clone:*", Reason: "its role developer has storage:clone:*"}},
		{"ci", "vm:list", authz.Decision{Allowed: true, Granted: "vm:*", Reason: "it has vm:* itself"}},
		{"ci", "backup:run", authz.Decision{
			Reason: "none of its roles (wizard, developer) and of its own permissions covers backup:run; there is no role wizard",
		}},
		{"stranger", "vm:list", authz.Decision{Reason: "it has no record principals/stranger, and nothing grants it anything"}},
		{"operator", "vm:list", authz.Decision{Allowed: true, Role: "operator", Granted: "vm:*", Reason: "its role operator has vm:*"}},
		{"shop", "token:create", authz.Decision{
			Role: "operator", Granted: "token:*", Tenant: "shop",
			Reason: "token:* is granted, but tenant shop confines it, and token:create is for callers that no tenant confines",
		}},
	} {
		if diff := cmp.Diff(c.want, a.Explain(s, c.principal, c.permission)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.principal, c.permission, diff)
		}
	}
	caller := principal("ci")
	caller.Kind, caller.Permissions = authn.JWT, []string{"backup:*"}
	if d := a.ExplainCaller(s, caller, "backup:run"); !d.Allowed || d.Reason != "its token has backup:*" {
		t.Errorf("with a token: %+v", d)
	}
}

func TestListsTellTheSource(t *testing.T) {
	file := &fileOf{policy: &accessfile.Policy{
		Principals: map[string]*storev1.Principal{"ci": {}, "both": {Type: "service"}},
		Roles:      map[string]*storev1.Role{"viewer": {}},
		Tenants:    map[string]*storev1.Tenant{"shop": {}},
		Keys:       map[string]*storev1.APIKey{"k1": {}},
	}}
	s := edit(cluster.Empty(), func(d *cluster.Draft) {
		d.Principals.Put("both", &storev1.Principal{}, 1)
		d.Principals.Put("ada", &storev1.Principal{}, 1)
		d.Roles.Put("mover", &storev1.Role{}, 1)
		d.Roles.Put("monitor", &storev1.Role{}, 1)
		d.Tenants.Put("bank", &storev1.Tenant{}, 1)
		d.APIKeys.Put("k0", &storev1.APIKey{}, 1)
	})
	a := authz.New(authz.Config{Founders: []string{"operator"}, File: file})
	var got []string
	for _, r := range a.Principals(s) {
		got = append(got, r.Name+"="+r.Source)
	}
	for _, r := range a.Roles(s) {
		got = append(got, r.Name+"="+r.Source)
	}
	for _, r := range a.Tenants(s) {
		got = append(got, r.Name+"="+r.Source)
	}
	for _, r := range a.Keys(s) {
		got = append(got, r.Name+"="+r.Source)
	}
	want := "ada=etcd both=file ci=file operator=founder developer=built-in monitor=etcd mover=etcd operator=built-in viewer=file bank=etcd shop=file k0=etcd k1=file"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

func TestLeavesOperator(t *testing.T) {
	operator := &storev1.Principal{Roles: []string{"operator"}}
	none := &storev1.Principal{}
	type principals = map[string]*storev1.Principal
	type roles = map[string]*storev1.Role
	for name, c := range map[string]struct {
		etcd    principals
		roles   roles
		file    principals
		change  authz.Change
		refused bool
	}{
		"the founder's record without the role":      {change: authz.Change{Principals: principals{"operator": none}}, refused: true},
		"another is operator":                        {etcd: principals{"ada": operator}, change: authz.Change{Principals: principals{"operator": none}}},
		"the other is confined":                      {etcd: principals{"ada": {Roles: []string{"operator"}, Tenant: "shop"}}, change: authz.Change{Principals: principals{"operator": none}}, refused: true},
		"nobody can be called as the other":          {etcd: principals{"ada lovelace": operator, "agent:n1": operator}, change: authz.Change{Principals: principals{"operator": none}}, refused: true},
		"the other is the file's":                    {file: principals{"ada": operator}, change: authz.Change{Principals: principals{"operator": none}}},
		"the file overrules the change":              {file: principals{"operator": operator}, change: authz.Change{Principals: principals{"operator": none}}},
		"the founder is confined":                    {change: authz.Change{Principals: principals{"operator": {Roles: []string{"operator"}, Tenant: "shop"}}}, refused: true},
		"the last one is deleted":                    {etcd: principals{"operator": none, "ada": operator}, change: authz.Change{Principals: principals{"ada": nil}}, refused: true},
		"the founder's record is deleted":            {etcd: principals{"operator": none, "ada": operator}, change: authz.Change{Principals: principals{"operator": nil}}},
		"the role loses one permission":              {change: authz.Change{Roles: roles{"operator": {Permissions: strings.Fields("node:* migration:* storage:* vm:*")}}}, refused: true},
		"the role is widened":                        {change: authz.Change{Roles: roles{"operator": {Permissions: append(newWords().builtin["operator"], "x:*")}}}},
		"the role is given back":                     {etcd: principals{"operator": none, "ada": {Permissions: newWords().builtin["operator"]}}, roles: roles{"operator": {}}, change: authz.Change{Roles: roles{"operator": nil}}},
		"all permissions by another role":            {etcd: principals{"ada": {Roles: []string{"root"}}}, roles: roles{"root": {Permissions: newWords().builtin["operator"]}}, change: authz.Change{Principals: principals{"operator": none}}},
		"that role goes":                             {etcd: principals{"operator": none, "ada": {Roles: []string{"root"}}}, roles: roles{"root": {Permissions: newWords().builtin["operator"]}}, change: authz.Change{Roles: roles{"root": nil}}, refused: true},
		"there was none before":                      {etcd: principals{"operator": none}, change: authz.Change{Principals: principals{"bob": none}}},
		"an unrelated change":                        {change: authz.Change{Principals: principals{"bob": none}, Roles: roles{"viewer": {}}}},
		"both at once: one comes, the other goes":    {change: authz.Change{Principals: principals{"operator": none, "ada": operator}}},
		"a new operator by a role that goes as well": {change: authz.Change{Principals: principals{"operator": {Roles: []string{"root"}}}, Roles: roles{"root": nil}}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := edit(cluster.Empty(), func(d *cluster.Draft) {
				for name, p := range c.etcd {
					d.Principals.Put(name, p, 1)
				}
				for name, r := range c.roles {
					d.Roles.Put(name, r, 1)
				}
			})
			a := authz.New(authz.Config{Founders: []string{"operator"}, File: &fileOf{policy: &accessfile.Policy{Principals: c.file}}})
			err := a.LeavesOperator(s, c.change)
			if (code(err) == "NO_OPERATOR_LEFT") != c.refused || err != nil && !errdefs.Is(err, errdefs.FailedPrecondition) {
				t.Errorf("got %v, refused should be %v", err, c.refused)
			}
		})
	}
}

func TestAcceptsFile(t *testing.T) {
	file := &fileOf{policy: &accessfile.Policy{Principals: map[string]*storev1.Principal{"ada": {Roles: []string{"operator"}}}}}
	s := edit(cluster.Empty(), func(d *cluster.Draft) { d.Principals.Put("operator", &storev1.Principal{}, 1) })
	a := authz.New(authz.Config{Founders: []string{"operator"}, File: file})
	if err := a.AcceptsFile(s, &accessfile.Policy{}); code(err) != "NO_OPERATOR_LEFT" {
		t.Errorf("the file without the last operator: %v", err)
	}
	if err := a.AcceptsFile(s, &accessfile.Policy{Principals: map[string]*storev1.Principal{"bob": {Roles: []string{"operator"}}}}); err != nil {
		t.Errorf("the file with another operator: %v", err)
	}
}
