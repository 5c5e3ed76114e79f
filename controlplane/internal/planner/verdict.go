package planner

import (
	"cmp"
	"slices"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Verdict is what the planner thinks of one node as a target.
type Verdict struct {
	Node    string
	Allowed bool
	Reasons []Reason
	// Score is higher the better the node; of meaning within one plan only. It
	// is the sum of weight times value of its parts.
	Score float64
	Parts []ScorePart
	// Method is how the VM would move there; unspecified where it cannot.
	Method debvisorv1.MoveMethod
	// Estimate is what the move would take; nil where there is no method.
	Estimate *debvisorv1.MoveEstimate
	// way is how its ZFS volumes would go.
	way way
}

// filter tells what speaks against a node that is not the VM's own.
type filter func(*World, *host, *mover, *objections)

// filters are all of them, those that are cheap and often refuse first.
var filters = []filter{clashes, lost, memory, processors, machine, network, reach, images, space, recoverable, directories, antiAffinity}

// examine judges a node as the target of a VM. With terse objections it stops
// at the first.
func (w *World) examine(h *host, m *mover, o *objections) debvisorv1.MoveMethod {
	available(h, m, o)
	if h == m.guest.at {
		return none
	}
	for _, f := range filters {
		if o.enough() {
			return none
		}
		f(w, h, m, o)
	}
	method := m.method(h, o)
	if !o.enough() {
		processor(w, h, m, o)
	}
	return method
}

// available refuses a node that takes no VMs at all.
func available(h *host, m *mover, o *objections) {
	if h == m.guest.at {
		o.no(AlreadyThere, "VM %s is already there", m.guest.name())
	}
	if heard := h.status.GetLiveness(); heard != storev1.NodeLiveness_NODE_LIVENESS_ONLINE {
		o.no(NodeNotHeard, "its agent is not heard (%s)", livenessWord(heard))
	}
	if h.status.GetLibvirtDown() {
		o.no(NodeLibvirt, "its libvirt does not answer")
	}
	if h.node.GetCordoned() {
		o.no(NodeCordoned, "it is cordoned (%s)", cmp.Or(h.node.GetCordonReason(), "no reason given"))
	}
}

// clashes refuses a node whose libvirt has the VM's name or UUID already.
func clashes(w *World, h *host, m *mover, o *objections) {
	for _, other := range w.byName[m.guest.name()] {
		if other != m.guest && other.on(h) {
			o.no(NameClash, "another VM there is called %s too%s", m.guest.name(), m.whose(other))
		}
	}
	if slices.Contains(m.guest.seen, h) {
		o.no(UUIDClash, "a domain with the VM's UUID %s is defined there already", m.guest.uuid())
	}
}

// whose gives the UUID of a VM, in brackets, where the caller may know it.
func (m *mover) whose(other *guest) string {
	if m.request.Tenant != "" && other.policy.GetTenant() != m.request.Tenant {
		return ""
	}
	return " (UUID " + other.uuid() + ")"
}

// judge gives a node's verdict.
func (w *World) judge(h *host, m *mover) Verdict {
	v := Verdict{Node: h.id}
	var o objections
	method := w.examine(h, m, &o)
	if h == m.guest.at && !h.known {
		o.no(CapacityUnknown, "its capacity is not known yet")
	}
	v.Reasons, v.Allowed = o.reasons, o.count == 0
	if h.known {
		parts := w.score(h, m)
		v.Parts, v.Score = parts[:], total(parts)
	}
	if v.Allowed && method != none {
		v.Method = method
		if m.request.Recovery == nil {
			v.Estimate, v.way = w.estimate(m, h, method)
		}
	}
	return v
}

// better orders verdicts: the best first. A node that a guest can go to without
// a break is better than any for which it has to be shut down.
func better(a, b Verdict) int {
	if a.Allowed != b.Allowed {
		return yesFirst(a.Allowed, b.Allowed)
	}
	return cmp.Or(yesFirst(a.Method != offline, b.Method != offline), cmp.Compare(b.Score, a.Score), cmp.Compare(a.Node, b.Node))
}

func yesFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
