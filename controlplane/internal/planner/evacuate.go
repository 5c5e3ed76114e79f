package planner

import (
	"cmp"
	"slices"
)

// EvacuationRequest asks for the plan of emptying a node.
type EvacuationRequest struct {
	Node string
	// AllowDowntime lets guests be shut down that cannot move live.
	AllowDowntime bool
	// Parallel bounds the moves at once from one node, and to one; 0: the
	// nodes' own limits, which hold in any case.
	Parallel int
	// Only are the UUIDs of the VMs that are to move; nil: all.
	Only []string
	// Tenant is whose VMs move; empty: all.
	Tenant string
}

// Evacuate plans the moves that empty a node, of VMs that run and of those that
// are shut off. As many VMs as possible of the highest priority get a place,
// then of the next, and so on; each gets the node that is best when its turn
// comes, VMs of higher priority and more memory first. A VM has its turn later
// where it can only go once another is gone; one that something speaks against
// wherever to is blocked. The VMs of other nodes stay where they are.
//
// That no more can be placed is certain on small clusters only: the search for
// a better plan than the first is bounded by searchBudget.
func (w *World) Evacuate(r EvacuationRequest) MovePlan {
	source := w.byID[r.Node]
	plan := MovePlan{Before: w.imbalance(balanced)}
	if source == nil {
		plan.After, plan.Estimate = plan.Before, whole(nil)
		return plan
	}
	all := w.leaving(source, r)
	movers := slices.DeleteFunc(slices.Clone(all), func(m *mover) bool { return len(m.reasons) > 0 })
	placed := w.place(movers)
	back := w.apply(placed)
	for _, p := range placed {
		plan.Moves = append(plan.Moves, w.planned(p, source))
	}
	for _, m := range without(all, placed) {
		plan.Blocked = append(plan.Blocked, w.blocked(m))
	}
	plan.After = w.imbalance(balanced)
	back()
	w.arrange(&plan, placed, r.Parallel)
	plan.Questions = questions(all)
	return plan
}

// leaving gives the VMs that an evacuation is about, the most urgent first.
func (w *World) leaving(source *host, r EvacuationRequest) []*mover {
	var movers []*mover
	for _, g := range source.guests {
		if r.Only != nil && !slices.Contains(r.Only, g.uuid()) || r.Tenant != "" && g.policy.GetTenant() != r.Tenant {
			continue
		}
		movers = append(movers, w.mover(g, Request{VM: g.uuid(), AllowDowntime: r.AllowDowntime, Tenant: r.Tenant}))
	}
	slices.SortStableFunc(movers, func(a, b *mover) int {
		return cmp.Or(
			cmp.Compare(b.guest.policy.GetPriority(), a.guest.policy.GetPriority()),
			yesFirst(a.takes, b.takes),
			cmp.Compare(b.guest.memory, a.guest.memory), cmp.Compare(a.guest.uuid(), b.guest.uuid()),
		)
	})
	return movers
}

// placement is one VM and where it goes.
type placement struct {
	mover *mover
	to    *host
}

// place finds nodes for VMs that leave one, in the order in which they move.
func (w *World) place(movers []*mover) []placement {
	placed := w.greedy(movers)
	if len(placed) < len(movers) {
		return w.search(movers, placed)
	}
	return placed
}

// greedy gives each VM the best node in its turn. Who has none gets another
// turn once others are gone.
func (w *World) greedy(movers []*mover) []placement {
	var placed []placement
	var undo undos
	waiting := slices.Clone(movers)
	for progress := true; progress && len(waiting) > 0; {
		progress = false
		var still []*mover
		for _, m := range waiting {
			to := w.best(m)
			if to == nil {
				still = append(still, m)
				continue
			}
			undo = append(undo, w.move(m, to))
			placed, progress = append(placed, placement{m, to}), true
		}
		waiting = still
	}
	undo.all()
	return placed
}

// best gives the best node for a VM as things are; nil: none takes it.
func (w *World) best(m *mover) *host {
	var top Verdict
	var to *host
	for _, h := range w.hosts {
		o := objections{terse: true}
		method := w.examine(h, m, &o)
		if o.count > 0 {
			continue
		}
		v := Verdict{Node: h.id, Allowed: true, Method: method, Score: total(w.score(h, m))}
		if to == nil || better(v, top) < 0 {
			top, to = v, h
		}
	}
	return to
}

// undos are what takes moves back.
type undos []func()

// all takes back everything, the last first.
func (u undos) all() {
	for i := len(u) - 1; i >= 0; i-- {
		u[i]()
	}
}

// apply makes placements true until the function is called.
func (w *World) apply(placed []placement) (back func()) {
	var undo undos
	for _, p := range placed {
		undo = append(undo, w.move(p.mover, p.to))
	}
	return undo.all
}

// without gives the movers that have no place.
func without(movers []*mover, placed []placement) []*mover {
	return slices.DeleteFunc(slices.Clone(movers), func(m *mover) bool {
		return slices.ContainsFunc(placed, func(p placement) bool { return p.mover == m })
	})
}
