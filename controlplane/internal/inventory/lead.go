package inventory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	tickEvery = 500 * time.Millisecond
	// writeAll is how often the statuses of all nodes heard since are written
	// though no state has changed.
	writeAll = 30 * time.Second
)

// Begin takes over: when it returns nil, the view's snapshot holds all that
// former leaders wrote, and every clock has begun anew. Lead must follow.
func (i *Inventory) Begin(ctx context.Context, l election.Leadership) error {
	snapshot, err := i.current(ctx, l)
	if err != nil {
		return err
	}
	i.begin(snapshot, time.Now())
	return nil
}

// Lead keeps the records while this replica leads. It returns nil when ctx
// ends and store.ErrFenced when another leads; an etcd that does not answer is
// tried again.
func (i *Inventory) Lead(ctx context.Context, l election.Leadership) error {
	defer i.end()
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	all := time.NewTicker(writeAll)
	defer all.Stop()
	var seen *cluster.Snapshot
	for {
		changed := i.cfg.View.Changed()
		now := i.cfg.View.Current()
		err := i.writeStatuses(ctx, l, false)
		if err == nil {
			err = i.writeZFS(ctx, l, false)
		}
		if err == nil {
			err = i.writeCeph(ctx, l, false)
		}
		heard := i.newlyHeard(now)
		if err == nil && len(heard) > 0 {
			err = i.tellDifferences(ctx, l, now, heard)
		}
		if err == nil && (i.takeMoved() || seen == nil || vmsDiffer(seen, now) || len(heard) > 0) {
			if err = i.placeVMs(ctx, l, now); err == nil {
				err = i.writeDefinitions(ctx, l, now)
			}
			seen = now
		}
		if err == nil && len(heard) > 0 {
			err = i.noteHeard(ctx, l, heard)
		}
		if err == nil {
			err = i.startAfterBoots(ctx, l)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, store.ErrFenced) {
				return fmt.Errorf("writing the inventory: %w", err)
			}
			i.cfg.Log.Warn("inventory not written, will be tried again", "error", err)
			seen = nil
			changed = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-i.bellUnless(err):
		case <-changed:
		case <-tick.C:
			i.age(time.Now())
		case <-all.C:
			if err := i.writeStatuses(ctx, l, true); errors.Is(err, store.ErrFenced) {
				return fmt.Errorf("writing the inventory: %w", err)
			}
			if err := i.writeZFS(ctx, l, true); errors.Is(err, store.ErrFenced) {
				return fmt.Errorf("writing the nodes' ZFS: %w", err)
			}
			if err := i.writeCeph(ctx, l, true); errors.Is(err, store.ErrFenced) {
				return fmt.Errorf("writing the nodes' Ceph: %w", err)
			}
			if err := i.forgetGone(ctx, l, time.Now()); errors.Is(err, store.ErrFenced) {
				return fmt.Errorf("forgetting VMs: %w", err)
			}
		}
	}
}

// bellUnless is the bell, or nothing after a failure: the tick sets the pace.
func (i *Inventory) bellUnless(err error) <-chan struct{} {
	if err != nil {
		return nil
	}
	return i.bell
}

// current is the snapshot as it is now that this replica leads.
func (i *Inventory) current(ctx context.Context, l election.Leadership) (*cluster.Snapshot, error) {
	for {
		revision, err := i.cfg.Store.Commit(ctx, store.Change{Fence: l.Fence})
		if err == nil {
			if err := i.cfg.View.Await(ctx, revision); err != nil {
				return nil, err
			}
			return i.cfg.View.Current(), nil
		}
		if errors.Is(err, store.ErrFenced) || ctx.Err() != nil {
			return nil, fmt.Errorf("reading the inventory: %w", err)
		}
		i.cfg.Log.Warn("inventory not read, will be tried again", "error", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(tickEvery):
		}
	}
}

// begin starts every clock anew.
func (i *Inventory) begin(s *cluster.Snapshot, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.nodes, i.moved = map[string]*node{}, true
	clear(i.timers)
	for id, status := range s.Statuses {
		i.nodes[id] = newNode(id, status.Value, now)
	}
	for id, record := range s.ZFS {
		i.node(id).zfs.told = decode(record.Value.GetInventory(), &agentv1.ZfsInventory{})
	}
	for id, record := range s.Ceph {
		i.node(id).ceph.told = decode(record.Value.GetInventory(), &agentv1.CephInventory{})
	}
}

func (i *Inventory) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.nodes = nil
	for _, w := range i.waiters {
		close(w)
	}
	i.waiters = nil
}

func (i *Inventory) takeMoved() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	moved := i.moved || len(i.timers) > 0
	i.moved = false
	return moved
}
