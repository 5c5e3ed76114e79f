package planner

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// guest is a VM in the world of a plan.
type guest struct {
	record *storev1.VM
	state  debvisorv1.VMState
	// memory is bytes.
	memory uint64
	// at is the node that it belongs to; nil where that node does not exist.
	at *host
	// coming is where unfinished migrations take it: it counts there as well.
	coming []*host
	// seen are other nodes that reported it as defined there.
	seen []*host
	// policy is empty where there is none.
	policy *debvisorv1.VMPolicy
	// decoded is the domain once somebody wanted all of it.
	decoded *agentv1.Domain
}

// newGuest reads of a record what every plan needs of every VM; with 50,000 of
// them decoding all would take most of the time.
func newGuest(record *storev1.VM) *guest {
	g := &guest{record: record, policy: noPolicy}
	g.state, g.memory = glance(record.GetDomain())
	if b := record.GetPolicy(); len(b) > 0 {
		policy := &debvisorv1.VMPolicy{}
		if proto.Unmarshal(b, policy) == nil {
			g.policy = policy
		}
	}
	return g
}

var noPolicy = &debvisorv1.VMPolicy{}

// glance finds state and memory in an encoded Domain.
func glance(b []byte) (state debvisorv1.VMState, memory uint64) {
	const stateField, memoryField = 3, 4
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return debvisorv1.VMState_VM_STATE_UNSPECIFIED, 0
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return debvisorv1.VMState_VM_STATE_UNSPECIFIED, 0
		}
		if kind == protowire.VarintType {
			value, _ := protowire.ConsumeVarint(b)
			switch number {
			case stateField:
				state = debvisorv1.VMState(value)
			case memoryField:
				memory = value
			}
		}
		b = b[n:]
	}
	return state, memory
}

// domain is what its node last reported. One that cannot be decoded is as one
// that was never reported.
func (g *guest) domain() *agentv1.Domain {
	if g.decoded == nil {
		g.decoded = &agentv1.Domain{}
		if err := proto.Unmarshal(g.record.GetDomain(), g.decoded); err != nil {
			g.decoded, g.state = &agentv1.Domain{}, debvisorv1.VMState_VM_STATE_UNSPECIFIED
		}
	}
	return g.decoded
}

func (g *guest) uuid() string { return g.record.GetUuid() }
func (g *guest) name() string { return g.record.GetName() }

// active tells whether it takes memory where it is. What is in a state that
// nobody knows may.
func (g *guest) active() bool { return !g.off() }

// off tells whether its QEMU is gone.
func (g *guest) off() bool {
	return g.state == debvisorv1.VMState_VM_STATE_SHUTOFF || g.state == debvisorv1.VMState_VM_STATE_CRASHED
}

// on tells whether it is on a node, or may be there any moment.
func (g *guest) on(h *host) bool {
	if g.at == h {
		return true
	}
	for _, c := range g.coming {
		if c == h {
			return true
		}
	}
	return false
}

// places are all nodes that it counts on.
func (g *guest) places(yield func(*host) bool) {
	if g.at != nil && !yield(g.at) {
		return
	}
	for _, h := range g.coming {
		if !yield(h) {
			return
		}
	}
}
