package inventory

import (
	"context"
	"sync"
	"time"
)

// sampler takes a measurement that may hang, on its own goroutine, and keeps
// the last one. It is safe for concurrent use.
type sampler[T any] struct {
	every time.Duration
	take  func(context.Context) T
	wake  chan struct{} // a measurement is wanted before its time

	mu    sync.Mutex
	last  T
	began time.Time // of the measurement under way; zero: none
}

func newSampler[T any](every time.Duration, take func(context.Context) T) *sampler[T] {
	return &sampler[T]{every: every, take: take, wake: make(chan struct{}, 1)}
}

// run measures until ctx ends. A measurement that hangs for ever is left
// behind: run returns nevertheless.
func (s *sampler[T]) run(ctx context.Context) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	done := make(chan T, 1)
	s.start(ctx, done)
	busy, wanted, resting := true, false, (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case v := <-done:
			s.mu.Lock()
			took := time.Since(s.began)
			s.last, s.began = v, time.Time{}
			s.mu.Unlock()
			pause := min(rest*took, s.every/5)
			if busy = pause > 0; busy {
				resting = time.After(pause)
			}
		case <-resting:
			busy = false
		case <-tick.C:
			wanted = wanted || !busy
		case <-s.wake:
			wanted = true
		}
		if wanted && !busy {
			s.start(ctx, done)
			busy, wanted = true, false
		}
	}
}

// rest is for how long after a measurement none is begun, in times of what it took,
// and no longer than a fifth of the usual pause: where something is changed all the
// time, looking is not what most time goes to.
const rest = 4

// poke has a measurement begin now, or soon after the one under way, which may
// have looked already. It never waits.
func (s *sampler[T]) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *sampler[T]) start(ctx context.Context, done chan<- T) {
	s.mu.Lock()
	s.began = time.Now()
	s.mu.Unlock()
	go func() { done <- s.take(ctx) }()
}

// latest is the last measurement and for how long another has been under way.
func (s *sampler[T]) latest() (v T, under time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began.IsZero() {
		under = time.Since(s.began)
	}
	return s.last, under
}
