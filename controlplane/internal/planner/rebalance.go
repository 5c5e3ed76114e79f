package planner

import (
	"cmp"
	"slices"
)

const (
	// defaultMoves is how many moves a rebalance has at most where nobody says.
	defaultMoves = 20
	// leastGain is what a move must take off the sum of the squares of how far
	// the nodes' shares of memory are from their mean, to be worth the trouble:
	// 0.001 is two nodes 10 points apart with a VM of half a point.
	leastGain = 0.001
)

// RebalanceRequest asks for the plan of evening out the nodes.
type RebalanceRequest struct {
	// MaxMoves bounds the plan; 0: 20.
	MaxMoves int
	// Nodes are those that take part; none: all.
	Nodes []string
	// Parallel is as in EvacuationRequest.
	Parallel int
}

// Rebalance plans moves that lower the nodes' imbalance: each time the one that
// lowers it most, until none is left that is worth it. No guest is shut down,
// no VM moves twice, and none leaves the VMs of its affinity groups for a node
// with fewer of them. Nodes that cannot take VMs take no part.
func (w *World) Rebalance(r RebalanceRequest) MovePlan {
	b := &balance{world: w, movers: map[*guest]*mover{}}
	for _, h := range w.hosts {
		if balanced(h) && (len(r.Nodes) == 0 || slices.Contains(r.Nodes, h.id)) {
			b.hosts = append(b.hosts, h)
		}
	}
	takes := func(h *host) bool { return slices.Contains(b.hosts, h) }
	plan := MovePlan{Before: w.imbalance(takes)}
	most := r.MaxMoves
	if most <= 0 {
		most = defaultMoves
	}
	var placed []placement
	var undo undos
	for len(placed) < most {
		p, ok := b.next()
		if !ok {
			break
		}
		plan.Moves = append(plan.Moves, w.planned(p, p.mover.guest.at))
		placed, undo = append(placed, p), append(undo, w.move(p.mover, p.to))
	}
	plan.After = w.imbalance(takes)
	undo.all()
	w.arrange(&plan, placed, r.Parallel)
	plan.Questions = questions(b.asked)
	return plan
}

// balance is a rebalance at work.
type balance struct {
	world *World
	hosts []*host
	mean  float64
	// movers are the VMs that were looked at; nil: it stays.
	movers map[*guest]*mover
	// asked are they in the order in which they were looked at.
	asked []*mover
}

// option is a move that may be worth it.
type option struct {
	guest *guest
	to    *host
	gain  float64
}

// next gives the move that lowers the imbalance most.
func (b *balance) next() (placement, bool) {
	b.mean = 0
	for _, h := range b.hosts {
		b.mean += h.share() / float64(len(b.hosts))
	}
	full := slices.SortedStableFunc(slices.Values(b.hosts), func(x, y *host) int { return cmp.Compare(y.share(), x.share()) })
	var top placement
	gain := leastGain
	for _, from := range full {
		// What is left of from's distance and the emptiest node's cannot be
		// less than nothing.
		if square(from.share()-b.mean)+square(full[len(full)-1].share()-b.mean) <= gain {
			break
		}
		for _, o := range b.options(from, full, gain) {
			if o.gain <= gain {
				break
			}
			if m := b.mover(o.guest); m != nil && b.valid(m, o.to) {
				top, gain = placement{m, o.to}, o.gain
				break
			}
		}
	}
	return top, top.to != nil
}

// options gives the moves from a node that gain more than that, the best first;
// of several targets that are as good, the first by id.
func (b *balance) options(from *host, hosts []*host, least float64) []option {
	var options []option
	for _, g := range from.guests {
		m, seen := b.movers[g]
		if !g.active() || g.at != from || seen && m == nil {
			continue
		}
		for _, to := range hosts {
			if gain := b.gain(from, to, g.memory); to != from && gain > least {
				options = append(options, option{g, to, gain})
			}
		}
	}
	slices.SortFunc(options, func(x, y option) int {
		return cmp.Or(cmp.Compare(y.gain, x.gain), cmp.Compare(x.guest.memory, y.guest.memory),
			cmp.Compare(x.guest.uuid(), y.guest.uuid()), cmp.Compare(x.to.id, y.to.id))
	})
	return options
}

// gain is what a move takes off the sum of squares.
func (b *balance) gain(from, to *host, memory uint64) float64 {
	a, c := from.share()-b.mean, to.share()-b.mean
	return square(a) + square(c) -
		square(a-float64(memory)/float64(from.total)) - square(c+float64(memory)/float64(to.total))
}

func square(x float64) float64 { return x * x }

// mover reads a VM once; nil: it cannot move, or not live.
func (b *balance) mover(g *guest) *mover {
	m, ok := b.movers[g]
	if !ok {
		m = b.world.mover(g, Request{VM: g.uuid()})
		b.asked = append(b.asked, m)
		if len(m.reasons) > 0 {
			m = nil
		}
		b.movers[g] = m
	}
	return m
}

// valid tells whether a VM can go to a node, and may: it has not been moved
// yet, and its friends are not fewer there.
func (b *balance) valid(m *mover, to *host) bool {
	if m.guest.at.id != m.guest.record.GetNode() || affinity(to, m) < affinity(m.guest.at, m) {
		return false
	}
	o := objections{terse: true}
	b.world.examine(to, m, &o)
	return o.count == 0
}
