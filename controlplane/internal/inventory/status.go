package inventory

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
)

const (
	chunkRecords = 500
	chunkBytes   = 512 << 10
)

// writeStatuses writes the nodes whose state has changed, with all: every node
// of which there is anything new. What cannot be written stays to be written.
func (i *Inventory) writeStatuses(ctx context.Context, l election.Leadership, all bool) error {
	records, waiters := i.takeStatuses(all)
	var revision int64
	for len(records) > 0 {
		chunk := firstChunk(records)
		change := store.Change{Fence: l.Fence}
		for _, r := range chunk {
			change.Puts = append(change.Puts, store.PutProto(store.StatusKey(r.GetId()), r))
		}
		at, err := i.cfg.Store.Commit(ctx, change)
		if err != nil {
			i.giveBack(records, waiters)
			return err
		}
		revision, records = at, records[len(chunk):]
	}
	for _, w := range waiters {
		w <- revision
	}
	return nil
}

// takeStatuses takes what is to be written, and who waits for it. Whoever
// waits has made its node urgent before.
func (i *Inventory) takeStatuses(all bool) ([]*storev1.NodeStatus, []chan<- int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var records []*storev1.NodeStatus
	for _, n := range i.nodes {
		if n.urgent || all && n.dirty {
			n.urgent, n.dirty = false, false
			records = append(records, n.record())
		}
	}
	slices.SortFunc(records, func(a, b *storev1.NodeStatus) int { return strings.Compare(a.GetId(), b.GetId()) })
	waiters := i.waiters
	i.waiters = nil
	return records, waiters
}

func (i *Inventory) giveBack(records []*storev1.NodeStatus, waiters []chan<- int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, r := range records {
		if n, ok := i.nodes[r.GetId()]; ok {
			n.urgent = true
		}
	}
	i.waiters = append(i.waiters, waiters...)
}

// firstChunk is as many of the records as one transaction takes.
func firstChunk[M proto.Message](records []M) []M {
	size := 0
	for i, r := range records {
		size += proto.Size(r)
		if i > 0 && (size > chunkBytes || i >= chunkRecords) {
			return records[:i]
		}
	}
	return records
}
