package inventory

import (
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// maxCPUs bounds the CPU descriptions that one node's agent may tell in a
// session, and maxCPUBytes each: a guest's <cpu> element has some kilobytes.
const (
	maxCPUs     = 4096
	maxCPUBytes = 64 << 10
)

// cpus are the CPU descriptions that a node's agent told, by their hashes. Each
// is told once a session; those of the session before go with the first
// complete inventory of the next, so that none is missed between them.
type cpus struct {
	// begun tells that the session at work has told its complete inventory.
	begun  bool
	byHash map[string]*agentv1.CPUDescription
}

// take takes the descriptions of an inventory. What is over the bounds is left
// out: guests with such a CPU are not compared.
func (c *cpus) take(inv *agentv1.Inventory) {
	if inv.GetComplete() && !inv.GetLibvirtDown() && !c.begun {
		c.begun, c.byHash = true, nil
	}
	for _, cpu := range inv.GetCpus() {
		if cpu.GetHash() == "" || len(c.byHash) >= maxCPUs || proto.Size(cpu) > maxCPUBytes {
			continue
		}
		if c.byHash == nil {
			c.byHash = map[string]*agentv1.CPUDescription{}
		}
		c.byHash[cpu.GetHash()] = cpu
	}
}

// CPU gives the CPU description of that hash (Domain.cpu_hash) as agents told it
// to this leader. ok is false where this replica does not lead, no agent has
// told it, or two told different ones: one of them is not to be believed.
func (i *Inventory) CPU(hash string) (description *agentv1.CPUDescription, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, n := range i.nodes {
		cpu, told := n.cpus.byHash[hash]
		if !told {
			continue
		}
		if ok && !proto.Equal(description, cpu) {
			return nil, false
		}
		description, ok = cpu, true
	}
	return description, ok
}
