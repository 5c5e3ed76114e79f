// Package pace keeps what is sent under a limit of bytes a second. It knows
// nothing of what is sent, and holds no more than a moment.
package pace

import (
	"context"
	"sync"
	"time"
)

const (
	// PieceMost is the most that is sent at once under a limit.
	PieceMost  = 64 << 10
	pieceLeast = 1 << 10
	// debtMost is how long too fast a beginning is repaid for at most, and how
	// much too slow a one is made up for.
	debtMost = 100 * time.Millisecond
)

// Pace keeps what is sent under a limit that may change at any time. All who wait
// on the same Pace share its limit. A nil Pace has none.
type Pace struct {
	// Limit is how many bytes a second may be sent; nil, or 0: any number.
	Limit func() uint64

	mu  sync.Mutex
	due time.Time // when what was sent so far should have been
}

func (p *Pace) limit() uint64 {
	if p == nil || p.Limit == nil {
		return 0
	}
	return p.Limit()
}

// Piece is how much may be sent at once: a tenth of a second's worth; most where
// there is no limit.
func (p *Pace) Piece(most int) int {
	limit := p.limit()
	if limit == 0 {
		return most
	}
	return int(min(max(limit/10, pieceLeast), PieceMost, uint64(most)))
}

// Wait waits until n bytes may be sent, or ctx ends, whose error it then is.
func (p *Pace) Wait(ctx context.Context, n int) error {
	ahead := p.ahead(n)
	if ahead <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(ahead)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// ahead takes n bytes into account and tells how long to wait for them.
func (p *Pace) ahead(n int) time.Duration {
	limit := p.limit()
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if limit == 0 {
		p.due = time.Time{}
		return 0
	}
	now := time.Now() // with a limit only: there are machines where it costs
	if p.due.Before(now.Add(-debtMost)) {
		p.due = now.Add(-debtMost)
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(limit) * float64(time.Second)))
	return p.due.Sub(now)
}
