package authz_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/authn"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// check is one call that is let through.
type check struct {
	caller *authn.Caller
	method string
}

// office is an access policy with calls to check by it.
type office struct {
	authz *authz.Authorizer
	s     *cluster.Snapshot
	// few are calls of 500 callers, many those of all there are.
	few, many []check
}

// newOffice makes a policy of so many records: principals with one to three
// roles each, and every third with permissions of its own.
func newOffice(b *testing.B, principals, roles int) *office {
	b.Helper()
	d := newDice(21)
	draft := cluster.Empty().Draft()
	role := func(i int) string { return fmt.Sprintf("role-%d", i) }
	for i := range roles {
		draft.Roles.Put(role(i), &storev1.Role{Permissions: append(d.some(d.granted, 8), "node:list")}, 1)
	}
	names := make([]string, principals)
	for i := range names {
		names[i] = fmt.Sprintf("principal-%d", i)
		p := &storev1.Principal{}
		for range 1 + d.IntN(3) {
			p.Roles = append(p.Roles, role(d.IntN(roles)))
		}
		if i%3 == 0 {
			p.Permissions = d.some(d.granted, 4)
		}
		draft.Principals.Put(names[i], p, 1)
	}
	o := &office{authz: authz.New(authz.Config{}), s: draft.Snapshot(1)}
	methods := slices.Sorted(maps.Keys(d.methods))
	calls := func(of, n int) []check {
		callers := make([]*authn.Caller, of)
		for i, at := range d.Perm(principals)[:of] {
			callers[i] = principal(names[at])
		}
		var found []check
		for len(found) < n {
			c := check{caller: callers[d.IntN(of)], method: d.one(methods)}
			if o.authz.Authorize(o.s, c.caller, c.method, time.Time{}) == nil {
				found = append(found, c)
			}
		}
		return found
	}
	o.few, o.many = calls(500, 4096), calls(principals, 1<<18)
	return o
}

// burst makes checks for a while and gives the time of one, nanoseconds.
func (o *office) burst(b *testing.B, checks []check) float64 {
	const n = 1 << 18
	var now time.Time
	began := time.Now()
	for i := range n {
		c := &checks[i%len(checks)]
		if err := o.authz.Authorize(o.s, c.caller, c.method, now); err != nil {
			b.Fatal(err)
		}
	}
	return float64(time.Since(began).Nanoseconds()) / n
}

func middle(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// BenchmarkRules compares the time of a check with 110,000 records (100,000
// principals, 10,000 roles) with that with 1,000, in turns A B B A, of the same
// number of callers; all-callers is of as many callers as there are principals,
// whose grants no cache holds. integration/bench reads its figures.
func BenchmarkRules(b *testing.B) {
	large, small := newOffice(b, 100_000, 10_000), newOffice(b, 900, 100)
	few := func(o *office) []check { return o.few }
	many := func(o *office) []check { return o.many }
	measure := func(turns int, choose func(*office) []check) (ratio, ns float64) {
		var ratios, times []float64
		for range turns {
			a1 := large.burst(b, choose(large))
			b1 := small.burst(b, choose(small))
			b2 := small.burst(b, choose(small))
			a2 := large.burst(b, choose(large))
			ratios, times = append(ratios, (a1+a2)/(b1+b2)), append(times, (a1+a2)/2)
		}
		return middle(ratios), middle(times)
	}
	for b.Loop() {
		ratio, ns := measure(21, few)
		b.ReportMetric(ratio, "110k/1k")
		b.ReportMetric(ns, "ns/check")
		ratio, ns = measure(7, many)
		b.ReportMetric(ratio, "110k/1k-all-callers")
		b.ReportMetric(ns, "ns/check-all-callers")
	}
}

// BenchmarkCheck is one check by a caller whose grant is compiled.
func BenchmarkCheck(b *testing.B) {
	o := newOffice(b, 900, 100)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c := &o.few[i%len(o.few)]
		i++
		if err := o.authz.Authorize(o.s, c.caller, c.method, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheckToken is one check by a token with ten permissions.
func BenchmarkCheckToken(b *testing.B) {
	o := newOffice(b, 900, 100)
	caller := principal("principal-1")
	caller.Kind, caller.Permissions = authn.JWT, newDice(3).asked[:10]
	b.ReportAllocs()
	for b.Loop() {
		if !o.authz.Grant(o.s, caller).Has(caller.Permissions[9]) {
			b.Fatal("refused")
		}
	}
}

// BenchmarkFirstCheck is the first check after a change of the policy, among
// 110,000 records.
func BenchmarkFirstCheck(b *testing.B) {
	o := newOffice(b, 100_000, 10_000)
	random := rand.New(rand.NewPCG(1, 1))
	s := *o.s
	b.ReportAllocs()
	for b.Loop() {
		s.Access++
		next := s
		c := o.many[random.IntN(len(o.many))]
		if err := o.authz.Authorize(&next, c.caller, c.method, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}
