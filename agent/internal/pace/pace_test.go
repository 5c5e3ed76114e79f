package pace

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestShared: those who share a pace stay under its limit together, and a change
// of the limit is followed.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1 << 20
		now := uint64(limit)
		p := &Pace{Limit: func() uint64 { return now }}
		began := time.Now()
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				for sent := 0; sent < 5*limit; {
					n := p.Piece(1 << 20)
					if err := p.Wait(t.Context(), n); err != nil {
						t.Error(err)
					}
					sent += n
				}
			})
		}
		group.Wait()
		if took := time.Since(began); took < 10*time.Second-2*debtMost || took > 10*time.Second+2*debtMost {
			t.Errorf("10 MiB at 1 MiB/s took %s", took)
		}
		now, began = 0, time.Now()
		if err := p.Wait(t.Context(), 1<<30); err != nil || time.Since(began) > 0 {
			t.Errorf("without a limit it took %s: %v", time.Since(began), err)
		}
	})
}

// TestNoLimit: neither a nil Pace nor one without a limit holds anything up.
func TestNoLimit(t *testing.T) {
	for _, p := range []*Pace{nil, {}} {
		if n := p.Piece(77); n != 77 {
			t.Errorf("a piece of %d", n)
		}
		if err := p.Wait(t.Context(), 1<<40); err != nil {
			t.Error(err)
		}
	}
}

// TestEnds: who waits is let go when the context ends.
func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p := &Pace{Limit: func() uint64 { return 1 }}
		if err := p.Wait(ctx, 1000); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
