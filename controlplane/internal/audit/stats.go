package audit

import "time"

// Stats is how the log keeps up.
type Stats struct {
	// Lines is how many lines of the chain are on disk, of all time.
	Lines uint64
	// Lag is the age of the oldest event that is not known to be on disk; 0:
	// all are.
	Lag time.Duration
	// Waiting is how many bytes of events are in memory only.
	Waiting int
	// Lost is how many events found no room, Failures how often the disk failed
	// to take a batch of lines or left it unanswered, both since the start.
	Lost, Failures uint64
	// Degraded says that only syslog has the last lines, Refusing that changes
	// are refused.
	Degraded, Refusing bool
}

// tallied is what a Log counts for its Stats; the Log's mu holds it.
type tallied struct {
	// oldest is when the oldest event was that is not known to be on disk.
	oldest             time.Time
	lostEver, failures uint64
}

// onDisk notes that all events from before a moment are on disk, and whether
// there are none from after it.
func (t *tallied) onDisk(before time.Time, all bool) {
	t.oldest = before
	if all {
		t.oldest = time.Time{}
	}
}

// Stats tells how the log keeps up.
func (l *Log) Stats(now time.Time) Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{
		Lines: l.synced.Sequence, Waiting: len(l.next.lines) + l.backlog, Lost: l.lostEver, Failures: l.failures,
		Degraded: l.degraded, Refusing: l.failed != nil || l.full(),
	}
	if !l.oldest.IsZero() {
		s.Lag = max(now.Sub(l.oldest), 0)
	}
	return s
}
