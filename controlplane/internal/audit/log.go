// Package audit keeps the audit log: one JSON object a line, in the order of
// events. A change waits until its line is on disk (Sync, many at once in one
// write); a read does not wait.
package audit

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// flushEvery is how long a read's line may wait to be written.
	flushEvery = 200 * time.Millisecond
	// flushAt is how many bytes waiting are written at once.
	flushAt = 64 << 10
	// maxSpare is how much memory is kept for the next lines, bytes.
	maxSpare = 1 << 20
	// maxBacklog is how many bytes may wait while the file cannot be written;
	// lines beyond it are lost, and the log says how many.
	maxBacklog = 8 << 20
	// syncTimeout is how long a change waits before it is refused.
	syncTimeout = time.Second
)

// file is what the log writes to.
type file interface {
	io.WriteCloser
	Sync() error
}

// Log is the audit log of one replica. Run writes; everything else may be
// called by many goroutines.
type Log struct {
	file file
	log  hclog.Logger
	wake chan struct{}

	mu   sync.Mutex
	next *batch
	// spare is the memory of the batch before, for the one after.
	spare  []byte
	ended  bool
	failed error
	lost   int
}

// batch is lines that are written together.
type batch struct {
	lines []byte
	// sync says that somebody waits for them to be on disk.
	sync bool
	done chan struct{}
	err  error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Open opens the log at path for appending, and makes it where it is missing.
func Open(path string, log hclog.Logger) (*Log, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	return newLog(f, log), nil
}

func newLog(f file, log hclog.Logger) *Log {
	return &Log{file: f, log: log, wake: make(chan struct{}, 1), next: newBatch()}
}

// Add adds an event; it does not wait.
func (l *Log) Add(e *Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.next.lines) >= maxBacklog {
		l.lost++
		return
	}
	l.next.lines = e.append(l.next.lines)
	if len(l.next.lines) >= flushAt {
		l.nudge()
	}
}

// Sync waits until all that was added before is on disk. Its error is
// Unavailable: the change that waits must not be made.
func (l *Log) Sync(ctx context.Context) error {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return unavailable(os.ErrClosed)
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
		err := fmt.Errorf("not on disk within %s", syncTimeout)
		l.mu.Lock()
		l.note(err)
		l.mu.Unlock()
		return unavailable(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Healthy tells why the log cannot be written, nil while it can.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Run writes until ctx ends, then what is left, and closes the file.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.wake:
		case <-tick.C:
		case <-ctx.Done():
			l.mu.Lock()
			l.ended = true
			l.mu.Unlock()
			l.flush()
			if err := l.file.Close(); err != nil {
				return fmt.Errorf("closing the audit log: %w", err)
			}
			return nil
		}
		l.flush()
	}
}

// nudge wakes Run; l.mu is held.
func (l *Log) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// flush writes the batch at hand. What could not be written stays for the next
// time, so that no line is torn; those who wait for it are told at once.
func (l *Log) flush() {
	l.mu.Lock()
	b := l.next
	if len(b.lines) == 0 && !b.sync {
		l.mu.Unlock()
		return
	}
	l.next = newBatch()
	l.next.lines, l.spare = l.spare, nil
	lost := l.lost
	l.lost = 0
	l.mu.Unlock()

	n, err := l.file.Write(b.lines)
	if err == nil && b.sync {
		err = l.file.Sync()
	}
	b.err = err
	l.settle(b.lines, n, err, lost)
	close(b.done)
}

// settle keeps the lines that were not written, or the memory of those that were.
func (l *Log) settle(lines []byte, written int, err error, lost int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rest := lines[written:]; len(rest) > 0 {
		l.next.lines = append(rest, l.next.lines...)
	} else if cap(lines) <= maxSpare {
		l.spare = lines[:0]
	}
	if lost > 0 {
		l.log.Error("audit events were lost while the log could not be written", "events", lost)
	}
	l.note(err)
}

// note remembers whether the log can be written, and logs a change of it; l.mu
// is held.
func (l *Log) note(err error) {
	switch {
	case err != nil && l.failed == nil:
		l.log.Error("the audit log cannot be written: changes are refused", "error", err)
	case err == nil && l.failed != nil:
		l.log.Info("the audit log can be written again")
	}
	l.failed = err
}

func unavailable(cause error) error {
	return errdefs.New(errdefs.Unavailable, "AUDIT_UNAVAILABLE",
		"the audit log of this replica cannot be written, so nothing is changed; try another replica").
		WithRetry(time.Second).WithCause(cause)
}
