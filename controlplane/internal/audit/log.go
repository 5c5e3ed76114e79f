// Package audit keeps the audit log: one JSON object a line, in the order of
// events, each line tied to the one before it (shared/auditlog). A change waits
// until its line is on disk (Sync, many at once in one write); a read does not
// wait. While the file cannot be written the local syslog takes the lines, and
// they reach the file later; where that fails too, changes are refused.
package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/auditlog"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// flushEvery is how long a read's line may wait to be written.
	flushEvery = 200 * time.Millisecond
	// diskEvery is how long a read's line may wait to be on disk.
	diskEvery = time.Second
	// flushAt is how many bytes waiting are written at once.
	flushAt = 64 << 10
	// maxSpare is how much memory is kept for the next lines, bytes.
	maxSpare = 1 << 20
	// maxBacklog is how many bytes may wait for the disk; events beyond it are
	// lost, and the log says how many.
	maxBacklog = 16 << 20
	// syncTimeout is how long a change waits before it is refused.
	syncTimeout = time.Second
	// endTimeout is how long the last lines may take.
	endTimeout = 2 * time.Second
)

// Config is what a Log is told.
type Config struct {
	// Path is the file. It is made, for its owner to write and its group to
	// read, where there is none.
	Path string
	// Replica is the name of the replica whose log it is.
	Replica string
	// Syslog is the datagram socket of the local syslog, such as /dev/log;
	// empty: there is none.
	Syslog string
	Log    hclog.Logger
}

// Log is the audit log of one replica. Run writes; everything else may be
// called by many goroutines.
type Log struct {
	path string
	// replica is the replica's name as it stands in JSON.
	replica      string
	log          hclog.Logger
	syslog       syslog
	disk         *disk
	wake, reopen chan struct{}
	// opened is the end of the chain as it was found, for Run.
	opened auditlog.Head

	mu   sync.Mutex
	next *batch
	// spare is the memory of the batch before, for the one after.
	spare []byte
	// backlog is how many bytes Run has that are not on disk.
	backlog int
	ended   bool
	// failed is why changes are refused; stuck says that they would wait for it.
	failed error
	stuck  bool
	// degraded says that only syslog has the last lines.
	degraded bool
	// lost are events that found no room, since when.
	lost      int
	lostSince time.Time
	// synced is the end of what is on disk, written of what can be read.
	synced, written auditlog.Head
	// grown is closed when the file has more lines.
	grown chan struct{}
	tallied
}

// batch is lines that are written together.
type batch struct {
	// lines are without their links, which Run adds.
	lines []byte
	// sync says that somebody waits for them to be on disk.
	sync bool
	// end is the number of the last line that must be.
	end  uint64
	done chan struct{}
	err  error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// newLog makes a log of what is opened already.
func newLog(cfg Config, d *disk, s syslog) *Log {
	replica := quote(cfg.Replica, maxField)
	return &Log{
		path: cfg.Path, replica: string(replica[1 : len(replica)-1]), log: cfg.Log, syslog: s, disk: d, next: newBatch(),
		wake: make(chan struct{}, 1), reopen: make(chan struct{}, 1), grown: make(chan struct{}),
	}
}

// Add adds an event; it does not wait. It tells whether there was room for it:
// a change whose event had none must not be made, whatever Sync says.
func (l *Log) Add(e *Event) (kept bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full() {
		if l.lost++; l.lost == 1 {
			l.lostSince = time.Now()
		}
		l.lostEver++
		return false
	}
	l.tellLost()
	if l.oldest.IsZero() {
		l.oldest = e.Time
	}
	l.next.lines = e.append(l.next.lines, l.replica)
	if len(l.next.lines) >= flushAt {
		l.nudge()
	}
	return true
}

// full tells whether no event can be kept; l.mu is held.
func (l *Log) full() bool { return len(l.next.lines)+l.backlog >= maxBacklog }

// tellLost writes down that events are missing here; l.mu is held.
func (l *Log) tellLost() {
	if l.lost == 0 {
		return
	}
	now := time.Now()
	reason := fmt.Sprintf("%d events between %s and %s are missing: the log could not be written", l.lost, stamp(l.lostSince), stamp(now))
	l.log.Error("audit events were lost while the log could not be written", "events", l.lost)
	l.lost = 0
	l.next.lines = (&Event{Time: now, Kind: EventsLost, Principal: itself, Reason: reason}).append(l.next.lines, l.replica)
}

// Sync waits until all that was added before is on disk, or with syslog where
// the disk fails. Its error is Unavailable: the change that waits must not be
// made.
func (l *Log) Sync(ctx context.Context) error {
	l.mu.Lock()
	switch {
	case l.ended:
		l.mu.Unlock()
		return unavailable(os.ErrClosed)
	case l.stuck && !l.degraded:
		defer l.mu.Unlock()
		return unavailable(l.failed)
	}
	b := l.next
	b.sync = true
	l.nudge()
	l.mu.Unlock()
	timeout := time.NewTimer(syncTimeout)
	defer timeout.Stop()
	select {
	case <-b.done:
		if b.err != nil {
			return unavailable(b.err)
		}
		return nil
	case <-timeout.C:
		return unavailable(fmt.Errorf("not on disk within %s", syncTimeout))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Healthy tells why changes are refused, nil while they are not.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil && l.full() {
		return ErrFull
	}
	return l.failed
}

// Head is the end of the chain as far as it is on disk.
func (l *Log) Head() auditlog.Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced
}

// Grown is closed once the file has more lines than it has now.
func (l *Log) Grown() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.grown
}

// Reopen lets the log go on in the file that then is at its path: what was
// added before is written to the old one, whose name it may have been moved to.
func (l *Log) Reopen() {
	select {
	case l.reopen <- struct{}{}:
	default: // it is about to
	}
}

// nudge wakes Run; l.mu is held.
func (l *Log) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// ErrFull refuses a change whose event had no room.
var ErrFull = unavailable(errors.New("more events wait for the disk than memory holds"))

func unavailable(cause error) error {
	return errdefs.New(errdefs.Unavailable, "AUDIT_UNAVAILABLE",
		"the audit log of this replica cannot be written, so nothing is changed; try another replica").
		WithRetry(time.Second).WithCause(cause)
}
