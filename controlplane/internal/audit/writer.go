package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/debvisor/debvisor/shared/auditlog"
)

// patience is how long the disk may take before syslog is turned to.
const patience = 400 * time.Millisecond

// writer is what Run knows: the chain's end, and the lines on their way.
type writer struct {
	*Log
	// head is the last line that has its link.
	head auditlog.Head
	// tail is the lines that are not known to be on disk; written and logged
	// are how many bytes of them the file and syslog have.
	tail            []byte
	written, logged int
	waiting         []*batch
	// busy says that the disk has a job, which ends the chain at target; hung
	// that it has taken long, givenUp that it has taken too long; exchanging that
	// the file will be another after it.
	busy, hung, givenUp, exchanging bool
	size                            int
	target                          auditlog.Head
	patience                        *time.Timer
	// began is when the disk got its job.
	began time.Time
	// reopening says that the file is to be opened anew.
	reopening bool
	syncedAt  time.Time
}

// Run writes until ctx ends, then what is left, and closes the file. It does
// not wait for a disk that does not answer.
func (l *Log) Run(ctx context.Context) error {
	go l.disk.run()
	w := &writer{Log: l, head: l.opened, patience: time.NewTimer(patience), syncedAt: time.Now()}
	w.patience.Stop()
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.wake:
		case <-tick.C:
		case o := <-l.disk.outcomes:
			w.settle(o)
			if o.err != nil {
				continue // tried again by the next who waits, or the next tick
			}
			// Who was let go may have the next change at hand: it comes along.
			runtime.Gosched()
		case <-w.patience.C:
			w.despair()
		case <-l.reopen:
			w.reopening = true
		case <-ctx.Done():
			return w.end()
		}
		w.take()
		w.begin()
	}
}

// take ties the lines at hand to the chain.
func (w *writer) take() {
	if w.exchanging && !w.hung {
		return // the first line of a new file says that it is one
	}
	w.mu.Lock()
	if w.lost > 0 && !w.full() {
		w.tellLost()
	}
	b := w.next
	if len(b.lines) == 0 && !b.sync {
		w.mu.Unlock()
		return
	}
	w.next = newBatch()
	w.next.lines, w.spare = w.spare, nil
	w.backlog += len(b.lines)
	w.mu.Unlock()

	w.link(b.lines)
	b.end = w.head.Sequence
	if b.sync {
		w.waiting = append(w.waiting, b)
	}
	w.mu.Lock()
	w.backlog = len(w.tail)
	if cap(b.lines) <= maxSpare {
		w.spare = b.lines[:0]
	}
	w.mu.Unlock()
	b.lines = nil
	if w.hung {
		w.resort() // nobody knows when the disk will be back
	}
}

// link adds lines to the tail, each with its number and the hash of the one
// before it.
func (w *writer) link(lines []byte) {
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n')
		begin := len(w.tail)
		w.tail = auditlog.AppendLink(w.tail, w.head.Sequence+1, w.head.Hash)
		w.tail = append(w.tail, lines[:end]...)
		w.head = auditlog.Head{Sequence: w.head.Sequence + 1, Hash: auditlog.HashOf(w.tail[begin:])}
		w.tail = append(w.tail, '\n')
		lines = lines[end+1:]
	}
}

// begin gives the disk its next job, if there is any.
func (w *writer) begin() {
	if w.busy {
		return
	}
	due := time.Since(w.syncedAt) >= diskEvery || len(w.tail) >= maxBacklog/8
	sync := w.reopening || len(w.waiting) > 0 || len(w.tail) > 0 && due
	if !sync && w.written == len(w.tail) {
		return
	}
	w.start(job{sync: sync, reopen: w.reopening})
	w.reopening = false
}

func (w *writer) start(j job) {
	j.lines, j.from = w.tail, w.written
	w.busy, w.exchanging, w.size, w.target = true, j.reopen, len(w.tail), w.head
	w.patience.Reset(patience)
	w.began = time.Now()
	w.disk.jobs <- j
}

// settle takes note of what came of the disk's job.
func (w *writer) settle(o outcome) {
	w.busy, w.hung, w.givenUp, w.exchanging = false, false, false, false
	w.patience.Stop()
	w.written = o.written
	switch {
	case o.err != nil:
		w.fallBack(o.err)
	default:
		w.advance(o)
	}
	w.reopened(o)
}

