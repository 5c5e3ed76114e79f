package planner

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
)

// small writes the facts of a random cluster of up to 5 nodes, in which much is
// in the way.
func small(r *rand.Rand) string {
	var b strings.Builder
	chance := func(percent int) bool { return r.IntN(100) < percent }
	pick := func(words ...string) string { return words[r.IntN(len(words))] }
	say := func(percent int, format string, args ...any) {
		if chance(percent) {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	nodes := strings.Fields("a b c d e")[:2+r.IntN(4)]
	labels := chance(70)
	for _, id := range nodes {
		total := 8 + r.IntN(24)
		fmt.Fprintf(&b, "node %s %d %.1f machine=m1", id, total, float64(total)*r.Float64())
		say(5, "cordoned")
		say(5, "%s", pick("suspect", "unreachable", "new", "nolibvirt", "nocapacity cordoned"))
		if labels {
			say(90, "rack=%s", pick("1", "2", "3"))
			say(90, "zone=%s", pick("n", "s"))
		}
		say(60, "load=%.2f", r.Float64())
		say(20, "cpus=%d", 1+r.IntN(4))
		say(70, "machine=m2")
		say(70, "net=lan")
		say(50, "qemu=%s", pick("7.2.1", "7.2.9", "8.0.0"))
		say(90, "cpu=%s", pick("h", "k"))
		say(80, "fs=/d:local-%s:%d", id, r.IntN(30))
		say(80, "fs=/san:san:0")
		say(20, "parallel=%d", 1+r.IntN(3))
		say(20, "vms=%d", r.IntN(total))
		say(5, "has=v%d", r.IntN(8))
		b.WriteString("\n")
	}
	count := 1 + r.IntN(8)
	crowd := pick(nodes...)
	for i := range count {
		on := crowd
		if chance(50) {
			on = pick(nodes...)
		}
		fmt.Fprintf(&b, "vm %s %s %d uuid=v%d", pick(fmt.Sprint("n", i), fmt.Sprint("n", i), "same"), on, 1+r.IntN(6), i)
		say(15, "%s", pick("off", "off", "crashed", "paused", "lost", "incoming"))
		say(15, "vcpus=%d", 1+r.IntN(4))
		say(20, "machine=%s", pick("m1", "m2"))
		say(20, "nic=network:lan")
		say(20, "cpu=%s", pick("g", "f"))
		say(30, "disk=file:%s", pick("none", "none", ""))
		say(25, "copy=%s:%d:/d/%d%s", pick("raw", "qcow2", "qcow2", "vmdk"), 1+r.IntN(9), i, pick("", "", ":ro", ":overlay", ":used1:ro"))
		say(20, "copy=raw:1:/san/%d:@san", i)
		say(8, "copy=raw:1:/d/iso%s", pick(":ro", ":ro", ""))
		say(4, "%s", pick("transient", "snapshots=1", "dev=pci", "dir=/shared/x", "dir=/srv", "conflict"))
		say(15, "tenant=t")
		say(35, "anti=%s%s", pick("g", "h"), pick("", "", ":rack", ":zone"))
		say(10, "anti=h")
		say(25, "with=%s", pick("p", "q"))
		say(40, "prio=%d", r.IntN(3))
		b.WriteString("\n")
	}
	for i := range r.IntN(3) {
		fmt.Fprintf(&b, "op o%d v%d %s", i, i, pick(nodes...)) // of different VMs: one operation at a time on each
		if i >= count {
			b.WriteString(" ended")
		}
		say(30, "ran")
		b.WriteString("\n")
	}
	b.WriteString("cpu g h yes\ncpu g k no\ncpu f h yes")
	return b.String()
}

// checkAll holds the planner against the model, for one random cluster.
func checkAll(t testing.TB, seed1, seed2 uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed1, seed2))
	facts := small(r)
	s, known := read(t, facts)
	w := NewWorld(s, known)
	before := fmt.Sprintf("%+v", state(w))
	for _, id := range slices.Sorted(maps.Keys(s.VMs)) {
		checkPlan(t, w, newModel(t, s, known), id, r.IntN(2) == 0)
	}
	for _, id := range slices.Sorted(maps.Keys(s.Nodes)) {
		checkEvacuation(t, w, s, known, EvacuationRequest{Node: id, AllowDowntime: r.IntN(2) == 0, Parallel: r.IntN(3)})
	}
	checkRebalance(t, w, s, known, r.IntN(3))
	if after := fmt.Sprintf("%+v", state(w)); after != before {
		t.Errorf("planning changed the world from\n%s\nto\n%s", before, after)
	}
	if t.Failed() {
		t.Fatalf("seeds %d and %d:\n%s", seed1, seed2, facts)
	}
}

