package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// startsAtOnce is how many starts one transaction orders.
const startsAtOnce = 200

// boot is a node's boot after which its VMs have still to be started.
type boot struct {
	node, id string
	vms      []cluster.Entry[*storev1.VM]
	status   *storev1.NodeStatus // that says so once they are
}

// startAfterBoots orders, for each node that has booted, the start of the VMs
// that belong there and are to be started. With the last of them it is written
// that this boot is done with. A leader that dies in between is followed by one
// that orders the rest: the ids of the orders are the same.
func (i *Inventory) startAfterBoots(ctx context.Context, l election.Leadership) error {
	snapshot := i.cfg.View.Current()
	if snapshot.Recovering() {
		return nil // a node that was not heard may run any of them
	}
	for _, b := range i.booted(snapshot) {
		err := i.startAll(ctx, l, snapshot, b)
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			i.cfg.Log.Debug("the records have changed, starting after the boot is decided anew", "node", b.node, "key", conflict.Key)
			continue // with the next look
		}
		if err != nil {
			return fmt.Errorf("starting VMs of %s after its boot: %w", b.node, err)
		}
	}
	return nil
}

// booted gives the boots whose VMs can be started now.
func (i *Inventory) booted(s *cluster.Snapshot) []boot {
	i.mu.Lock()
	defer i.mu.Unlock()
	var boots []boot
	for _, id := range slices.Sorted(maps.Keys(i.nodes)) {
		n := i.nodes[id]
		switch {
		case n.facts.BootID == "" || n.facts.BootID == n.startedBoot:
		case n.silent() || i.untold(n):
			// It will be told.
		default:
			b := boot{node: id, id: n.facts.BootID, vms: i.toStart(s, n), status: n.record()}
			b.status.StartedBootId = b.id
			boots = append(boots, b)
		}
	}
	return boots
}

// firstSeen notes a node's first boot that is known of: what ran there before,
// and was started since, is not ours to say.
func (n *node) firstSeen(bootID string) {
	if n.startedBoot == "" {
		n.startedBoot = bootID
	}
}

// silent tells whether nothing certain is known of the node's VMs now.
func (n *node) silent() bool { return !n.known || n.libvirtDown || !n.reachable() }

// untold tells whether another node's VMs will be known in a moment: one of
// them may be a VM that is to be started.
func (i *Inventory) untold(n *node) bool {
	for _, other := range i.nodes {
		if other != n && other.reachable() && !other.known && !other.libvirtDown {
			return true
		}
	}
	return false
}

// toStart are the VMs that are to be started on a node that has booted: they
// belong there, are off there and nowhere else, and nobody is at work on them.
func (i *Inventory) toStart(s *cluster.Snapshot, n *node) []cluster.Entry[*storev1.VM] {
	var list []cluster.Entry[*storev1.VM]
	for _, entry := range s.VMsOn(n.id) {
		vm := entry.Value
		d, has := n.domains[vm.GetUuid()]
		if !vm.GetAutostart() || !has || !d.GetPersistent() || d.GetState() != debvisorv1.VMState_VM_STATE_SHUTOFF {
			continue
		}
		_, inUse := s.InUse["vm/"+vm.GetUuid()]
		switch {
		case len(vm.GetConflictNodes()) > 0 || inUse:
			i.cfg.Log.Warn("VM not started after its node's boot: it is in conflict or in use", "vm", vm.GetUuid(), "name", vm.GetName(), "node", n.id)
		case i.elsewhere(s, n, vm.GetUuid()):
			i.cfg.Log.Warn("VM not started after its node's boot: another node has it too", "vm", vm.GetUuid(), "name", vm.GetName(), "node", n.id)
		default:
			list = append(list, entry)
		}
	}
	return list
}

// elsewhere tells whether another node has the VM, as it last said; one that is
// said to be powered off has nothing that runs, and a lost copy cannot write.
func (i *Inventory) elsewhere(s *cluster.Snapshot, n *node, uuid string) bool {
	for _, other := range i.nodes {
		_, has := other.domains[uuid]
		if !other.known {
			has = slices.Contains(other.listed, uuid)
		}
		if has && other != n && !s.ConfirmedOff(other.id) && !s.HasLost(uuid, other.id) {
			return true
		}
	}
	return false
}

// startAll orders the starts after a boot, and notes that it is done with.
func (i *Inventory) startAll(ctx context.Context, l election.Leadership, s *cluster.Snapshot, b boot) error {
	now := time.Now()
	var starts []*storev1.Operation
	var records []cluster.Entry[*storev1.VM]
	for _, entry := range b.vms {
		vm := entry.Value
		op := ordered(orderID(kindStart, b.node, b.id, vm.GetUuid()), kindStart, agentv1.PowerAction_POWER_ACTION_START, vm, b.node, now)
		op.Resources = []string{"vm/" + vm.GetUuid()}
		op.TraceId, op.Traceparent = i.cfg.Tracing.Root(op.GetId())
		if _, done := s.Operations[op.GetId()]; !done {
			starts, records = append(starts, op), append(records, entry)
		}
	}
	// gofail: var leaderBeforeBootStarts struct{}
	var revision int64
	for {
		n := min(len(starts), startsAtOnce)
		change := store.Change{Fence: l.Fence}
		for k, op := range starts[:n] {
			vm := records[k]
			change.Require = append(
				change.Require, store.Absent(store.OperationKey(op.GetId())), store.Absent(store.InUseKey(op.GetResources()[0])),
				store.Unchanged(store.VMKey(vm.Value.GetUuid()), vm.ModRevision),
			)
			change.Puts = append(change.Puts, store.PutProto(store.OperationKey(op.GetId()), op),
				store.PutString(store.InUseKey(op.GetResources()[0]), op.GetId()))
		}
		starts, records = starts[n:], records[n:]
		if len(starts) == 0 {
			change.Puts = append(change.Puts, store.PutProto(store.StatusKey(b.node), b.status))
		}
		var err error
		if revision, err = i.cfg.Store.Commit(ctx, change); err != nil {
			return err
		}
		// gofail: var leaderWhileBootStarts struct{}
		if len(starts) == 0 {
			break
		}
	}
	i.started(b)
	i.cfg.Log.Info("node has booted: its VMs with autostart are started", "node", b.node, "boot", b.id, "vms", len(b.vms))
	bounded, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	return i.cfg.View.Await(bounded, revision)
}

// started notes that a boot is done with.
func (i *Inventory) started(b boot) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if n, ok := i.nodes[b.node]; ok {
		n.startedBoot = b.id
	}
}
