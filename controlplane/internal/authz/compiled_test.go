package authz_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/identity"
)

// fileOf is an access file that a test changes at will.
type fileOf struct{ policy *accessfile.Policy }

func (f *fileOf) Current() *accessfile.Policy { return f.policy }

// words is what the table of methods says, read once.
type words struct {
	methods map[string]authz.Rule
	// tenants are the permissions that a confined principal can use: some
	// method that asks for it is not for the whole cluster only.
	tenants map[string]bool
	// builtin are the built-in roles by name, covered the answers of covers that
	// are often wanted: granted, then wanted.
	builtin map[string][]string
	covered map[[2]string]bool
}

func newWords() words {
	w := words{
		methods: authz.Methods(), tenants: map[string]bool{authz.ListSnapshots: true},
		builtin: map[string][]string{}, covered: map[[2]string]bool{},
	}
	for _, rule := range w.methods {
		if rule.Scope != authz.ScopeCluster {
			w.tenants[rule.Permission] = true
		}
	}
	for _, role := range strings.Fields("operator developer monitor viewer") {
		w.builtin[role] = w.contract(role)
	}
	return w
}

// world is one access policy, in the plainest form.
type world struct {
	words
	principals, filePrincipals map[string]*storev1.Principal
	roles, fileRoles           map[string]*storev1.Role
}

// contract is the table of built-in roles as api-v1.md and the design have it.
func (w words) contract(role string) []string {
	added := strings.Fields("vm operation token replica cluster reflection key certificate role principal tenant audit ca event metrics")
	switch role {
	case "operator":
		all := []string{"node:*", "migration:*", "storage:*"}
		for _, resource := range added {
			all = append(all, resource+":*")
		}
		return all
	case "developer":
		return strings.Fields("node:list storage:snapshot:create storage:snapshot:list storage:clone:*")
	case "monitor":
		return strings.Fields("node:list node:heartbeat")
	case "viewer":
		viewer := strings.Fields("node:list storage:snapshot:list migration:plan node:get metrics:get " +
			"storage:list storage:image:list migration:lost:list storage:retention:list storage:replication:list storage:replication:status")
		for _, rule := range w.methods {
			resource, verb, _ := strings.Cut(rule.Permission, ":")
			if slices.Contains(added, resource) && (verb == "list" || verb == "get") {
				viewer = append(viewer, rule.Permission)
			}
		}
		return viewer
	}
	return nil
}

// naive decides as the contract's words say, one at a time.
func (w world) naive(caller *authn.Caller, permission string) bool {
	record, ok := w.filePrincipals[caller.Name]
	if !ok {
		record, ok = w.principals[caller.Name]
	}
	if !ok && caller.Name == "founder" && caller.Kind == authn.Certificate {
		record = &storev1.Principal{Roles: []string{"operator"}}
	}
	granted := append(slices.Clone(caller.Permissions), record.GetPermissions()...)
	for _, name := range record.GetRoles() {
		switch {
		case w.fileRoles[name] != nil:
			granted = append(granted, w.fileRoles[name].GetPermissions()...)
		case w.roles[name] != nil:
			granted = append(granted, w.roles[name].GetPermissions()...)
		default:
			granted = append(granted, w.builtin[name]...)
		}
	}
	if record.GetTenant() != "" && !w.tenants[permission] {
		return false
	}
	return slices.ContainsFunc(granted, func(g string) bool { return w.covered[[2]string{g, permission}] })
}

// covers compares word by word: "*" as the last of several stands for one word
// or more.
func covers(granted, wanted []string) bool {
	for i, word := range granted {
		if word == "*" && i > 0 && i == len(granted)-1 {
			return len(wanted) > i && strings.Join(wanted[i:], ":") != ""
		}
		if i >= len(wanted) || wanted[i] != word {
			return false
		}
	}
	return len(granted) == len(wanted)
}

// dice makes random policies and questions.
type dice struct {
	*rand.Rand
	words
	asked, granted, names []string
}

