package api

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// beatsWindow is how long the first of a group of heartbeats waits for
	// others, so that a thousand nodes cost etcd no thousand transactions.
	beatsWindow = 100 * time.Millisecond
	// beatsMost is how many heartbeats one transaction holds.
	beatsMost = 500
	// beatsTimeout is how long a group may take to be written.
	beatsTimeout = 3 * time.Second
)

// heartbeats writes the health that nodes report by the unary Heartbeat, many
// at once.
type heartbeats struct {
	store *store.Store
	queue chan beat
}

type beat struct {
	record *storev1.NodeHealth
	done   chan<- error
}

func newHeartbeats(st *store.Store) *heartbeats {
	return &heartbeats{store: st, queue: make(chan beat, beatsMost)}
}

// put writes one heartbeat and waits until it is in etcd. Errors:
// ResourceExhausted when too many wait already; the store's.
func (h *heartbeats) put(ctx context.Context, node string, health *debvisorv1.Health, now time.Time) error {
	if health.GetTimestamp() == nil {
		health = proto.CloneOf(health)
		health.Timestamp = moment(now)
	}
	encoded, err := proto.Marshal(health)
	if err != nil {
		return fmt.Errorf("encoding the health of %s: %w", node, err)
	}
	done := make(chan error, 1)
	record := &storev1.NodeHealth{Id: node, Health: encoded, ReceivedAt: timestamppb.New(now)}
	select {
	case h.queue <- beat{record, done}:
	default:
		return errdefs.New(errdefs.ResourceExhausted, "TOO_MANY_HEARTBEATS",
			"more heartbeats come than can be written; report less often").WithRetry(time.Second)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run writes groups until ctx ends; who still waits then is told.
func (h *heartbeats) run(ctx context.Context) {
	for {
		select {
		case first := <-h.queue:
			h.write(ctx, h.gather(ctx, first))
		case <-ctx.Done():
			for {
				select {
				case b := <-h.queue:
					b.done <- errdefs.New(errdefs.Unavailable, "STOPPING", "this replica stops; try another")
				default:
					return
				}
			}
		}
	}
}

// gather collects what comes within the window.
func (h *heartbeats) gather(ctx context.Context, first beat) []beat {
	group := []beat{first}
	window := time.NewTimer(beatsWindow)
	defer window.Stop()
	for len(group) < beatsMost {
		select {
		case b := <-h.queue:
			group = append(group, b)
		case <-window.C:
			return group
		case <-ctx.Done():
			return group
		}
	}
	return group
}

// write writes a group in one transaction; of two heartbeats of one node the
// later counts.
func (h *heartbeats) write(ctx context.Context, group []beat) {
	ctx, cancel := context.WithTimeout(ctx, beatsTimeout)
	defer cancel()
	latest := map[string]*storev1.NodeHealth{}
	for _, b := range group {
		latest[b.record.GetId()] = b.record
	}
	var change store.Change
	for id, record := range latest {
		change.Puts = append(change.Puts, store.PutProto(store.HealthKey(id), record))
	}
	_, err := h.store.Commit(ctx, change)
	for _, b := range group {
		b.done <- err
	}
}
