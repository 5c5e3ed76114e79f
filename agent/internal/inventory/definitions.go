package inventory

import (
	"maps"
	"slices"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// maxDefinitionBytes is how much of definitions goes into one message, of which the
// leader takes 1 MiB; one alone is never more.
const maxDefinitionBytes = 512 << 10

// noteDefinition keeps the definition of a domain as it is now; callers hold mu.
func (c *Collector) noteDefinition(d *agentv1.Domain) {
	uuid := d.GetUuid()
	if d.GetDefinitionHash() == c.definitions[uuid].GetHash() {
		return
	}
	delete(c.definitions, uuid)
	delete(c.news.definitions, uuid)
	if d.GetDefinitionHash() == "" {
		return
	}
	if now, ok := c.cfg.Hypervisor.Definition(uuid); ok {
		c.definitions[uuid] = now
		c.news.define(uuid)
	}
}

// forgetDefinition forgets the definition of a domain that is gone; callers hold mu.
func (c *Collector) forgetDefinition(uuid string) {
	delete(c.definitions, uuid)
	delete(c.news.definitions, uuid)
}

func (n *news) define(uuid string) {
	if n.definitions == nil {
		n.definitions = map[string]struct{}{}
	}
	n.definitions[uuid] = struct{}{}
}

// untoldDefinitions are the domains whose definitions are to be told, with complete
// all of them; callers hold mu.
func (c *Collector) untoldDefinitions(n news, complete bool) map[string]struct{} {
	if !complete {
		return n.definitions
	}
	all := map[string]struct{}{}
	for uuid := range c.definitions {
		all[uuid] = struct{}{}
	}
	return all
}

// someDefinitions are as many of those to be told as one message takes, and what is
// left to be told; callers hold mu.
func (c *Collector) someDefinitions(untold map[string]struct{}) (some []*agentv1.DomainDefinition, left map[string]struct{}) {
	left = maps.Clone(untold)
	size := 0
	for _, uuid := range slices.Sorted(maps.Keys(untold)) {
		d := c.definitions[uuid]
		if size += len(d.GetXml()); size > maxDefinitionBytes && len(some) > 0 {
			break
		}
		delete(left, uuid)
		some = append(some, d)
	}
	return some, left
}
