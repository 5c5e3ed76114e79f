package migration

import (
	"sync"
	"time"

	"github.com/debvisor/debvisor/agent/internal/hypervisor"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// defaultDowntime is libvirt's own limit of a switch-over.
	defaultDowntime = 300 * time.Millisecond
	// heldSlack and heldFactor are how much more memory than the switch-over may
	// leave must be left to copy for a guest that stands still to be taken for
	// one that somebody paused.
	heldSlack  = 1 << 20
	heldFactor = 4
)

// share is how fast a migration may go, MiB/s; 0: there is no limit. own is its
// limit, node that of all together which leave the node, 0 where there is none.
func share(own, node uint64, leaving int) uint64 {
	if node == 0 {
		return own
	}
	part := max(node/uint64(max(leaving, 1)), 1)
	if own == 0 {
		return part
	}
	return min(own, part)
}

// leaving are the migrations that leave this node, which share its bandwidth.
type leaving struct {
	mu    sync.Mutex
	bells map[chan struct{}]struct{}
}

// join adds one; its bell rings when their number has changed.
func (l *leaving) join(bell chan struct{}) (leave func()) {
	l.change(func() { l.bells[bell] = struct{}{} })
	return func() { l.change(func() { delete(l.bells, bell) }) }
}

func (l *leaving) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	for bell := range l.bells {
		ring(bell)
	}
}

func (l *leaving) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.bells)
}

// stall notices that nothing is copied any more.
type stall struct {
	done  uint64
	since time.Time
}

// look takes how much has been copied, and tells for how long it has been that.
func (s *stall) look(done uint64, now time.Time) time.Duration {
	if s.since.IsZero() || done != s.done {
		s.done, s.since = done, now
	}
	return now.Sub(s.since)
}

// remedy is what is done about a migration that does not get on.
type remedy int

const (
	carryOn remedy = iota
	// pauseGuest: so that it dirties no more memory.
	pauseGuest
	// endLate: its deadline has passed.
	endLate
	// endStalled: nothing was copied for too long.
	endStalled
)

// remedyFor decides about a migration that copies since elapsed and has not got
// on since stalled. still: the guest stands still, so that pausing it is no use.
func remedyFor(spec *agentv1.MigrateSend, elapsed, stalled time.Duration, still bool) remedy {
	over := func(passed time.Duration, limit uint64) bool {
		return limit > 0 && passed >= time.Duration(limit)*time.Millisecond
	}
	switch {
	case over(stalled, spec.GetStallMs()):
		return endStalled
	case still, !over(elapsed, spec.GetDeadlineMs()):
		return carryOn
	case spec.GetPauseAtDeadline() && !spec.GetOffline():
		return pauseGuest
	default:
		return endLate
	}
}

// held tells whether a guest that was seen to stand still before job was asked
// for was paused by somebody, rather than for the switch-over. In the latter no
// more is left than can be copied in the time that it may take, by the same
// measure of speed. In doubt it was for the switch-over.
func held(job *hypervisor.Job, maxDowntime time.Duration) bool {
	if job.MemoryDone == 0 && job.MemoryRemaining == 0 {
		return true // disks go first: memory has not even begun
	}
	if maxDowntime == 0 {
		maxDowntime = defaultDowntime
	}
	may := heldFactor * float64(job.PerSecond) * maxDowntime.Seconds()
	return job.PerSecond > 0 && float64(job.MemoryRemaining) > heldSlack+may
}
