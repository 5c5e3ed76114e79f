package cluster_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

func TestAScopeHasWhatIsItsTenants(t *testing.T) {
	s := apply(t, cluster.Empty(), `
		vm u1 db n1 acme
		vm u2 db n1 globex
		vm u3 db n2 globex
		vm u4 u2 n2 acme
		vm u5 db n1
		op op-1 running acme
		op op-2 running globex
		op op-3 running`)
	d := s.Draft()
	d.Plans.Put("plan-1", &storev1.Plan{Id: "plan-1", Tenant: "acme"}, 1)
	d.Plans.Put("plan-2", &storev1.Plan{Id: "plan-2", Tenant: "globex"}, 1)
	d.Plans.Put("plan-3", &storev1.Plan{Id: "plan-3"}, 1)
	d.InUse.Put("vm/u1", "op-1", 1)
	d.InUse.Put("vm/u4", "op-2", 1)
	s = d.Snapshot(s.Revision + 1)
	for _, c := range []struct{ tenant, vms, db, u2, on, operations, plans, holders string }{
		{"", "[u1 u2 u3 u4 u5]", "[u1 u2 u3 u5]", "[u2]", "[u1 u2 u5]", "[op-1 op-2 op-3]", "[plan-1 plan-2 plan-3]", "op-1 op-2"},
		{"acme", "[u1 u4]", "[u1]", "[u4]", "[u1]", "[op-1]", "[plan-1]", "op-1 "},
		{"globex", "[u2 u3]", "[u2 u3]", "[u2]", "[u2]", "[op-2]", "[plan-2]", " op-2"},
		{"initech", "[]", "[]", "[]", "[]", "[]", "[]", " "},
	} {
		scope := s.Within(c.tenant)
		first, held := scope.Holder("vm/u1")
		second, heldToo := scope.Holder("vm/u4")
		if _, held := scope.Holder("vm/u2"); held {
			t.Error("nobody holds u2")
		}
		var plans []string
		for p := range scope.Plans() {
			plans = append(plans, p.Value.GetId())
		}
		got := []string{
			sorted(ids(slices.Collect(scope.VMs()))), fmt.Sprint(scope.FindVM("db")), fmt.Sprint(scope.FindVM("u2")), sorted(ids(scope.VMsOn("n1"))),
			sorted(ids(slices.Collect(scope.Operations()))), sorted(plans), first + " " + second,
		}
		want := []string{c.vms, c.db, c.u2, c.on, c.operations, c.plans, c.holders}
		if !slices.Equal(got, want) || !held || !heldToo {
			t.Errorf("tenant %q has %q\nwant %q", c.tenant, got, want)
		}
		each(t, s, scope)
	}
}

func sorted(list []string) string { return fmt.Sprint(slices.Sorted(slices.Values(list))) }

// each asks for every thing by its id: there is what belongs to the tenant.
func each(t *testing.T, s *cluster.Snapshot, scope cluster.Scope) {
	t.Helper()
	is := func(tenant string) bool { return !scope.Confined() || tenant == scope.Tenant() }
	for id, entry := range s.VMs {
		if got, ok := scope.VM(id); ok != is(cluster.TenantOf(entry.Value)) || ok != (got.Value == entry.Value) {
			t.Errorf("VM %s for %q: %v, %v", id, scope.Tenant(), got, ok)
		}
	}
	for id, entry := range s.Operations {
		if got, ok := scope.Operation(id); ok != is(entry.Value.GetTenant()) || ok != (got.Value == entry.Value) {
			t.Errorf("operation %s for %q: %v, %v", id, scope.Tenant(), got, ok)
		}
	}
	for id, entry := range s.Plans {
		if got, ok := scope.Plan(id); ok != is(entry.Value.GetTenant()) || ok != (got.Value == entry.Value) {
			t.Errorf("plan %s for %q: %v, %v", id, scope.Tenant(), got, ok)
		}
	}
	if _, ok := scope.VM("none"); ok {
		t.Error("there is no VM none")
	}
}

func TestAPolicyThatCannotBeReadIsNobodys(t *testing.T) {
	if got := cluster.TenantOf(&storev1.VM{Policy: []byte{0xff}}); got != "" {
		t.Errorf("it is %q's", got)
	}
}

func TestTenantOfStorage(t *testing.T) {
	tenants := map[string]*storev1.Tenant{}
	own := func(tenant string, storage ...*storev1.TenantStorage) {
		tenants[tenant] = &storev1.Tenant{Storage: storage}
	}
	own("acme", &storev1.TenantStorage{Backend: "zfs", Pool: "tank", Name: "acme"}, &storev1.TenantStorage{Backend: "rbd", Pool: "vms", Name: "acme"})
	own("globex", &storev1.TenantStorage{Backend: "zfs", Pool: "tank", Name: "acme/lent"}, &storev1.TenantStorage{Backend: "rbd", Pool: "globex"},
		&storev1.TenantStorage{Backend: "zfs", Pool: "both"})
	own("initech", &storev1.TenantStorage{Backend: "zfs", Pool: "both"})
	for _, c := range []struct{ backend, pool, name, want string }{
		{"zfs", "tank", "acme", "acme"},
		{"zfs", "tank", "acme/db", "acme"},
		{"zfs", "tank", "acme/lent", "globex"},
		{"zfs", "tank", "acme/lent/db", "globex"},
		{"zfs", "tank", "acmes", ""},
		{"zfs", "tank", "other", ""},
		{"zfs", "tank", "acme/../other", ""},
		{"zfs", "tank", "acme//db", ""},
		{"zfs", "tank", "", ""},
		{"zfs", "tank/acme", "db", ""},
		{"zfs", "both", "db", ""},
		{"zfs", "vms", "acme/db", ""},
		{"rbd", "vms", "acme/db", "acme"},
		{"rbd", "vms", "acme", ""},
		{"rbd", "globex", "db", "globex"},
		{"rbd", "globex", "ns/db", "globex"},
		{"", "tank", "acme/db", ""},
	} {
		if got := cluster.TenantOfStorage(maps.All(tenants), c.backend, c.pool, c.name); got != c.want {
			t.Errorf("%s %s/%s is %q's, want %q's", c.backend, c.pool, c.name, got, c.want)
		}
	}
}

// To look for another tenant's VM takes what it takes to look for one that does
// not exist.
func BenchmarkLookingForWhatIsAnothers(b *testing.B) {
	d := cluster.Empty().Draft()
	policy := func(tenant string) []byte { return append([]byte{10, byte(len(tenant))}, tenant...) }
	for i := range 50_000 {
		id := fmt.Sprintf("%08d", i)
		d.VMs.Put(id, &storev1.VM{Uuid: id, Name: "vm-" + id, Policy: policy([]string{"acme", "globex"}[i%2])}, 1)
	}
	scope := d.Snapshot(1).Within("acme")
	random := rand.New(rand.NewPCG(1, 2))
	for name, of := range map[string]func(int) string{
		"another's": func(i int) string { return fmt.Sprintf("%08d", i|1) },
		"nobody's":  func(i int) string { return fmt.Sprintf("%08dx", i|1) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if scope.FindVM(of(random.IntN(50_000))) != nil {
					b.Fatal("found")
				}
			}
		})
	}
}