// state is what of a world plans change while they are made.
func state(w *World) (out []any) {
	for _, h := range w.hosts {
		out = append(out, h.id, h.reserved, h.dormant, h.load)
	}
	for _, g := range w.list {
		out = append(out, g.uuid(), g.at.id, len(g.coming))
	}
	for _, key := range slices.Sorted(maps.Keys(w.claimed)) {
		if w.claimed[key] > 0 {
			out = append(out, key, w.claimed[key])
		}
	}
	return out
}

// One VM: the same nodes are allowed, and the same one is the best.
func checkPlan(t testing.TB, w *World, m *model, id string, downtime bool) {
	t.Helper()
	result := w.Plan(Request{VM: id, AllowDowntime: downtime})
	v := m.vms[id]
	stays, _ := m.stays(v, downtime)
	if (stays == "") != (len(result.Reasons) == 0) {
		t.Errorf("%s (downtime %v): %v, brute force: %q", id, downtime, result.Reasons, stays)
		return
	}
	if stays != "" {
		return
	}
	best, bestScore, bestOffline := "", math.Inf(-1), true
	for _, node := range slices.Sorted(maps.Keys(m.nodes)) {
		why, offline := m.refuses(v, node, downtime)
		at := slices.IndexFunc(result.Nodes, func(v Verdict) bool { return v.Node == node })
		if verdict := result.Nodes[at]; verdict.Allowed != (why == "") {
			t.Errorf("%s to %s: %v, brute force: %q", id, node, verdict.Reasons, why)
		}
		if why != "" {
			continue
		}
		score := m.score(v, node)
		if got := result.Nodes[at].Score; math.Abs(got-score) > 1e-6 {
			t.Errorf("%s to %s: score %g, brute force: %g", id, node, got, score)
		}
		if better := bestOffline && !offline || bestOffline == offline && score > bestScore+1e-9; best == "" || better {
			best, bestScore, bestOffline = node, score, offline
		}
	}
	if result.Target != best {
		t.Errorf("%s goes to %q, brute force: %q", id, result.Target, best)
	}
}

// An evacuation: no rule is broken on the way, and as many VMs of each priority
// get a place as with any order and any targets.
func checkEvacuation(t testing.TB, w *World, s *cluster.Snapshot, known comparisons, r EvacuationRequest) {
	t.Helper()
	plan := w.Evacuate(r)
	m := newModel(t, s, known)
	var leaving []*vm
	for _, id := range slices.Sorted(maps.Keys(m.vms)) {
		if m.vms[id].home == r.Node {
			leaving = append(leaving, m.vms[id])
		}
	}
	if len(plan.Moves)+len(plan.Blocked) != len(leaving) {
		t.Errorf("of %d VMs on %s, %d move and %d are blocked", len(leaving), r.Node, len(plan.Moves), len(plan.Blocked))
	}
	for _, b := range plan.Blocked {
		if len(b.Reasons) == 0 {
			t.Errorf("%s is blocked without a word", b.VM)
		}
	}
	m.follow(t, plan.Moves, r.AllowDowntime, r.Parallel)
	got := map[uint32]int{}
	for _, move := range plan.Moves {
		got[m.vms[move.VM].policy.GetPriority()]++
	}
	if want := mostMoved(newModel(t, s, known), r, leaving); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("from %s move (by priority) %v, brute force: %v; blocked %v", r.Node, got, want, plan.Blocked)
	}
}

// mostMoved tries every order and every target of the VMs that may move at all,
// and gives how many of each priority get a place at best.
func mostMoved(m *model, r EvacuationRequest, leaving []*vm) map[uint32]int {
	leaving = slices.DeleteFunc(slices.Clone(leaving), func(v *vm) bool {
		why, _ := m.stays(m.vms[v.rec.GetUuid()], r.AllowDowntime)
		return why != ""
	})
	seen := map[string]bool{}
	best, counts := map[uint32]int{}, map[uint32]int{}
	var try func()
	try = func() {
		key := m.key()
		if seen[key] {
			return
		}
		seen[key] = true
		for p := range 4 {
			if a, b := counts[uint32(3-p)], best[uint32(3-p)]; a != b {
				if a > b {
					best = maps.Clone(counts)
				}
				break
			}
		}
		for _, name := range leaving {
			v := m.vms[name.rec.GetUuid()]
			if v.home != r.Node {
				continue
			}
			for id := range m.nodes {
				if why, _ := m.refuses(v, id, r.AllowDowntime); why != "" {
					continue
				}
				taken, filled := maps.Clone(m.taken), maps.Clone(m.filled)
				m.depart(v, id, false)
				m.arrive(v, id)
				counts[v.policy.GetPriority()]++
				try()
				if counts[v.policy.GetPriority()]--; counts[v.policy.GetPriority()] == 0 {
					delete(counts, v.policy.GetPriority())
				}
				v.home, m.taken, m.filled = r.Node, taken, filled
			}
		}
	}
	try()
	return best
}

