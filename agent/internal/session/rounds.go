package session

import (
	"fmt"
	"sync/atomic"
	"time"
)

// stuckAfter is far longer than a session's loops take to go round, whatever
// replicas and the network do.
const stuckAfter = 25 * time.Second

// rounds remembers when a session's loops last went round, by a monotonic clock.
type rounds struct {
	born time.Time
	at   atomic.Int64
}

func newRounds() *rounds { return &rounds{born: time.Now()} }

func (r *rounds) mark() { r.at.Store(int64(time.Since(r.born))) }

// Alive tells whether the session is worked at: a heartbeat is sent, or a leader
// looked for. Whether there is one it does not tell.
func (s *Session) Alive() error {
	since := time.Since(s.cfg.rounds.born) - time.Duration(s.cfg.rounds.at.Load())
	if since > stuckAfter {
		return fmt.Errorf("the session with the leader has stood still for %s", since.Truncate(time.Second))
	}
	return nil
}
