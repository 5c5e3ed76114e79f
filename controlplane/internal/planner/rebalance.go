package planner

import (
	"cmp"
	"math"
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
	// off is how far the share of each node is from the mean, in order of hosts.
	off []float64
	// smallest is the least memory of a node.
	smallest uint64
	// movers are the VMs that were looked at; nil: it stays.
	movers map[*guest]*mover
	// asked are they in the order in which they were looked at.
	asked []*mover
}

// measure puts the fullest nodes first and tells how far each is off.
func (b *balance) measure() {
	slices.SortStableFunc(b.hosts, func(x, y *host) int {
		return cmp.Or(cmp.Compare(y.share(), x.share()), cmp.Compare(x.id, y.id))
	})
	mean := 0.
	b.smallest = math.MaxUint64
	for _, h := range b.hosts {
		mean += h.share() / float64(len(b.hosts))
		b.smallest = min(b.smallest, h.total)
	}
	b.off = b.off[:0]
	for _, h := range b.hosts {
		b.off = append(b.off, h.share()-mean)
	}
}

// next gives the move that lowers the imbalance most. Of several that are as
// good it is the first: from the fullest node, of the first VM by UUID.
func (b *balance) next() (placement, bool) {
	b.measure()
	var top placement
	gain := leastGain
	for from, h := range b.hosts {
		for _, g := range h.guests {
			if g.active() && g.at == h && b.promise(from, g.memory) > gain {
				if to, more := b.target(from, g, gain); to != nil {
					top, gain = placement{b.movers[g], to}, more
				}
			}
		}
	}
	return top, top.to != nil
}

// promise is more than what any move of a VM from a node can gain.
func (b *balance) promise(from int, memory uint64) float64 {
	a, most := float64(memory)/float64(b.hosts[from].total), float64(memory)/float64(b.smallest)
	return 2*a*b.off[from] - a*a + 2*most*max(0, -b.off[len(b.off)-1])
}

// target gives the best node for a VM, if it gains more than that; the emptiest
// are tried first, since most gain most.
func (b *balance) target(from int, g *guest, least float64) (*host, float64) {
	var best *host
	for to := len(b.hosts) - 1; to >= 0; to-- {
		gain := b.gain(from, to, g.memory)
		if to == from || gain <= least {
			continue
		}
		m := b.mover(g)
		if m == nil {
			break
		}
		if b.valid(m, b.hosts[to]) {
			best, least = b.hosts[to], gain
		}
	}
	return best, least
}

// gain is what a move takes off the sum of squares.
func (b *balance) gain(from, to int, memory uint64) float64 {
	a, c := b.off[from], b.off[to]
	return square(a) + square(c) -
		square(a-float64(memory)/float64(b.hosts[from].total)) - square(c+float64(memory)/float64(b.hosts[to].total))
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
