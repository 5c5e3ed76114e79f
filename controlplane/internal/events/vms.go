package events

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// vmFacts are those of a VM's placement and state. They are its tenant's: the one
// that it has after the change.
func vmFacts(d *derivation, c store.Changed, was, is *storev1.VM) {
	vm := is
	if !c.Has {
		vm = was
	}
	owner := Owner{Tenant: cluster.TenantOf(vm)}
	tell := func(kind string, about []string, details map[string]string, format string, args ...any) {
		d.tell(told{
			kind: kind, owner: owner, about: append([]string{"vm/" + c.ID}, about...), details: details,
			message: "VM " + vm.GetName() + " " + fmt.Sprintf(format, args...),
		})
	}
	at := []string{"node/" + vm.GetNode()}
	switch {
	case !c.Has:
		tell("vm.gone", at, nil, "is on no node any more; it was on %s", vm.GetNode())
		return
	case !c.Had:
		tell("vm.appeared", at, map[string]string{"to": is.GetNode(), "generation": number(is.GetGeneration())}, "appeared on %s", is.GetNode())
		conflictFacts(tell, was, is)
		return
	}
	if was.GetNode() != is.GetNode() {
		tell("vm.moved", []string{"node/" + was.GetNode(), "node/" + is.GetNode()},
			map[string]string{"from": was.GetNode(), "to": is.GetNode(), "generation": number(is.GetGeneration())},
			"moved from %s to %s", was.GetNode(), is.GetNode())
	}
	if was.GetName() != is.GetName() {
		tell("vm.renamed", at, map[string]string{"from": was.GetName(), "to": is.GetName()}, "has a new name; it was %s", was.GetName())
	}
	if from, to := stateOf(was), stateOf(is); from != to && to != debvisorv1.VMState_VM_STATE_UNSPECIFIED {
		kind := "vm.state"
		if to == debvisorv1.VMState_VM_STATE_CRASHED {
			kind = "vm.crashed"
		}
		now := word(to, "VM_STATE_")
		tell(kind, at, map[string]string{"from": word(from, "VM_STATE_"), "to": now}, "is %s on %s", now, is.GetNode())
	}
	conflictFacts(tell, was, is)
	if !slices.Equal(was.GetPolicy(), is.GetPolicy()) {
		tell("vm.policy-changed", nil, nil, "has another VM policy")
	}
	if was.GetAutostart() != is.GetAutostart() {
		to := map[bool]string{true: "on", false: "off"}[is.GetAutostart()]
		tell("vm.autostart-changed", nil, map[string]string{"to": to}, "is started after a boot of its node: %s", map[bool]string{true: "yes", false: "no"}[is.GetAutostart()])
	}
}

// conflictFacts tell of a VM that several nodes run.
func conflictFacts(tell func(string, []string, map[string]string, string, ...any), was, is *storev1.VM) {
	before, now := was.GetConflictNodes(), is.GetConflictNodes()
	switch {
	case slices.Equal(before, now):
	case len(now) == 0:
		tell("vm.conflict-resolved", []string{"node/" + is.GetNode()}, nil, "runs on one node only again: %s", is.GetNode())
	default:
		about := make([]string, len(now))
		for i, node := range now {
			about[i] = "node/" + node
		}
		tell("vm.conflict", about, map[string]string{"nodes": strings.Join(now, ",")}, "is reported running by %s: every operation on it is refused", strings.Join(now, " and "))
	}
}

// stateOf is a VM's state as its node last reported it.
func stateOf(vm *storev1.VM) debvisorv1.VMState {
	domain := &agentv1.Domain{}
	if proto.Unmarshal(vm.GetDomain(), domain) != nil {
		return debvisorv1.VMState_VM_STATE_UNSPECIFIED
	}
	return domain.GetState()
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }
