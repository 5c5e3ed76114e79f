package drain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/planner"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// open are the moves that may begin when the planner allows them.
func (d *drain) open() []*storev1.Move {
	var open []*storev1.Move
	for _, m := range d.e.GetMoves() {
		if m.GetState() == waiting || m.GetState() == blocked {
			open = append(open, m)
		}
	}
	return open
}

// worthPlanning tells whether the planner is to be asked now: something is to
// begin, and there is room for it, or nobody knows yet where it could go.
func (d *drain) worthPlanning(open []*storev1.Move, room bool) bool {
	if len(open) == 0 || !d.mayPlan && !d.ended {
		return false
	}
	unplanned := func(m *storev1.Move) bool {
		return m.GetState() == waiting && m.GetTarget() == "" && m.GetMessage() == ""
	}
	return room || slices.ContainsFunc(open, unplanned)
}

// beginAway begins as many moves away from the node as may be at work, in the
// planner's order, and notes where the others will go, or why they cannot.
func (d *drain) beginAway() {
	node := d.e.GetNode()
	open := d.open()
	if !d.worthPlanning(open, d.mayLeave(node)) {
		return
	}
	byVM := map[string]*storev1.Move{}
	only := make([]string, 0, len(open))
	for _, m := range open {
		byVM[m.GetVmUuid()] = m
		only = append(only, m.GetVmUuid())
	}
	plan := d.world().Evacuate(planner.EvacuationRequest{
		Node: node, AllowDowntime: d.e.GetAllowDowntime(), Parallel: int(d.e.GetParallel()), Only: only,
	})
	d.planned, d.questions = true, plan.Questions
	for _, next := range plan.Moves {
		m, ok := byVM[next.VM]
		if !ok {
			continue
		}
		delete(byVM, next.VM)
		switch resting := d.resting(m); {
		case !resting && len(d.begun) < mostBegun && d.mayLeave(node) && d.mayArrive(next.Target):
			d.start(m, next.Target)
		default:
			m.State, m.Target = waiting, next.Target
			if !resting {
				m.Message = ""
			}
		}
	}
	for _, b := range plan.Blocked {
		if m, ok := byVM[b.VM]; ok {
			m.State, m.Target, m.Message = blocked, "", texts(b.Reasons)
			delete(byVM, b.VM)
		}
	}
	for _, m := range byVM {
		m.State, m.Target, m.Message = blocked, "", texts(nil)
	}
}

// beginBack begins the next move back to the node. One a step: they are planned
// one by one, each with what the one before it takes.
func (d *drain) beginBack() {
	node := d.e.GetNode()
	open := d.open()
	if !d.worthPlanning(open, d.mayArrive(node)) {
		return
	}
	for _, m := range open {
		vm, ok := d.snapshot.VMs[m.GetVmUuid()]
		switch {
		case !ok || vm.Value.GetNode() != m.GetSource():
			d.left(m, vm.Value)
			continue
		case d.resting(m):
			continue
		}
		result := d.plan(m)
		if !result.Allowed {
			m.State, m.Message = blocked, result.Refusal()
			continue
		}
		if d.mayLeave(m.GetSource()) && d.mayArrive(node) {
			d.start(m, node)
			return
		}
		m.State, m.Message = waiting, ""
	}
}

// beginGiven begins the next of the given moves: in their order, and those of a
// wave once all of lower waves are done.
func (d *drain) beginGiven() {
	open := d.open()
	if !d.worthPlanning(open, true) {
		return
	}
	wave := d.wave()
	for _, m := range open {
		if m.GetWave() > wave || d.resting(m) || !d.mayLeave(m.GetSource()) || !d.mayArrive(m.GetTarget()) {
			continue
		}
		if d.snapshot.VMs[m.GetVmUuid()].Value.GetNode() == m.GetTarget() {
			m.State, m.Message = moved, "it was there already"
			continue
		}
		result := d.plan(m)
		if result.Allowed {
			d.start(m, m.GetTarget())
			return
		}
		m.State, m.Message = blocked, result.Refusal()
		if d.patience(m, &result) == 0 {
			m.State, m.Message = failed, "it is no longer allowed: "+m.GetMessage()
			return
		}
	}
}

// wave is the lowest wave that is not done.
func (d *drain) wave() uint32 {
	lowest, found := uint32(0), false
	for _, m := range d.e.GetMoves() {
		if m.GetState() != moved && (!found || m.GetWave() < lowest) {
			lowest, found = m.GetWave(), true
		}
	}
	return lowest
}

// plan judges one move as it stands.
func (d *drain) plan(m *storev1.Move) planner.Result {
	result := d.world().Plan(planner.Request{
		VM: m.GetVmUuid(), Source: m.GetSource(), Target: m.GetTarget(), TargetOnly: true, AllowDowntime: d.e.GetAllowDowntime(),
	})
	d.planned = true
	d.questions = append(d.questions, result.Questions...)
	return result
}

// texts writes reasons in one text.
func texts(reasons []planner.Reason) string {
	var parts []string
	for _, r := range reasons {
		parts = append(parts, r.Message)
	}
	if len(parts) == 0 {
		return "the planner found no place for it"
	}
	return strings.Join(parts, "; ")
}

// tellMoves names moves with what they say, at most so many.
func tellMoves(moves []*storev1.Move, most int) string {
	var parts []string
	for _, m := range moves[:min(len(moves), most)] {
		parts = append(parts, name(m)+": "+clip(m.GetMessage(), mostToldOf))
	}
	if more := len(moves) - most; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, "; ")
}
