package planner

import (
	"cmp"
	"slices"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// searchBudget bounds the search for places: how many times a node may be
// judged for a VM.
const searchBudget = 200_000

// search looks for places for more VMs than a first plan found any for.
type search struct {
	world *World
	// budget is what is left of searchBudget.
	budget int
	// path is what is placed now, counts how many VMs of each priority that is.
	path   []placement
	counts []int
	best   []placement
	record []int
	// rank gives the place of a priority in counts.
	rank map[uint32]int
}

// search gives the best plan that it finds, or the first one.
func (w *World) search(movers []*mover, first []placement) []placement {
	s := &search{world: w, budget: searchBudget, best: first, rank: map[uint32]int{}}
	for _, m := range movers { // in order of priority
		if p := m.guest.policy.GetPriority(); len(s.rank) == 0 || !has(s.rank, p) {
			s.rank[p] = len(s.rank)
		}
	}
	movers = s.possible(movers)
	s.counts, s.record = make([]int, len(s.rank)), make([]int, len(s.rank))
	for _, p := range first {
		s.record[s.of(p.mover)]++
	}
	s.step(movers, 0)
	return s.best
}

func has[K comparable, V any](m map[K]V, key K) bool {
	_, ok := m[key]
	return ok
}

func (s *search) of(m *mover) int { return s.rank[m.guest.policy.GetPriority()] }

// step tries all that can become of the first VM of the queue. Deferred is how
// many in a row have had their turn put off.
func (s *search) step(queue []*mover, deferred int) {
	if !s.hopeful(queue) {
		return
	}
	if len(queue) == 0 {
		s.best, s.record = slices.Clone(s.path), slices.Clone(s.counts)
		return
	}
	m, rest := queue[0], queue[1:]
	for _, h := range s.candidates(m) {
		undo := s.world.move(m, h)
		s.path = append(s.path, placement{m, h})
		s.counts[s.of(m)]++
		s.step(rest, 0)
		s.counts[s.of(m)]--
		s.path = s.path[:len(s.path)-1]
		undo()
	}
	if deferred < len(rest) && waitsFor(m, rest) {
		s.step(append(slices.Clone(rest), m), deferred+1)
	}
	s.step(rest, 0) // without it
}

// possible leaves out the VMs that no node takes even now: moves of others only
// take room, unless they are rivals that make way.
func (s *search) possible(movers []*mover) []*mover {
	return slices.DeleteFunc(slices.Clone(movers), func(m *mover) bool {
		return len(s.candidates(m)) == 0 && !waitsFor(m, movers)
	})
}

// hopeful tells whether the budget is not used up and a better plan than the
// best so far is possible.
func (s *search) hopeful(queue []*mover) bool {
	if s.budget <= 0 {
		return false
	}
	most := slices.Clone(s.counts)
	for _, m := range queue {
		most[s.of(m)]++
	}
	return slices.Compare(most, s.record) > 0
}

// candidates gives the nodes that take a VM as things are, those first that it
// leaves least room on: so large VMs that come later find some.
func (s *search) candidates(m *mover) []*host {
	var fit []*host
	for _, h := range s.world.hosts {
		o := objections{terse: true}
		s.world.examine(h, m, &o)
		s.budget--
		if o.count == 0 {
			fit = append(fit, h)
		}
	}
	slices.SortStableFunc(fit, func(a, b *host) int { return cmp.Compare(a.free-a.reserved, b.free-b.reserved) })
	return fit
}

// waitsFor tells whether a VM may find places once one of the others is gone:
// one that it is to be kept apart from by more than a node.
func waitsFor(m *mover, others []*mover) bool {
	return slices.ContainsFunc(m.rivals, func(r rival) bool {
		return r.level > debvisorv1.SpreadLevel_SPREAD_LEVEL_NODE &&
			slices.ContainsFunc(others, func(o *mover) bool { return o.guest == r.guest })
	})
}
