package storage

import (
	"sync"
	"time"
)

// bounded runs what may hang, for each key once at a time. It is safe for
// concurrent use.
type bounded struct {
	mu    sync.Mutex
	slots map[string]chan struct{}
}

// within runs f on a goroutine of its own and waits for it, at most until late
// fires. ok is false when it has not ended by then, or when what was begun
// before with the same key still hangs.
func within[T any](b *bounded, key string, late <-chan struct{}, f func() T) (v T, ok bool) {
	slot := b.slot(key)
	select {
	case slot <- struct{}{}:
	case <-late:
		return v, false
	}
	done := make(chan T, 1)
	go func() {
		defer func() { <-slot }()
		done <- f()
	}()
	select {
	case v = <-done:
		return v, true
	case <-late:
		return v, false
	}
}

func (b *bounded) slot(key string) chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slots == nil {
		b.slots = map[string]chan struct{}{}
	}
	if b.slots[key] == nil {
		b.slots[key] = make(chan struct{}, 1)
	}
	return b.slots[key]
}

// after closes the channel it gives when d has passed; stop frees its timer.
func after(d time.Duration) (late <-chan struct{}, stop func() bool) {
	c := make(chan struct{})
	return c, time.AfterFunc(d, func() { close(c) }).Stop
}
