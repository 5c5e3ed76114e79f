package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

// call runs f on the connection, and returns when f has, when ctx ends or when
// the call timeout has passed; f then goes on alone. doing is for the error.
func call[T any](ctx context.Context, h *Hypervisor, doing string, f func(*libvirt.Connect) (T, error)) (T, error) {
	return patient(ctx, h, h.cfg.CallTimeout, doing, f)
}

// patient is call with a timeout of its own, for what libvirt takes long over.
func patient[T any](ctx context.Context, h *Hypervisor, most time.Duration, doing string, f func(*libvirt.Connect) (T, error)) (T, error) {
	var none T
	h.mu.Lock()
	l, down := h.link, h.down
	h.mu.Unlock()
	if l == nil {
		return none, unavailable(fmt.Errorf("%s: %w", doing, down))
	}
	timeout := time.NewTimer(most)
	defer timeout.Stop()
	var conn *libvirt.Connect
	select {
	case conn = <-l.free:
	case <-timeout.C:
		return none, unavailable(fmt.Errorf("%s: too many calls wait for libvirtd", doing))
	case <-ctx.Done():
		return none, unavailable(fmt.Errorf("%s: %w", doing, ctx.Err()))
	}
	if !l.begin() {
		l.free <- conn
		return none, unavailable(fmt.Errorf("%s: the connection to libvirtd has just ended", doing))
	}
	c := &pendingCall[T]{done: make(chan struct{})}
	go func() {
		value, err := f(conn)
		if err != nil {
			err = l.explain(conn, doing, err)
		}
		l.end(conn, c.finish(value, err))
	}()
	var late error
	select {
	case <-c.done:
		return c.value, c.err
	case <-timeout.C:
		late = errors.New("libvirtd does not answer")
	case <-ctx.Done():
		late = ctx.Err()
	}
	if c.abandon(l) {
		return none, unavailable(fmt.Errorf("%s: %w", doing, late))
	}
	return c.value, c.err
}

// pendingCall is a call that two goroutines see: the one in C and the asker.
type pendingCall[T any] struct {
	done chan struct{}

	mu        sync.Mutex
	finished  bool
	abandoned bool
	value     T
	err       error
}

// finish keeps the result and tells whether the asker had gone.
func (c *pendingCall[T]) finish(value T, err error) (wasAbandoned bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finished, c.value, c.err = true, value, err
	close(c.done)
	return c.abandoned
}

// abandon leaves the call to itself; false: it has just finished.
func (c *pendingCall[T]) abandon(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		return false
	}
	c.abandoned = true
	l.stick()
	return true
}

// explain gives an error of a call its kind; it is called while the call still
// counts as active, so that the connection is there.
func (l *link) explain(conn *libvirt.Connect, doing string, err error) error {
	if alive, dead := conn.IsAlive(); dead == nil && alive {
		return translate(doing, err)
	}
	l.lose(err)
	return unavailable(fmt.Errorf("%s: %w", doing, err))
}
