package storage

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// codeNoGuestAgent refuses snapshots that a guest was to be frozen for.
const codeNoGuestAgent = "NO_GUEST_AGENT"

// defaultFreeze is how long a guest may be frozen where nobody says, milliseconds.
const defaultFreeze = 5000

// freezes tells whether a guest is to be frozen while snapshots are taken, if it
// can be.
func freezes(t *storev1.TakeSnapshots) bool {
	switch debvisorv1.Consistency(t.GetConsistency()) {
	case debvisorv1.Consistency_CONSISTENCY_PREFER_APPLICATION, debvisorv1.Consistency_CONSISTENCY_APPLICATION:
		return true
	}
	return false
}

// freezesOn is the node of the VM that is to be frozen; why is why none can be.
func (d *decision) freezesOn(t *storev1.TakeSnapshots) (node, why string) {
	vm, ok := d.snapshot.VMs[t.GetVmUuid()]
	domain := &agentv1.Domain{}
	switch {
	case t.GetVmUuid() == "":
		return "", "they are not the disks of one VM that could be frozen"
	case !ok:
		return "", fmt.Sprintf("VM %s is not in the records any more", t.GetVmName())
	case proto.Unmarshal(vm.Value.GetDomain(), domain) != nil || domain.GetState() != debvisorv1.VMState_VM_STATE_RUNNING:
		return "", fmt.Sprintf("VM %s does not run", vm.Value.GetName())
	}
	return vm.Value.GetNode(), ""
}

// freeze is what the agent of a node is told of the freeze; nil: there is none. The
// step ends the operation: without a freeze there is to be no snapshot.
func (d *decision) freeze(t *storev1.TakeSnapshots, node string) (*agentv1.Freeze, *step) {
	if !freezes(t) {
		return nil, nil
	}
	required := debvisorv1.Consistency(t.GetConsistency()) == debvisorv1.Consistency_CONSISTENCY_APPLICATION
	on, why := d.freezesOn(t)
	if why == "" && on != node {
		why = fmt.Sprintf("VM %s runs on %s", t.GetVmName(), on)
	}
	switch {
	case why != "" && required:
		return nil, d.fail(codeNoGuestAgent, "no guest was frozen, so that no snapshot was taken: "+why)
	case why != "":
		t.Freeze = encoded(&agentv1.FreezeOutcome{Reason: why})
		return nil, nil
	}
	budget := t.GetFreezeBudgetMs()
	if budget == 0 {
		budget = defaultFreeze
	}
	return &agentv1.Freeze{VmUuid: t.GetVmUuid(), VmName: t.GetVmName(), BudgetMs: budget, Required: required}, nil
}

// froze notes how the last freeze went, also where no snapshot came of it.
func froze(t *storev1.TakeSnapshots, tries []*half) {
	for _, h := range slices.Backward(tries) {
		if out := h.outcome.GetFreeze(); out != nil {
			t.Freeze = encoded(out)
			return
		}
	}
}
