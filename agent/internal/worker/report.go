package worker

import (
	"slices"
	"strings"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	progressEvery = time.Second
	resendEvery   = 5 * time.Second
)

// live is what is known of a task in memory only.
type live struct {
	progress  *agentv1.TaskProgress
	dirty     bool // progress not sent yet
	urgent    bool // to be sent at once
	sentAt    time.Time
	cancelled chan struct{}
	relayed   chan *agentv1.Side
}

// newLive is of a task whose state is to be told.
func newLive() *live {
	return &live{urgent: true, cancelled: make(chan struct{}), relayed: make(chan *agentv1.Side, 1)}
}

func (l *live) isCancelled() bool {
	select {
	case <-l.cancelled:
		return true
	default:
		return false
	}
}

// relay keeps the newest side only; callers hold the worker's mu.
func (l *live) relay(side *agentv1.Side) {
	select {
	case <-l.relayed:
	default:
	}
	l.relayed <- side
}

// dueAt is when the task is to be reported; never: the zero time.
func (l *live) dueAt(e *entry, now time.Time) time.Time {
	switch {
	case l.urgent:
		return now
	case task.Ended(e.state):
		return l.sentAt.Add(resendEvery)
	case l.dirty:
		return l.sentAt.Add(progressEvery)
	}
	return time.Time{}
}

func (l *live) sent(now time.Time) { l.sentAt, l.dirty, l.urgent = now, false, false }

func (l *live) report(e *entry) *agentv1.TaskReport {
	return &agentv1.TaskReport{TaskId: e.id, State: e.state, Progress: l.progress, Outcome: e.outcome}
}

// Open reports every task that has not ended or whose end no leader has
// acknowledged: what a session begins with. All count as sent.
func (w *Worker) Open() []*agentv1.TaskReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var reports []*agentv1.TaskReport
	for id, l := range w.live {
		reports = append(reports, l.report(w.entries[id]))
		l.sent(now)
	}
	sortReports(reports)
	return reports
}

// Due takes the reports that are to be sent now, and tells when the next will
// be (zero: not before Wake). It does not wait.
func (w *Worker) Due() (reports []*agentv1.TaskReport, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for id, l := range w.live {
		e := w.entries[id]
		at := l.dueAt(e, now)
		if at.IsZero() {
			continue
		}
		if !at.After(now) {
			reports = append(reports, l.report(e))
			l.sent(now)
			at = l.dueAt(e, now)
		}
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	sortReports(reports)
	return reports, next
}

// Wake is sent to when Due has something new to say.
func (w *Worker) Wake() <-chan struct{} { return w.wake }

// ring makes the channel's reader look again, without waiting for it.
func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// note makes a task's report due: at once, or within the second.
func (w *Worker) note(id string, progress *agentv1.TaskProgress, urgent bool) {
	w.mu.Lock()
	if l := w.live[id]; l != nil {
		if progress != nil {
			l.progress = progress
		}
		l.dirty = true
		l.urgent = l.urgent || urgent
	}
	w.mu.Unlock()
	ring(w.wake)
}

func sortReports(reports []*agentv1.TaskReport) {
	slices.SortFunc(reports, func(a, b *agentv1.TaskReport) int { return strings.Compare(a.GetTaskId(), b.GetTaskId()) })
}
