package inventory

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

// maxDefinitionBytes bounds a definition that is kept; agents tell none that is
// larger.
const maxDefinitionBytes = 256 << 10

// definitions are what a node told of its domains' definitions, by UUID.
type definitions map[string]*agentv1.DomainDefinition

// take takes an inventory of a node that has those domains by now.
func (s *definitions) take(inv *agentv1.Inventory, domains map[string]domain) {
	if *s == nil {
		*s = definitions{}
	}
	for _, d := range inv.GetDefinitions() {
		if len(d.GetXml()) <= maxDefinitionBytes {
			(*s)[d.GetUuid()] = d
		}
	}
	if inv.GetComplete() || len(inv.GetGone()) > 0 {
		maps.DeleteFunc(*s, func(uuid string, _ *agentv1.DomainDefinition) bool {
			_, has := domains[uuid]
			return !has
		})
	}
}

// definitionChange is what is to become of one VM's definition.
type definitionChange struct {
	uuid    string
	record  *storev1.Definition // nil: deleted
	require store.Condition     // what it rests on
}

// writeDefinitions brings the definitions that are kept in line with what the nodes
// that VMs belong to tell of them.
func (i *Inventory) writeDefinitions(ctx context.Context, l election.Leadership, s *cluster.Snapshot) error {
	changes := i.decideDefinitions(s)
	for len(changes) > 0 {
		chunk := firstDefinitions(changes)
		changes = changes[len(chunk):]
		err := i.commitDefinitions(ctx, l, chunk)
		if errors.As(err, new(*store.ConflictError)) {
			// One of the VMs has changed: the others go alone, and that one is
			// looked at again with the snapshot that has the change.
			for _, c := range chunk {
				if err = i.commitDefinitions(ctx, l, []definitionChange{c}); errors.As(err, new(*store.ConflictError)) {
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

// firstDefinitions is as many of the changes as one transaction takes.
func firstDefinitions(changes []definitionChange) []definitionChange {
	size := 0
	for k, c := range changes {
		size += proto.Size(c.record)
		if k > 0 && (size > chunkBytes || k >= chunkRecords/4) {
			return changes[:k]
		}
	}
	return changes
}

func (i *Inventory) commitDefinitions(ctx context.Context, l election.Leadership, changes []definitionChange) error {
	change := store.Change{Fence: l.Fence}
	for _, c := range changes {
		change.Require = append(change.Require, c.require)
		if c.record == nil {
			change.Deletes = append(change.Deletes, store.DefinitionKey(c.uuid))
		} else {
			change.Puts = append(change.Puts, store.PutProto(store.DefinitionKey(c.uuid), c.record))
		}
	}
	revision, err := i.cfg.Store.Commit(ctx, change)
	if err != nil {
		return err
	}
	// The next look must know of this one, or it would write the same again.
	bounded, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	return i.cfg.View.Await(bounded, revision)
}

func (i *Inventory) decideDefinitions(s *cluster.Snapshot) []definitionChange {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	var changes []definitionChange
	for uuid, vm := range s.VMs {
		if c, ok := i.decideDefinition(s, uuid, vm, now); ok {
			changes = append(changes, c)
		}
	}
	for uuid := range s.Definitions {
		if _, has := s.VMs[uuid]; !has {
			changes = append(changes, definitionChange{uuid: uuid, require: store.Absent(store.VMKey(uuid))})
		}
	}
	slices.SortFunc(changes, func(a, b definitionChange) int { return strings.Compare(a.uuid, b.uuid) })
	return changes
}

// decideDefinition decides over one VM: only the node that it belongs to says what
// its definition is, and while that is silent the last one stays.
func (i *Inventory) decideDefinition(s *cluster.Snapshot, uuid string, vm cluster.Entry[*storev1.VM], now time.Time) (c definitionChange, ok bool) {
	n := i.nodes[vm.Value.GetNode()]
	if n == nil || !n.known || len(vm.Value.GetConflictNodes()) > 0 {
		return c, false
	}
	d, has := n.domains[uuid]
	if !has {
		return c, false
	}
	c = definitionChange{uuid: uuid, require: store.Unchanged(store.VMKey(uuid), vm.ModRevision)}
	entry, kept := s.Definitions[uuid]
	was, hash := entry.Value, d.GetDefinitionHash()
	if hash == "" {
		return c, kept
	}
	text := was.GetXml()
	if was.GetHash() != hash {
		told := n.definitions[uuid]
		if told.GetHash() != hash {
			return c, false // it is about to be told
		}
		text = told.GetXml()
	} else if told := n.definitions[uuid]; told.GetHash() == hash {
		told.Xml = text // the same bytes: one copy of them is enough
	}
	if kept && was.GetHash() == hash && was.GetNode() == vm.Value.GetNode() && was.GetGeneration() == vm.Value.GetGeneration() &&
		slices.Equal(was.GetBoundToHost(), d.GetBoundToHost()) {
		return c, false
	}
	c.record = &storev1.Definition{
		VmUuid: uuid, Node: vm.Value.GetNode(), Generation: vm.Value.GetGeneration(),
		Hash: hash, Xml: text, ReportedAt: timestamppb.New(now), BoundToHost: d.GetBoundToHost(),
	}
	return c, true
}