func newDice(seed uint64) *dice {
	d := &dice{Rand: rand.New(rand.NewPCG(seed, 4)), words: newWords(), names: strings.Fields("operator developer monitor viewer mover a b c founder stranger")}
	for _, rule := range d.methods {
		if rule.Permission != "" {
			d.asked = append(d.asked, rule.Permission)
		}
	}
	d.asked = append(d.asked, authz.JoinReplica, authz.EvacuateNode, authz.ListSnapshots)
	slices.Sort(d.asked)
	d.asked = slices.Compact(d.asked)
	for _, p := range d.asked {
		d.granted = append(d.granted, p)
		words := strings.Split(p, ":")
		for i := 1; i <= len(words); i++ {
			d.granted = append(d.granted, strings.Join(words[:i], ":")+":*")
		}
	}
	// What covers nothing, and what nobody asks for.
	d.granted = append(d.granted, strings.Fields("* :* ** node: node:** storage stor* storage:snapshot: node:*:* backup:run backup:* x")...)
	d.granted = append(d.granted, "")
	d.asked = append(d.asked, "backup:run", "backup:job:run", "x", "node", "node:list:all", "storage:snapshot")
	for _, g := range d.granted {
		for _, p := range d.asked {
			d.covered[[2]string{g, p}] = covers(strings.Split(g, ":"), strings.Split(p, ":"))
		}
	}
	return d
}

func (d *dice) one(from []string) string { return from[d.IntN(len(from))] }

func (d *dice) some(from []string, most int) []string {
	all := make([]string, d.IntN(most+1))
	for i := range all {
		all[i] = d.one(from)
	}
	return all
}

func (d *dice) world() world {
	w := world{
		words: d.words, principals: map[string]*storev1.Principal{}, filePrincipals: map[string]*storev1.Principal{},
		roles: map[string]*storev1.Role{}, fileRoles: map[string]*storev1.Role{},
	}
	for _, name := range d.names[:9] {
		for _, principals := range []map[string]*storev1.Principal{w.principals, w.principals, w.filePrincipals} {
			if d.IntN(3) == 0 {
				p := &storev1.Principal{Roles: d.some(d.names, 3), Permissions: d.some(d.granted, 4)}
				if d.IntN(3) == 0 {
					p.Tenant = "shop"
				}
				principals[name] = p
			}
		}
		for i, roles := range []map[string]*storev1.Role{w.roles, w.fileRoles} {
			if d.IntN(3+3*i) == 0 {
				roles[name] = &storev1.Role{Permissions: d.some(d.granted, 6)}
			}
		}
	}
	return w
}

func (d *dice) caller() *authn.Caller {
	name := d.one(d.names)
	c := &authn.Caller{Name: name, Identity: identity.Identity{Principal: &identity.Principal{Name: name}}, Kind: authn.Kind(d.IntN(3))}
	if c.Kind == authn.JWT && d.IntN(2) == 0 {
		c.Permissions = d.some(d.granted, 3)
	}
	return c
}

// snapshot brings the world into force, in the next revision and in a new file.
func (w world) snapshot(s *cluster.Snapshot, revision int64) (*cluster.Snapshot, *accessfile.Policy) {
	d := s.Draft()
	for name := range s.Principals {
		d.Principals.Delete(name)
	}
	for name := range s.Roles {
		d.Roles.Delete(name)
	}
	for name, p := range w.principals {
		d.Principals.Put(name, p, revision)
	}
	for name, r := range w.roles {
		d.Roles.Put(name, r, revision)
	}
	return d.Snapshot(revision), &accessfile.Policy{Version: fmt.Sprint(revision), Principals: w.filePrincipals, Roles: w.fileRoles}
}