// A rebalance: no rule is broken on the way, no VM stands still or moves twice,
// the figures are true, each move is the one that helps most, and the last is
// followed by none that would be worth it.
func checkRebalance(t testing.TB, w *World, s *cluster.Snapshot, known comparisons, most int) {
	t.Helper()
	plan := w.Rebalance(RebalanceRequest{MaxMoves: most})
	m := newModel(t, s, known)
	if got, want := plan.Before, m.imbalance(nil); math.Abs(got-want) > 1e-9 {
		t.Errorf("imbalance before is %g, brute force: %g", got, want)
	}
	moved := map[string]bool{} // or stays from the beginning
	for id, v := range m.vms {
		if why, _ := m.stays(v, false); why != "" {
			moved[id] = true
		}
	}
	for _, move := range plan.Moves {
		if moved[move.VM] || move.Method == offline {
			t.Errorf("%s moves twice, or shut down", move.VM)
		}
		moved[move.VM] = true
	}
	m.follow(t, plan.Moves, false, 0)
	if got, want := plan.After, m.imbalance(nil); math.Abs(got-want) > 1e-9 {
		t.Errorf("imbalance after is %g, brute force: %g", got, want)
	}
	if len(plan.Moves) > 0 && plan.After >= plan.Before {
		t.Errorf("%d moves bring the imbalance from %g to %g", len(plan.Moves), plan.Before, plan.After)
	}
	if most == 0 && len(plan.Moves) < 20 {
		if gain, what := bestGain(m, moved); gain > 0.001+1e-9 {
			t.Errorf("%s would still gain %g", what, gain)
		}
	}
	one, fresh := w.Rebalance(RebalanceRequest{MaxMoves: 1}), newModel(t, s, known)
	want, what := bestGain(fresh, nil)
	if len(one.Moves) == 0 {
		if want > 0.001+1e-9 {
			t.Errorf("nothing moves, brute force: %s gains %g", what, want)
		}
		return
	}
	if got := gainOf(fresh, fresh.vms[one.Moves[0].VM], one.Moves[0].Target); math.Abs(got-want) > 1e-9 {
		t.Errorf("%+v gains %g, brute force: %s gains %g", one.Moves[0], got, what, want)
	}
}

// bestGain tries every move that a rebalance may make.
func bestGain(m *model, moved map[string]bool) (best float64, what string) {
	for id, v := range m.vms {
		if why, live := m.stays(v, false); why != "" || !live || moved[id] || !m.balanced(v.home, nil) {
			continue
		}
		for to := range m.nodes {
			why, offline := m.refuses(v, to, false)
			if why != "" || offline || m.friends(v, to) < m.friends(v, v.home) {
				continue
			}
			if g := gainOf(m, v, to); g > best {
				best, what = g, id+" to "+to
			}
		}
	}
	return best, what
}

func (m *model) friends(v *vm, on string) (n int) {
	for _, other := range m.vms {
		if other == v || other.policy.GetTenant() != v.policy.GetTenant() || !other.on(on) {
			continue
		}
		for _, g := range v.policy.GetAffinityGroups() {
			if slices.Contains(other.policy.GetAffinityGroups(), g) {
				n++
			}
		}
	}
	return n
}

// gainOf is what a move takes off the sum of squares about the mean before it.
func gainOf(m *model, v *vm, to string) float64 {
	share := func(id string) float64 {
		var used uint64
		for _, o := range m.vms {
			if !o.off() && (o.also[id] || o.home == id && len(o.also) == 0) {
				used += o.dom.GetMemoryBytes()
			}
		}
		return float64(used) / float64(m.nodes[id].capacity.GetMemoryBytes())
	}
	var mean, n float64
	for id := range m.nodes {
		if m.balanced(id, nil) {
			mean, n = mean+share(id), n+1
		}
	}
	mean /= n
	from := v.home
	squares := func() float64 { return math.Pow(share(from)-mean, 2) + math.Pow(share(to)-mean, 2) }
	before := squares()
	v.home = to
	after := squares()
	v.home = from
	return before - after
}

func TestPlansKeepTheRules(t *testing.T) {
	for seed := range uint64(1500) {
		checkAll(t, 1, seed)
	}
}

func FuzzPlansKeepTheRules(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { checkAll(t, a, b) })
}
