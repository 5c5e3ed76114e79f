package planner

import (
	"cmp"
	"slices"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// MovePlan is an ordered list of moves.
type MovePlan struct {
	// Moves are in the order in which they begin: each is valid once those of
	// the waves before it are done, whatever those of its own wave do.
	Moves []Move
	// Blocked are the VMs that should move and cannot.
	Blocked []Blocked
	// Before and After are the nodes' imbalance: the standard deviation of the
	// share of memory that their VMs take, 0 to 1, of the nodes that can take
	// VMs.
	Before, After float64
	// Estimate is of the whole plan: duration of all waves, bytes of all moves,
	// the longest downtime of any VM.
	Estimate *debvisorv1.MoveEstimate
	// Questions are what Facts did not know.
	Questions []Question
}

// Move is one move of a plan.
type Move struct {
	// VM is the UUID.
	VM, Name, Source, Target string
	Method                   debvisorv1.MoveMethod
	Estimate                 *debvisorv1.MoveEstimate
	// Wave is from 0. Moves of one wave may run at once.
	Wave int
}

// Blocked is a VM that should move and cannot.
type Blocked struct {
	// VM is the UUID.
	VM, Name string
	// Reasons are those against the VM, then one for each code that speaks
	// against nodes, which it names.
	Reasons []Reason
}

// planned is a placement as others see it.
func (w *World) planned(p placement, source *host) Move {
	// The method depends on where the VM comes from.
	at := p.mover.guest.at
	p.mover.guest.at = source
	defer func() { p.mover.guest.at = at }()
	method := p.mover.method(p.to, &objections{})
	estimate, _ := w.estimate(p.mover, p.to, method)
	return Move{
		VM: p.mover.guest.uuid(), Name: p.mover.guest.name(), Source: source.id, Target: p.to.id,
		Method: method, Estimate: estimate,
	}
}

// blocked tells why a VM has no place, as things are once the others have moved.
func (w *World) blocked(m *mover) Blocked {
	b := Blocked{VM: m.guest.uuid(), Name: m.guest.name(), Reasons: slices.Clone(m.reasons)}
	var verdicts []Verdict
	for _, h := range w.hosts {
		if h == m.guest.at {
			continue
		}
		var o objections
		w.examine(h, m, &o)
		verdicts = append(verdicts, Verdict{Node: h.id, Reasons: o.reasons})
	}
	if len(verdicts) == 0 {
		b.Reasons = append(b.Reasons, Reason{NodeNotFound, "there is no other node"})
	}
	b.Reasons = append(b.Reasons, grouped(verdicts)...)
	return b
}

// grouped gives one reason for each code against nodes, with the words of the
// first few.
func grouped(verdicts []Verdict) []Reason {
	const most = 3
	var codes []string
	said := map[string][]string{}
	for _, v := range verdicts {
		for _, r := range v.Reasons {
			if !has(said, r.Code) {
				codes = append(codes, r.Code)
			}
			said[r.Code] = append(said[r.Code], v.Node+": "+r.Message)
		}
	}
	var reasons []Reason
	for _, code := range codes {
		reasons = append(reasons, Reason{code, few(said[code], most, "; ")})
	}
	return reasons
}

// arrange puts the moves of a plan, which are valid one after another, in
// waves. A move is in a later wave than one that makes way for it; otherwise
// moves only add to what their targets hold, so that neither their order nor
// their being at work at once matters.
func (w *World) arrange(plan *MovePlan, placed []placement, parallel int) {
	type slot struct {
		node string
		wave int
	}
	from, to := map[slot]int{}, map[slot]int{}
	limit := func(node string) int {
		n := w.byID[node].parallel()
		if parallel > 0 {
			n = min(n, parallel)
		}
		return n
	}
	for i := range plan.Moves {
		m := &plan.Moves[i]
		for j, earlier := range plan.Moves[:i] {
			if earlier.Wave >= m.Wave && w.makesWay(placed[j].mover, earlier, placed[i].mover, *m) {
				m.Wave = earlier.Wave + 1
			}
		}
		for from[slot{m.Source, m.Wave}] >= limit(m.Source) || to[slot{m.Target, m.Wave}] >= limit(m.Target) {
			m.Wave++
		}
		from[slot{m.Source, m.Wave}]++
		to[slot{m.Target, m.Wave}]++
	}
	slices.SortStableFunc(plan.Moves, func(a, b Move) int { return cmp.Compare(a.Wave, b.Wave) })
	plan.Estimate = whole(plan.Moves)
}

// makesWay tells whether a move may be possible only because of an earlier one:
// that one leaves the node that this one goes to, or the rack or zone of it
// that the two VMs must not share.
func (w *World) makesWay(first *mover, earlier Move, second *mover, later Move) bool {
	left, target := w.byID[earlier.Source], w.byID[later.Target]
	if left == target {
		return true
	}
	return slices.ContainsFunc(second.rivals, func(r rival) bool {
		return r.guest == first.guest && near(r.level, left, target)
	})
}

// questions joins those of several VMs, each once.
func questions(movers []*mover) []Question {
	var all []Question
	seen := map[pair]bool{}
	for _, m := range movers {
		for _, q := range m.questions {
			if key := (pair{q.Guest, q.Host}); !seen[key] {
				seen[key] = true
				all = append(all, q)
			}
		}
	}
	return all
}
