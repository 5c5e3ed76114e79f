package planner

import "math"

// ScorePart is one part of a score.
type ScorePart struct {
	Name   string
	Weight float64
	// Value is 0 to 1.
	Value float64
}

// The weights of a score's parts; they add up to 100.
const (
	// memoryWeight is for the share of memory that stays free when all VMs run.
	memoryWeight = 50
	// cpuWeight is for the share of CPUs that is idle.
	cpuWeight = 15
	// affinityWeight is for the share of the VMs of the affinity groups that
	// are there.
	affinityWeight = 15
	// spreadWeight is for the distance to the VMs that it is kept apart from:
	// in another rack, in another zone.
	spreadWeight = 12
	// diskWeight is for the share that stays free of the file systems and pools
	// that disks are copied to.
	diskWeight = 8
)

// score gives a node's parts. A part that does not tell nodes apart for a VM is
// 1 on all of them.
func (w *World) score(h *host, m *mover) [5]ScorePart {
	return [5]ScorePart{
		{"memory", memoryWeight, h.memoryLeft(m)},
		{"cpu", cpuWeight, h.idle},
		{"affinity", affinityWeight, affinity(h, m)},
		{"spread", spreadWeight, spread(h, m)},
		{"disk", diskWeight, w.diskLeft(h, m)},
	}
}

func total(parts [5]ScorePart) float64 {
	var sum float64
	for _, p := range parts {
		sum += p.Weight * p.Value
	}
	return sum
}

func (h *host) memoryLeft(m *mover) float64 {
	taken := h.reserved + h.dormant
	if h != m.guest.at {
		taken += Need(m.guest.memory)
	}
	return float64(h.free-min(h.free, taken)) / float64(h.total)
}

func affinity(h *host, m *mover) float64 {
	if len(m.friends) == 0 {
		return 1
	}
	there := 0
	for _, f := range m.friends {
		if f.on(h) {
			there++
		}
	}
	return float64(there) / float64(len(m.friends))
}

func spread(h *host, m *mover) float64 {
	var sum float64
	n := 0
	for _, r := range m.rivals {
		for place := range r.guest.places {
			sum += distance(place, h)
			n++
		}
	}
	if n == 0 {
		return 1
	}
	return sum / float64(n)
}

// distance is 0 for the same node, a third in one rack, two thirds in one zone.
func distance(a, b *host) float64 {
	switch {
	case a == b:
		return 0
	case near(spreadRack, a, b):
		return 1. / 3
	case near(spreadZone, a, b):
		return 2. / 3
	}
	return 1
}

func (w *World) diskLeft(h *host, m *mover) float64 {
	least := 1.
	if !m.copies || h == m.guest.at {
		return least
	}
	for _, n := range w.room(m, h) {
		taken, available := n.bytes+w.claimed[n.volume.key], n.volume.GetAvailableBytes()
		if size := n.volume.GetTotalBytes(); size > 0 {
			least = min(least, float64(available-min(available, taken))/float64(size))
		}
	}
	return least
}

// deviation is the standard deviation of values.
func deviation(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	var sum, squares float64
	for _, v := range values {
		sum += v
	}
	mean := sum / float64(len(values))
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	return math.Sqrt(squares / float64(len(values)))
}
