package inventory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// maxDifferences bounds what is kept of how a backup and the truth differ.
const maxDifferences = 1000

// follow moves the placement, while the cluster returns from a backup, to the
// only node that runs the VM: the one that it belongs to by the backup has but a
// definition of it, which it has left since, or was told to destroy.
func (p *placer) follow(uuid string, home domain, next *storev1.VM, c *vmChange) {
	if !p.snapshot.Recovering() || atWork(home.GetState()) || p.runsOn(uuid) != 1 {
		return
	}
	c.note = "VM adopted: it runs on another node than the backup says"
	next.Node = p.holder(uuid)
	next.Generation++
}

// atWork tells whether a domain has a QEMU, or may have one.
func atWork(state debvisorv1.VMState) bool {
	return state != debvisorv1.VMState_VM_STATE_SHUTOFF && state != debvisorv1.VMState_VM_STATE_CRASHED
}

// foreignFor is how long what an agent is at for the former cluster is waited for:
// it is asked to end it when it tells of it.
const foreignFor = 2 * time.Minute

// Foreign takes which tasks, that no record knows, an agent is at when its session
// begins. In a restored cluster they may be starting a VM: the node is not heard
// until they have ended.
func (i *Inventory) Foreign(id string, tasks []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.node(id)
	if n == nil {
		return
	}
	n.foreign, n.foreignSince = map[string]bool{}, time.Now()
	for _, t := range tasks {
		n.foreign[t] = true
	}
}

// ForeignEnded takes that one of them has ended.
func (i *Inventory) ForeignEnded(id, task string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if n := i.node(id); n != nil {
		delete(n.foreign, task)
		i.ring()
	}
}

// atForeign tells whether the agent is still at what the former cluster ordered.
func (n *node) atForeign(now time.Time) bool {
	return len(n.foreign) > 0 && now.Sub(n.foreignSince) < foreignFor
}

// newlyHeard are the nodes that a restored cluster has waited for and that have
// said now what they run, sorted.
func (i *Inventory) newlyHeard(s *cluster.Snapshot) []string {
	if !s.Recovering() {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	var heard []string
	now := time.Now()
	for id, n := range i.nodes {
		if _, registered := s.Nodes[id]; registered && n.heardNow && !n.silent() && !n.atForeign(now) && !slices.Contains(s.Restore.Value.GetHeardNodes(), id) {
			heard = append(heard, id)
		}
	}
	slices.Sort(heard)
	return heard
}

// differences tells how what these nodes run differs from the records.
func (i *Inventory) differences(s *cluster.Snapshot, nodes []string) []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var list []string
	for _, id := range nodes {
		n := i.nodes[id]
		if n == nil {
			continue
		}
		for _, vm := range s.VMsOn(id) {
			if _, has := n.domains[vm.Value.GetUuid()]; !has {
				list = append(list, fmt.Sprintf("VM %s (%s) is not on %s, where it was when the backup was taken", vm.Value.GetName(), vm.Value.GetUuid(), id))
			}
		}
		for _, uuid := range slices.Sorted(maps.Keys(n.domains)) {
			if line := differs(s, id, n.domains[uuid]); line != "" {
				list = append(list, line)
			}
		}
	}
	return list
}

// differs tells how one domain differs from the VM's record; "": not in what
// matters.
func differs(s *cluster.Snapshot, node string, d domain) string {
	does := "has"
	if d.GetState() == debvisorv1.VMState_VM_STATE_RUNNING {
		does = "runs"
	}
	entry, known := s.VMs[d.GetUuid()]
	switch {
	case !known:
		return fmt.Sprintf("%s %s VM %s (%s), which the backup does not know", node, does, d.GetName(), d.GetUuid())
	case entry.Value.GetNode() != node:
		return fmt.Sprintf("%s %s VM %s (%s), which was on %s when the backup was taken", node, does, d.GetName(), d.GetUuid(), entry.Value.GetNode())
	}
	var was agentv1.Domain
	if proto.Unmarshal(entry.Value.GetDomain(), &was) != nil || atWork(was.GetState()) == atWork(d.GetState()) {
		return ""
	}
	if atWork(d.GetState()) {
		return fmt.Sprintf("VM %s (%s) runs on %s, and was off when the backup was taken", d.GetName(), d.GetUuid(), node)
	}
	return fmt.Sprintf("VM %s (%s) is off on %s, and ran when the backup was taken", d.GetName(), d.GetUuid(), node)
}

// tellDifferences writes down how the backup differs from what nodes say, before
// the records are made to follow.
func (i *Inventory) tellDifferences(ctx context.Context, l election.Leadership, s *cluster.Snapshot, nodes []string) error {
	was := s.Restore
	next := proto.CloneOf(was.Value)
	for _, line := range i.differences(s, nodes) {
		if len(next.GetDifferences()) < maxDifferences && !slices.Contains(next.GetDifferences(), line) {
			next.Differences = append(next.Differences, line)
			i.cfg.Log.Warn("restored from a backup: " + line)
		}
	}
	if len(next.GetDifferences()) == len(was.Value.GetDifferences()) {
		return nil
	}
	return i.writeRestore(ctx, l, next, was.ModRevision)
}

// noteHeard writes down that what these nodes run is in the records now.
func (i *Inventory) noteHeard(ctx context.Context, l election.Leadership, nodes []string) error {
	was := i.cfg.View.Current().Restore
	next := proto.CloneOf(was.Value)
	next.HeardNodes = slices.Compact(slices.Sorted(slices.Values(append(next.GetHeardNodes(), nodes...))))
	if err := i.writeRestore(ctx, l, next, was.ModRevision); err != nil {
		return err
	}
	i.cfg.Log.Info("restored from a backup: what nodes run is in the records", "nodes", nodes)
	return nil
}

func (i *Inventory) writeRestore(ctx context.Context, l election.Leadership, next *storev1.Restore, modRevision int64) error {
	revision, err := i.cfg.Store.Commit(ctx, store.Change{
		Fence: l.Fence, Require: []store.Condition{store.Unchanged(store.RestoreKey(), modRevision)},
		Puts: []store.Put{store.PutProto(store.RestoreKey(), next)},
	})
	if err != nil {
		return fmt.Errorf("writing how the return from a backup goes: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	return i.cfg.View.Await(bounded, revision)
}
