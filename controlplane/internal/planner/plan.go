// Package planner decides whether a VM can move, where to and how. It is pure: a
// snapshot goes in, a plan comes out; it does no I/O and has no clock. It gives
// every reason for every node at once, each with the figures it was decided on.
//
// What other operations will still take is derived from the unfinished ones in
// the snapshot, so plans must be made one after another to take each other into
// account. What nobody knows counts against a move wherever it could do harm: a
// capability that a node has not reported, a rack without a name.
package planner

import (
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// Request asks whether a VM can move.
type Request struct {
	// VM is the UUID.
	VM string
	// Source is where the caller believes the VM to be; empty: wherever it is.
	Source string
	// Target is the node to judge; empty: the best.
	Target string
	// TargetOnly leaves the other nodes without a verdict where Target is given:
	// to judge a thousand takes some milliseconds.
	TargetOnly bool
	// Operation is the one that plans, which is not in its own way; empty: none.
	Operation string
	// AllowDowntime lets a guest be shut down that cannot move live.
	AllowDowntime bool
	// Options tune the move; nil: defaults.
	Options *debvisorv1.MigrateOptions
	// Tenant is the caller's: another's VM does not exist for it, and no reason
	// names what is another's; empty: all do.
	Tenant string
	// Facts is what is known of CPUs; nil: they are not judged.
	Facts Facts
	// Recovery judges the bringing back of a VM whose node is lost; nil: it moves.
	Recovery *Recovery
}

// Result is a plan, or why there is none.
type Result struct {
	Allowed bool
	// VM is the UUID, Name the VM's name, Source the node that it is on.
	VM, Name, Source string
	// Target is the node that was asked for, or chosen; empty where none can be.
	Target string
	// Reasons speak against moving the VM wherever to.
	Reasons []Reason
	// Nodes are the verdicts on all nodes, best first.
	Nodes []Verdict
	// Method and Estimate are those of the target; unspecified and nil where the
	// move is not allowed.
	Method   debvisorv1.MoveMethod
	Estimate *debvisorv1.MoveEstimate
	// NotLive is why a VM that runs cannot move live, wherever to; empty: it can.
	NotLive []Reason
	// Disks are the VM's files and block devices, as the two tasks of the move
	// are told; none where it is not allowed.
	Disks []*agentv1.DiskTransfer
	// Questions are what Facts did not know of nodes that nothing else speaks
	// against: those have the reason CPUNotCompared.
	Questions []Question
}

// Plan judges a move. It always has a result: a VM or a target that does not
// exist is a reason like any other.
func Plan(s *cluster.Snapshot, r Request) Result { return NewWorld(s, r.Facts).Plan(r) }

// Plan is as the function of that name. A request's Facts go before the world's.
func (w *World) Plan(r Request) Result {
	result := Result{VM: r.VM, Target: r.Target}
	g, ok := w.guests[r.VM]
	if !ok || r.Tenant != "" && g.policy.GetTenant() != r.Tenant {
		result.Reasons = []Reason{{VMNotFound, fmt.Sprintf("no VM has the UUID %q", r.VM)}}
		return result
	}
	if own, ok := w.claims[r.Operation]; ok && r.Operation != "" {
		w.release(own)
		defer w.hold(own)
	}
	m := w.mover(g, r)
	result.Name, result.Source = g.name(), g.record.GetNode()
	result.Reasons, result.NotLive = m.reasons, m.notLive
	for _, h := range w.hosts {
		if r.TargetOnly && r.Target != "" && h.id != r.Target {
			continue
		}
		result.Nodes = append(result.Nodes, w.judge(h, m))
	}
	slices.SortStableFunc(result.Nodes, better)
	result.Questions = m.questions
	result.choose(m)
	return result
}

// choose settles the target and whether the move is allowed.
func (r *Result) choose(m *mover) {
	if r.Target == "" && len(r.Nodes) > 0 && r.Nodes[0].Allowed {
		r.Target = r.Nodes[0].Node
	}
	at := slices.IndexFunc(r.Nodes, func(v Verdict) bool { return v.Node == r.Target })
	if at < 0 && r.Target != "" {
		unknown := Reason{NodeNotFound, fmt.Sprintf("no node is called %q", r.Target)}
		r.Nodes = append(r.Nodes, Verdict{Node: r.Target, Reasons: []Reason{unknown}})
		return
	}
	if r.Allowed = at >= 0 && r.Nodes[at].Allowed && len(r.Reasons) == 0; !r.Allowed {
		return
	}
	r.Method, r.Estimate = r.Nodes[at].Method, r.Nodes[at].Estimate
	if m.request.Recovery != nil {
		return // its disks are not moved
	}
	for _, d := range m.disks {
		if t := d.transfer(m, r.Method, r.Nodes[at].way); t != nil {
			r.Disks = append(r.Disks, t)
		}
	}
}

// Refusal says in one text why the move is not allowed: all reasons against the
// VM, and those against the target or, where none was asked for, every node. Of
// more than mostNodes nodes it gives each reason with the first few.
func (r *Result) Refusal() string {
	var parts []string
	for _, reason := range r.Reasons {
		parts = append(parts, reason.Message)
	}
	refused := r.refused()
	if len(refused) > mostNodes {
		for _, reason := range grouped(refused) {
			parts = append(parts, reason.Message)
		}
		return strings.Join(parts, "; ")
	}
	for _, v := range refused {
		for _, reason := range v.Reasons {
			parts = append(parts, v.Node+": "+reason.Message)
		}
	}
	if len(r.Nodes) == 0 && len(parts) == 0 {
		parts = append(parts, "there are no nodes")
	}
	return strings.Join(parts, "; ")
}

// Codes are the codes of what Refusal tells: of reasons against the VM as they
// are, with NotLive followed by those of its causes, of those against a node
// after its id and a colon; the nodes after the first mostNodes are one, "*".
func (r *Result) Codes() []string {
	var codes []string
	for _, reason := range r.Reasons {
		codes = append(codes, reason.Code)
		if reason.Code == NotLive || reason.Code == VMTransient {
			for _, cause := range r.NotLive {
				codes = append(codes, cause.Code)
			}
		}
	}
	for i, v := range r.refused() {
		for _, reason := range v.Reasons {
			code := v.Node + ":" + reason.Code
			if i >= mostNodes {
				code = "*:" + reason.Code
			}
			if i < mostNodes || !slices.Contains(codes, code) {
				codes = append(codes, code)
			}
		}
	}
	return codes
}

// mostNodes is of how many nodes a refusal gives every reason.
const mostNodes = 20

// refused gives the verdicts that a refusal is about.
func (r *Result) refused() []Verdict {
	var refused []Verdict
	for _, v := range r.Nodes {
		if !v.Allowed && (r.Target == "" || v.Node == r.Target) {
			refused = append(refused, v)
		}
	}
	return refused
}

// Has tells whether a reason with that code speaks against the VM or, if one
// was asked for, the target.
func (r *Result) Has(code string) bool {
	is := func(reason Reason) bool { return reason.Code == code }
	if slices.ContainsFunc(r.Reasons, is) {
		return true
	}
	return slices.ContainsFunc(r.Nodes, func(v Verdict) bool {
		return v.Node == r.Target && slices.ContainsFunc(v.Reasons, is)
	})
}

// Only tells whether nothing but reasons of that code is in the way: of none
// against the VM, and of those against the target or, where none was asked for,
// against some node.
func (r *Result) Only(code string) bool {
	if r.Allowed || len(r.Reasons) > 0 {
		return false
	}
	other := func(reason Reason) bool { return reason.Code != code }
	return slices.ContainsFunc(r.Nodes, func(v Verdict) bool {
		return (r.Target == "" || v.Node == r.Target) && !slices.ContainsFunc(v.Reasons, other)
	})
}
