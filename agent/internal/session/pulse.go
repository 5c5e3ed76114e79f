package session

import (
	"sync"
	"time"
)

// pulse measures the round trip of heartbeats. It is safe for concurrent use.
type pulse struct {
	mu     sync.Mutex
	seq    uint64
	sentAt map[uint64]time.Time
	last   time.Duration
}

// sent numbers a heartbeat that goes out now.
func (p *pulse) sent(now time.Time) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sentAt == nil {
		p.sentAt = map[uint64]time.Time{}
	}
	p.seq++
	p.sentAt[p.seq] = now
	return p.seq
}

// answered notes an answer; one to an unknown number is ignored.
func (p *pulse) answered(seq uint64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.sentAt[seq]
	if !ok {
		return
	}
	p.last = now.Sub(at)
	for old := range p.sentAt {
		if old <= seq {
			delete(p.sentAt, old)
		}
	}
}

// rtt is the last round trip; 0: none yet.
func (p *pulse) rtt() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}
