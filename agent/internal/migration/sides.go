package migration

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// rememberFor is how long an ended task's side is told to the other agent. The
// leader's relay knows it for longer.
const rememberFor = time.Hour

// sides holds what this agent's tasks see of their side, for the other agent to
// ask.
type sides struct {
	now func() time.Time

	mu    sync.Mutex
	tasks map[string]*sideCell
}

func newSides(now func() time.Time) *sides {
	return &sides{now: now, tasks: map[string]*sideCell{}}
}

// sideCell is one task's side.
type sideCell struct {
	// asker is the only node that may ask.
	asker string

	mu      sync.Mutex
	side    *agentv1.Side
	changed chan struct{}
	// intake is a target's, for the source's volumes; nil: it takes none.
	intake  *intake
	endedAt time.Time // when the task ended; zero: it has not
}

// begin makes a task's side known, as the given one.
func (s *sides) begin(taskID, asker string, side *agentv1.Side) *sideCell {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.tasks {
		if c.forgotten(s.now()) {
			delete(s.tasks, id)
		}
	}
	c := &sideCell{asker: asker, side: side, changed: make(chan struct{})}
	s.tasks[taskID] = c
	return c
}

// find gives the cell of a task that this node may ask about; nil: none.
func (s *sides) find(taskID, asker string) *sideCell {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.tasks[taskID]; c != nil && c.asker == asker {
		return c
	}
	return nil
}

func (c *sideCell) forgotten(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.endedAt.IsZero() && now.Sub(c.endedAt) > rememberFor
}

// set changes the side; it tells whether it was a change.
func (c *sideCell) set(side *agentv1.Side) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if proto.Equal(c.side, side) {
		return false
	}
	c.side = side
	close(c.changed)
	c.changed = make(chan struct{})
	return true
}

// get gives the side, which must not be changed.
func (c *sideCell) get() *agentv1.Side {
	side, _ := c.look()
	return side
}

func (c *sideCell) look() (*agentv1.Side, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.side, c.changed
}

// end says that the task has ended; its side is remembered for a while.
func (c *sideCell) end(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endedAt = now
}

// awaitEnded gives the side when it has ended, or as it is when ctx ends.
func (c *sideCell) awaitEnded(ctx context.Context) *agentv1.Side {
	for {
		side, changed := c.look()
		if side.GetEnded() {
			return side
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return c.get()
		}
	}
}