// TestCompiledEqualsNaive asks a million questions of a thousand policies, all
// of one authorizer: each policy is in force with its snapshot and at once.
func TestCompiledEqualsNaive(t *testing.T) {
	const policies, questions = 1000, 1000
	d := newDice(11)
	file := &fileOf{}
	a := authz.New(authz.Config{Founders: []string{"founder"}, File: file})
	methods := slices.Sorted(maps.Keys(d.methods))
	s := cluster.Empty()
	allowed := 0
	for revision := int64(1); revision <= policies; revision++ {
		w := d.world()
		s, file.policy = w.snapshot(s, revision)
		for i := range questions {
			caller, permission := d.caller(), d.one(d.asked)
			want := w.naive(caller, permission)
			if want {
				allowed++
			}
			if got := a.Grant(s, caller).Has(permission); got != want {
				t.Fatalf("policy %d: %+v has %s: %v, the naive evaluator says %v\n%+v", revision, caller, permission, got, want, w)
			}
			if i%8 != 0 {
				continue
			}
			if got := a.Require(s, caller, permission) == nil; got != want {
				t.Fatalf("policy %d: %+v is let through for %s: %v, want %v", revision, caller, permission, got, want)
			}
			if got := a.ExplainCaller(s, caller, permission); got.Allowed != want || got.Reason == "" || want != (got.Granted != "") && got.Tenant == "" {
				t.Fatalf("policy %d: %+v, %s: explained as %+v, want %v", revision, caller, permission, got, want)
			}
			method := d.one(methods)
			rule := d.methods[method]
			if rule.Permission == "" {
				continue
			}
			may := w.naive(caller, rule.Permission) && (rule.Scope != authz.ScopeCluster || a.Grant(s, caller).Tenant() == "")
			if err := a.Authorize(s, caller, method, time.Time{}); (err == nil) != may {
				t.Fatalf("policy %d: %+v calls %s: %v, want %v", revision, caller, method, err, may)
			}
		}
	}
	if share := float64(allowed) / (policies * questions); share < 0.1 || share > 0.9 {
		t.Errorf("%.2f of the questions were answered by yes: they ask too little", share)
	}
}

// TestCompileWhileSnapshotsChange asks of several policies at once, each with a
// snapshot of its own: nobody may get another's answer.
func TestCompileWhileSnapshotsChange(t *testing.T) {
	d := newDice(12)
	file := &fileOf{policy: accessfile.None().Current()}
	a := authz.New(authz.Config{Founders: []string{"founder"}, File: file})
	type version struct {
		world
		s *cluster.Snapshot
	}
	var versions []version
	s := cluster.Empty()
	for revision := int64(1); revision <= 20; revision++ {
		w := d.world()
		w.filePrincipals, w.fileRoles = nil, nil
		s, _ = w.snapshot(s, revision)
		versions = append(versions, version{world: w, s: s})
	}
	var group sync.WaitGroup
	for worker := range uint64(8) {
		group.Go(func() {
			d := newDice(worker)
			for i := range 4000 {
				// Mostly the same as the others ask about, as in life.
				v := versions[(i/200+d.IntN(2))%len(versions)]
				caller, permission := d.caller(), d.one(d.asked)
				if got, want := a.Grant(v.s, caller).Has(permission), v.naive(caller, permission); got != want {
					t.Errorf("revision %d: %+v has %s: %v, want %v", v.s.Revision, caller, permission, got, want)
					return
				}
			}
		})
	}
	group.Wait()
}

// TestBuiltInRoles holds every row of the table against the contract's table of
// roles, with and without a tenant.
func TestBuiltInRoles(t *testing.T) {
	d := cluster.Empty().Draft()
	w := world{words: newDice(0).words, principals: map[string]*storev1.Principal{}}
	for _, role := range strings.Fields("operator developer monitor viewer") {
		for _, tenant := range []string{"", "shop"} {
			w.principals[role+tenant] = &storev1.Principal{Roles: []string{role}, Tenant: tenant}
			d.Principals.Put(role+tenant, w.principals[role+tenant], 1)
		}
	}
	s := d.Snapshot(1)
	a := authz.New(authz.Config{})
	for method, rule := range authz.Methods() {
		for name, record := range w.principals {
			caller := principal(name)
			want := rule.Open || rule.Anyone || rule.Permission != "" && w.naive(caller, rule.Permission)
			if record.GetTenant() != "" && rule.Scope == authz.ScopeCluster {
				want = false
			}
			if err := a.Authorize(s, caller, method, time.Now()); (err == nil) != want {
				t.Errorf("%s calls %s: %v, want %v", name, method, err, want)
			}
			if name == "operator" && rule.Permission != "" && !want {
				t.Errorf("the contract gives operator nothing that covers %s", rule.Permission)
			}
		}
	}
}
