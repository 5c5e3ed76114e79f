package inventory

import (
	"maps"
	"slices"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// news is what was not told yet.
type news struct {
	complete     bool // tell everything
	down         bool // tell that libvirt does not answer
	capacity     bool
	capabilities bool
	zfs          bool
	changed      map[string]struct{}
	gone         map[string]struct{}
}

func (n *news) changedNow(uuid string) {
	if n.changed == nil {
		n.changed = map[string]struct{}{}
	}
	n.changed[uuid] = struct{}{}
	delete(n.gone, uuid)
}

func (n *news) goneNow(uuid string) {
	if n.gone == nil {
		n.gone = map[string]struct{}{}
	}
	n.gone[uuid] = struct{}{}
	delete(n.changed, uuid)
}

func (n *news) empty() bool {
	return !n.complete && !n.down && !n.capacity && !n.capabilities && !n.zfs && len(n.changed) == 0 && len(n.gone) == 0
}

// onlyZFS tells whether there is nothing else to tell.
func (n *news) onlyZFS() bool {
	rest := *n
	rest.zfs = false
	return n.zfs && rest.empty()
}

// Inventory is everything, or what is new since the last call; nil: nothing.
// What is new can be everything too: once libvirt answers again, so that the
// reader learns what went away meanwhile.
func (c *Collector) Inventory(complete bool) *agentv1.Inventory {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.news
	if !complete && n.empty() {
		return nil
	}
	c.news = news{}
	if n.onlyZFS() && !complete {
		return &agentv1.Inventory{Zfs: c.zfs.told, LibvirtDown: c.down != nil}
	}
	if c.zfs.host && (complete || n.complete || n.zfs) { // one to itself, after this one
		c.news.zfs = c.zfs.told != nil
		if c.news.zfs {
			c.ring()
		}
	}
	inv := &agentv1.Inventory{Complete: complete || n.complete, LibvirtDown: c.down != nil}
	defer func() { inv.Cpus = c.untold(inv.GetDomains()) }()
	if inv.Complete {
		clear(c.told)
		inv.Capacity, inv.Capabilities = c.capacity, c.capabilities
		inv.ZfsFollows = c.zfs.host
		if c.down == nil {
			inv.Domains = c.domains(slices.Sorted(maps.Keys(c.seen)))
		}
		return inv
	}
	if n.capacity {
		inv.Capacity = c.capacity
	}
	if n.capabilities {
		inv.Capabilities = c.capabilities
	}
	inv.Domains = c.domains(slices.Sorted(maps.Keys(n.changed)))
	inv.Gone = slices.Sorted(maps.Keys(n.gone))
	return inv
}

// domains are those of the UUIDs; callers hold mu. Domains are never changed
// once seen.
func (c *Collector) domains(uuids []string) []*agentv1.Domain {
	list := make([]*agentv1.Domain, 0, len(uuids))
	for _, uuid := range uuids {
		list = append(list, c.seen[uuid])
	}
	return list
}

// untold are the CPUs that domains refer to and that were not told since the
// last complete inventory; callers hold mu.
func (c *Collector) untold(domains []*agentv1.Domain) (list []*agentv1.CPUDescription) {
	for _, d := range domains {
		hash := d.GetCpuHash()
		if cpu := c.cpus[hash]; cpu != nil && !c.told[hash] {
			c.told[hash] = true
			list = append(list, cpu)
		}
	}
	return list
}
