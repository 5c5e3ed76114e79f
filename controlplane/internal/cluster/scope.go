package cluster

import (
	"iter"
	"maps"
	"slices"

	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// Scope is what of a snapshot a caller may know: all of it, or of VMs,
// operations and plans only those of the tenant that it is confined to. What is
// another's is not in it, so that nobody has to remember to leave it out, and to
// look for it takes the same as to look for what does not exist. What nodes and
// the cluster itself are is everybody's: Snapshot.
type Scope struct {
	snapshot *Snapshot
	tenant   string
}

// Within gives the scope of a tenant; of none: everything.
func (s *Snapshot) Within(tenant string) Scope { return Scope{s, tenant} }

// Snapshot is for what belongs to all: nodes, their states, who leads.
func (c Scope) Snapshot() *Snapshot { return c.snapshot }

// Tenant is whose scope it is; empty: everybody's.
func (c Scope) Tenant() string { return c.tenant }

// Confined tells whether anything may be left out.
func (c Scope) Confined() bool { return c.tenant != "" }

// VM gives a VM by its UUID.
func (c Scope) VM(uuid string) (entry Entry[*storev1.VM], ok bool) {
	if c.Confined() && !contains(c.snapshot.index.vmsByTenant[c.tenant], uuid) {
		return entry, false
	}
	entry, ok = c.snapshot.VMs[uuid]
	return entry, ok
}

// FindVM gives the UUIDs that a reference means: itself when it is the UUID of a
// VM, else those of all VMs of that name, in ascending order.
func (c Scope) FindVM(ref string) []string {
	if _, ok := c.VM(ref); ok {
		return []string{ref}
	}
	if c.Confined() {
		return slices.Clone(c.snapshot.index.vmsByOwnName[ownName(c.tenant, ref)])
	}
	return slices.Clone(c.snapshot.index.vmsByName[ref])
}

// VMs gives every VM, in no order.
func (c Scope) VMs() iter.Seq[Entry[*storev1.VM]] {
	if c.Confined() {
		return slices.Values(pick(c.snapshot.VMs, c.snapshot.index.vmsByTenant[c.tenant]))
	}
	return maps.Values(c.snapshot.VMs)
}

// VMsOn gives the VMs whose placement is that node, by ascending UUID.
func (c Scope) VMsOn(node string) []Entry[*storev1.VM] {
	on := c.snapshot.VMsOn(node)
	if !c.Confined() {
		return on
	}
	return slices.DeleteFunc(on, func(e Entry[*storev1.VM]) bool {
		return !contains(c.snapshot.index.vmsByTenant[c.tenant], e.Value.GetUuid())
	})
}

// Operation gives an operation by its id.
func (c Scope) Operation(id string) (entry Entry[*storev1.Operation], ok bool) {
	entry, ok = c.snapshot.Operations[id]
	if !ok || c.Confined() && entry.Value.GetTenant() != c.tenant {
		return Entry[*storev1.Operation]{}, false
	}
	return entry, true
}

// Operations gives every operation, in no order.
func (c Scope) Operations() iter.Seq[Entry[*storev1.Operation]] {
	if c.Confined() {
		return slices.Values(pick(c.snapshot.Operations, c.snapshot.index.operationsByTenant[c.tenant]))
	}
	return maps.Values(c.snapshot.Operations)
}

// Plan gives a plan by its id.
func (c Scope) Plan(id string) (entry Entry[*storev1.Plan], ok bool) {
	entry, ok = c.snapshot.Plans[id]
	if !ok || c.Confined() && entry.Value.GetTenant() != c.tenant {
		return Entry[*storev1.Plan]{}, false
	}
	return entry, true
}

// Plans gives every plan, in no order.
func (c Scope) Plans() iter.Seq[Entry[*storev1.Plan]] {
	return func(yield func(Entry[*storev1.Plan]) bool) {
		for _, entry := range c.snapshot.Plans {
			if (!c.Confined() || entry.Value.GetTenant() == c.tenant) && !yield(entry) {
				return
			}
		}
	}
}

// Replication gives a replication job by its id.
func (c Scope) Replication(id string) (entry Entry[*storev1.ReplicationJob], ok bool) {
	entry, ok = c.snapshot.Replications[id]
	if !ok || c.Confined() && entry.Value.GetTenant() != c.tenant {
		return Entry[*storev1.ReplicationJob]{}, false
	}
	return entry, true
}

// Replications gives every replication job, in no order.
func (c Scope) Replications() iter.Seq[Entry[*storev1.ReplicationJob]] {
	return func(yield func(Entry[*storev1.ReplicationJob]) bool) {
		for _, entry := range c.snapshot.Replications {
			if (!c.Confined() || entry.Value.GetTenant() == c.tenant) && !yield(entry) {
				return
			}
		}
	}
}

// Holder tells whether an operation holds a resource, and its id where that is
// not another's.
func (c Scope) Holder(resource string) (operation string, held bool) {
	entry, held := c.snapshot.InUse[resource]
	if !held || !c.Confined() {
		return entry.Value, held
	}
	if _, own := c.Operation(entry.Value); !own {
		return "", true
	}
	return entry.Value, true
}

func contains(sorted []string, key string) bool {
	_, found := slices.BinarySearch(sorted, key)
	return found
}
