package diskcopy

import (
	"context"
	"time"
)

const (
	pieceMost  = 64 << 10
	pieceLeast = 1 << 10
	// debtMost is how long too fast a beginning is repaid for at most, and how
	// much too slow a one is made up for.
	debtMost = 100 * time.Millisecond
)

// pace keeps what is sent under a limit that may change at any time.
type pace struct {
	limit func() uint64
	due   time.Time // when what was sent so far should have been
}

// piece is how much may be sent at once: a tenth of a second's worth.
func (p *pace) piece() int {
	if p.limit == nil {
		return chunkSize
	}
	limit := p.limit()
	if limit == 0 {
		return chunkSize
	}
	return int(min(max(limit/10, pieceLeast), pieceMost))
}

// wait waits until n bytes may be sent.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.limit == nil {
		return ctx.Err()
	}
	limit := p.limit()
	if limit == 0 {
		p.due = time.Time{}
		return ctx.Err()
	}
	now := time.Now()
	if p.due.Before(now.Add(-debtMost)) {
		p.due = now.Add(-debtMost)
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(limit) * float64(time.Second)))
	ahead := p.due.Sub(now)
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