// advance forgets the lines that are on disk and tells those who wait.
func (w *writer) advance(o outcome) {
	if o.synced {
		rest := w.tail[w.size:]
		if len(rest) == 0 && cap(w.tail) <= maxSpare {
			w.tail = w.tail[:0] // no job is under way that would read it
		} else {
			w.tail = append([]byte(nil), rest...)
		}
		w.written, w.logged, w.syncedAt = 0, max(0, w.logged-w.size), time.Now()
		// Last, so that whoever hears that its line is on disk finds the log healthy.
		defer w.release(w.target.Sequence, nil)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.backlog = len(w.tail)
	if o.synced {
		w.synced = w.target
		w.onDisk(w.began, len(w.tail)+len(w.next.lines) == 0)
		w.note(nil, false)
	}
	if w.target.Sequence > w.Log.written.Sequence {
		w.Log.written = w.target
		close(w.grown)
		w.grown = make(chan struct{})
	}
}

// release tells those whose lines end at a number, or before it.
func (w *writer) release(end uint64, err error) {
	var left []*batch
	for _, b := range w.waiting {
		if b.end > end {
			left = append(left, b)
			continue
		}
		b.err = err
		close(b.done)
	}
	w.waiting = left
}

// fallBack turns to syslog after the disk has failed, and refuses those who
// wait if that fails too.
func (w *writer) fallBack(diskErr error) {
	err := w.toSyslog()
	if err != nil {
		err = fmt.Errorf("%w; %w", diskErr, err)
	}
	w.release(w.target.Sequence, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures++
	if err == nil {
		w.degrade(diskErr)
		return
	}
	w.note(err, false)
}

// despair turns to syslog when the disk has not answered for long, and gives it
// up for now when it has not for twice as long.
func (w *writer) despair() {
	w.givenUp, w.hung = w.hung, true
	if !w.givenUp {
		w.patience.Reset(patience)
		w.mu.Lock()
		w.failures++
		w.mu.Unlock()
	}
	w.resort()
}

// resort gives syslog the lines for which the disk does not answer. Those who
// wait go on waiting if it does not take them: the disk may still.
func (w *writer) resort() {
	diskErr := fmt.Errorf("the disk has not answered for %s", patience)
	err := w.toSyslog()
	if err == nil {
		w.release(w.head.Sequence, nil)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		w.degrade(diskErr)
	case w.givenUp || w.degraded:
		w.note(fmt.Errorf("%w; %w", diskErr, err), true)
	}
}

// toSyslog gives syslog the lines that are not known to be on disk.
func (w *writer) toSyslog() error {
	n, err := w.syslog.send(w.tail[w.logged:])
	w.logged += n
	return err
}

// degrade remembers that only syslog has the last lines; l.mu is held.
func (l *Log) degrade(diskErr error) {
	if !l.degraded {
		l.log.Warn("the audit log cannot be written: syslog has its lines until it can", "error", diskErr)
	}
	l.failed, l.stuck, l.degraded = nil, false, true
}

// note remembers why the log cannot be written, and whether it would take long
// to say so again; nil: it can. l.mu is held.
func (l *Log) note(err error, stuck bool) {
	switch {
	case err != nil && l.failed == nil:
		l.log.Error("the audit log cannot be written: changes are refused", "error", err)
	case err == nil && (l.failed != nil || l.degraded):
		l.log.Info("the audit log can be written again")
	}
	l.failed, l.stuck, l.degraded = err, stuck, false
}

// reopened takes note of a new file, and begins it.
func (w *writer) reopened(o outcome) {
	switch {
	case errors.Is(o.reopenErr, errSame):
		return
	case o.reopenErr != nil:
		w.log.Error("the audit log goes on in the file that it had", "error", o.reopenErr)
		return
	case !o.reopened:
		return
	}
	w.log.Info("the audit log was opened anew", "path", w.path)
	begins := &Event{Time: time.Now(), Kind: LogOpened, Principal: itself, Reason: "goes on after the file was opened anew"}
	w.link(begins.append(nil, w.replica))
	w.mu.Lock()
	w.backlog = len(w.tail)
	w.mu.Unlock()
}

// end writes what is left, and closes the file.
func (w *writer) end() error {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.take()
	timeout := time.NewTimer(endTimeout)
	defer timeout.Stop()
	for last := false; ; {
		if !w.busy {
			w.start(job{sync: len(w.tail) > 0 || len(w.waiting) > 0, end: true})
			last = true
		}
		select {
		case o := <-w.disk.outcomes:
			w.settle(o)
			if last {
				return w.left(o.err)
			}
		case <-w.patience.C:
			w.despair()
		case <-timeout.C:
			err := fmt.Errorf("the disk has not answered for %s", endTimeout)
			w.release(w.head.Sequence, err)
			close(w.disk.jobs) // should it ever come back
			return w.left(err)
		}
	}
}

// left tells what could not be written to the end.
func (w *writer) left(err error) error {
	switch {
	case err == nil:
		return nil
	case w.logged == len(w.tail):
		w.log.Warn("the last lines of the audit log are with syslog only", "error", err)
		return nil
	default:
		return fmt.Errorf("the last %d lines of the audit log were not written: %w", bytes.Count(w.tail[w.logged:], []byte{'\n'}), err)
	}
}
