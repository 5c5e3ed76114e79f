package inventory

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// awaitTimeout is how long the snapshot may lag behind a write.
const awaitTimeout = 2 * time.Second

// placeVMs brings the records of VMs in line with what is reported.
func (i *Inventory) placeVMs(ctx context.Context, l election.Leadership, s *cluster.Snapshot) error {
	changes := i.decideAll(s)
	for len(changes) > 0 {
		chunk := firstChanges(changes)
		changes = changes[len(chunk):]
		err := i.commitVMs(ctx, l, chunk)
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			// Somebody changed one of them: the others go alone, and that one
			// is looked at again with the snapshot that has the change.
			for _, c := range chunk {
				if err = i.commitVMs(ctx, l, []*vmChange{c}); errors.As(err, &conflict) {
					err = nil
				}
				if err != nil {
					break
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// firstChanges is as many of the changes as one transaction takes.
func firstChanges(changes []*vmChange) []*vmChange {
	size := 0
	for k, c := range changes {
		size += proto.Size(c.vm) + proto.Size(c.was)
		if k > 0 && (size > chunkBytes || k >= chunkRecords/4) {
			return changes[:k]
		}
	}
	return changes
}

func (i *Inventory) decideAll(s *cluster.Snapshot) []*vmChange {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := &placer{
		snapshot: s, nodes: i.nodes, ids: slices.Sorted(maps.Keys(i.nodes)),
		now: time.Now(), since: i.timers,
	}
	uuids := map[string]struct{}{}
	for uuid := range s.VMs {
		uuids[uuid] = struct{}{}
	}
	for _, n := range i.nodes {
		for uuid := range n.domains {
			uuids[uuid] = struct{}{}
		}
	}
	maps.DeleteFunc(i.timers, func(key string, _ time.Time) bool {
		_, ok := uuids[key[strings.IndexByte(key, '/')+1:]]
		return !ok
	})
	var changes []*vmChange
	for _, uuid := range slices.Sorted(maps.Keys(uuids)) {
		if c := p.decide(uuid); c != nil {
			changes = append(changes, c)
		}
	}
	return changes
}

func (i *Inventory) commitVMs(ctx context.Context, l election.Leadership, changes []*vmChange) error {
	change := store.Change{Fence: l.Fence}
	for _, c := range changes {
		change.Require = append(change.Require, c.require...)
		if c.vm == nil {
			change.Deletes = append(change.Deletes, store.VMKey(c.uuid))
			change.Puts = append(change.Puts, store.PutProto(store.GoneVMKey(c.uuid), c.was))
		} else {
			change.Puts = append(change.Puts, store.PutProto(store.VMKey(c.uuid), c.vm))
		}
		if c.back {
			change.Deletes = append(change.Deletes, store.GoneVMKey(c.uuid))
		}
		for _, op := range c.orders {
			op.TraceId, op.Traceparent = i.cfg.Tracing.Root(op.GetId())
			change.Require = append(change.Require, store.Absent(store.OperationKey(op.GetId())))
			change.Puts = append(change.Puts, store.PutProto(store.OperationKey(op.GetId()), op))
		}
	}
	revision, err := i.cfg.Store.Commit(ctx, change)
	if err != nil {
		return err
	}
	// The next look must know of this one, or it would try the same again.
	bounded, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	if err := i.cfg.View.Await(bounded, revision); err != nil {
		return err
	}
	for _, c := range changes {
		for _, op := range c.orders {
			i.cfg.Log.Info("libvirt's autostart is taken over", store.OperationIDs(op).Args("vm", c.uuid, "name", c.vm.GetName(), "node", op.GetPower().GetNode())...)
		}
		switch {
		case c.alarm:
			i.cfg.Log.Error(c.note, "vm", c.uuid, "name", c.vm.GetName(), "nodes", c.vm.GetConflictNodes())
		case c.note != "":
			i.cfg.Log.Info(c.note, "vm", c.uuid, "name", c.vm.GetName(), "node", c.vm.GetNode(), "generation", c.vm.GetGeneration())
		}
	}
	return nil
}
