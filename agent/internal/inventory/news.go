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
	zfs, ceph    bool
	changed      map[string]struct{}
	gone         map[string]struct{}
	definitions  map[string]struct{}
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
	return !n.complete && !n.down && !n.capacity && !n.capabilities && !n.zfs && !n.ceph &&
		len(n.changed) == 0 && len(n.gone) == 0 && len(n.definitions) == 0
}

// onlyApart tells whether there is nothing to tell but what comes in messages of
// its own, since it may be large.
func (n *news) onlyApart() bool {
	rest := *n
	rest.zfs, rest.ceph, rest.definitions = false, false, nil
	return !n.empty() && rest.empty()
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
	if n.onlyApart() && !complete {
		return c.apart(n)
	}
	// Each to itself, after this one.
	all := complete || n.complete
	c.later(c.zfs.told != nil && (all || n.zfs), c.ceph.told != nil && (all || n.ceph), c.untoldDefinitions(n, all))
	inv := &agentv1.Inventory{Complete: all, LibvirtDown: c.down != nil}
	defer func() { inv.Cpus = c.untold(inv.GetDomains()) }()
	if inv.Complete {
		clear(c.told)
		inv.Capacity, inv.Capabilities = c.capacity, c.capabilities
		inv.ZfsFollows, inv.CephFollows = c.zfs.host, c.ceph.host
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

// apart tells one of what comes in messages of its own; callers hold mu.
func (c *Collector) apart(n news) *agentv1.Inventory {
	inv := &agentv1.Inventory{LibvirtDown: c.down != nil}
	if n.zfs {
		inv.Zfs = c.zfs.told
		c.later(false, n.ceph, n.definitions)
		return inv
	}
	if n.ceph {
		inv.Ceph = c.ceph.told
		c.later(false, false, n.definitions)
		return inv
	}
	some, left := c.someDefinitions(n.definitions)
	inv.Definitions = some
	c.later(false, false, left)
	return inv
}

// later notes what is still to be told in messages of its own; callers hold mu.
func (c *Collector) later(zfs, ceph bool, definitions map[string]struct{}) {
	c.news.zfs, c.news.ceph, c.news.definitions = zfs, ceph, definitions
	if zfs || ceph || len(definitions) > 0 {
		c.ring()
	}
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
