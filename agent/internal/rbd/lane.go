package rbd

import (
	"context"
	"errors"
	"sync"
)

// lane has one child at most, and bounds what is asked of it at once.
type lane struct {
	cfg  Config
	name string
	died func(address string)
	// slots are for calls, urgent for what the client itself needs to know.
	slots, urgent chan struct{}

	mu     sync.Mutex
	closed bool
	now    *process
}

func newLane(cfg Config, name string, calls int, died func(address string)) *lane {
	return &lane{cfg: cfg, name: name, died: died, slots: make(chan struct{}, calls), urgent: make(chan struct{}, 1)}
}

// process gives the child, started and connected.
func (l *lane) process(ctx context.Context) (*process, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, unanswered(false, "the agent stops")
	}
	if l.now == nil || l.now.over() || l.now.isDoomed() {
		l.now = start(l.cfg, l.name, l.died)
	}
	p := l.now
	l.mu.Unlock()
	select {
	case <-p.ready:
		return p, nil
	default:
	}
	select {
	case <-p.ready:
		return p, nil
	case <-p.dead:
		return nil, p.unconnected()
	case <-ctx.Done():
		return nil, unanswered(false, "Ceph is not connected yet").WithCause(ctx.Err())
	}
}

// renew ends a child that nobody waits for: the next call has a new connection.
func (l *lane) renew(why error) {
	l.mu.Lock()
	p := l.now
	l.mu.Unlock()
	if p != nil {
		p.killIdle(why)
	}
}

// kill ends the child, if there is one, and waits for its end.
func (l *lane) kill(why error) {
	l.mu.Lock()
	p := l.now
	l.mu.Unlock()
	if p != nil {
		p.kill(why)
		<-p.dead
	}
}

// close ends the child, and the lane has no other.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.kill(errors.New("the agent stops"))
}
