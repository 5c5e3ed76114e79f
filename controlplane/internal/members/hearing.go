package members

import (
	"context"
	"sync"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
)

// Hearing tells for how long each replica has been silent, by this host's own
// steady clock: a report counts from when it came here, and the date in it is for
// people, since its host's clock may be wrong. It is safe for concurrent use.
type Hearing struct {
	// View is the cluster's state, and a channel that is closed when it changes.
	View interface {
		Current() *cluster.Snapshot
		Changed() <-chan struct{}
	}
	// Now is the clock; nil is the machine's.
	Now func() time.Time

	mu    sync.Mutex
	heard map[string]report
}

// report is the last of one replica.
type report struct {
	revision int64
	came     time.Time
}

// Run follows what replicas say until ctx ends; it then returns nil.
func (h *Hearing) Run(ctx context.Context) error {
	for {
		changed := h.View.Changed()
		h.listen()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// listen notes what has come since. What was there before anybody listened is as
// old as its date says, for want of better, and not newer than now.
func (h *Hearing) listen() {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.View.Current()
	heard := make(map[string]report, len(s.ReplicaStatuses))
	for name, status := range s.ReplicaStatuses {
		last, known := h.heard[name]
		if !known || last.revision != status.ModRevision {
			last = report{status.ModRevision, now}
		}
		if age := now.Sub(status.Value.GetAt().AsTime()); !known && age > 0 {
			last.came = now.Add(-age)
		}
		heard[name] = last
	}
	h.heard = heard
}

// Silence is for how long a replica has said nothing; ever is false for one that
// never has.
func (h *Hearing) Silence(name string) (silence time.Duration, ever bool) {
	h.listen()
	h.mu.Lock()
	defer h.mu.Unlock()
	last, ever := h.heard[name]
	return h.now().Sub(last.came), ever
}

// Heard tells whether a replica has lately said how it is.
func (h *Hearing) Heard(name string) bool {
	silence, ever := h.Silence(name)
	return ever && silence < SilentAfter
}

func (h *Hearing) now() time.Time {
	if h.Now != nil {
		return h.Now()
	}
	return time.Now()
}
