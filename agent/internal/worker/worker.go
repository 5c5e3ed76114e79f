package worker

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

// ErrStaleTerm refuses a leader older than the newest that this agent ever
// heard.
var ErrStaleTerm = errors.New("term is older than the highest seen")

// ErrUnconfirmedEpoch refuses the leader of an epoch that a restore from a backup
// began and that no operator has confirmed: the cluster that this agent knows may
// be at work.
var ErrUnconfirmedEpoch = errors.New("the epoch was begun by a restore from a backup, and no operator has confirmed it")

// keepEnded is how long an acknowledged task's end is remembered.
const keepEnded = 7 * 24 * time.Hour

// Config is what a worker is made of.
type Config struct {
	// Path is the journal's file; it is made where it is missing.
	Path  string
	Kinds []Kind
	// BootID is the kernel's; empty: nobody asks in which boot a task was accepted.
	BootID string
	// Tracing makes the spans of tasks; nil: there are none.
	Tracing *obs.Tracing
	Log     hclog.Logger
}

// IDs are what lines about a task are found by.
func IDs(t *agentv1.Task) obs.IDs {
	return obs.IDs{Trace: obs.TraceOf(t.GetTraceparent()), Operation: t.GetOperationId(), Task: t.GetId()}
}

// MarkBoot is a mark that a task has from when it is accepted, as is MarkBoot, a
// blank and the boot's id: after a boot a VM is started on the leader's word alone,
// and this one's may be from before it.
const MarkBoot = "boot"

// OfThisBoot tells whether a task was accepted in a boot, as far as is known.
func OfThisBoot(run Run, bootID string) bool {
	return !run.Marked(MarkBoot) || run.Marked(MarkBoot+" "+bootID)
}

// Worker runs tasks. It is safe for concurrent use.
type Worker struct {
	kinds   map[string]Kind
	bootID  string
	log     hclog.Logger
	tracing *obs.Tracing
	journal *journal

	// writing is held over a change: read, journal, then publish. mu is held
	// for memory only, so that reports and heartbeats never wait for a disk.
	// writing is taken before mu.
	writing sync.Mutex
	mu      sync.Mutex
	entries map[string]*entry
	live    map[string]*live // of every entry that is not acknowledged
	term    task.Term
	placed  map[string]placement // the newest told of each VM, by its UUID
	broken  error

	inbox []call        // what Run's loop must know
	bell  chan struct{} // the inbox has something
	wake  chan struct{} // a report is due
	dead  chan struct{} // closed when the journal broke
}

// Open opens the journal. Nothing runs before Run.
func Open(cfg Config) (*Worker, error) {
	j, err := openJournal(cfg.Path)
	if err != nil {
		return nil, err
	}
	term, entries, err := j.load()
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	placed, err := j.placements()
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	w := &Worker{
		kinds: map[string]Kind{}, bootID: cfg.BootID, log: cfg.Log, tracing: cfg.Tracing, journal: j,
		entries: entries, live: map[string]*live{}, term: term, placed: placed,
		bell: make(chan struct{}, 1), wake: make(chan struct{}, 1), dead: make(chan struct{}),
	}
	for _, k := range cfg.Kinds {
		w.kinds[k.Name()] = k
	}
	for id, e := range entries {
		if !e.acknowledged {
			w.live[id] = newLive()
		}
	}
	return w, nil
}

// Close closes the journal. Run must have returned.
func (w *Worker) Close() error { return w.journal.close() }

// JournalID is the random id made with the journal.
func (w *Worker) JournalID() string { return w.journal.id }

// HighestTerm is the newest leader's term that the journal holds.
func (w *Worker) HighestTerm() task.Term {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.term
}

// Admit asks whether a leader of that term may be obeyed. A term that is new
// is on disk when it returns nil; an older one is ErrStaleTerm, and one of a
// later epoch ErrUnconfirmedEpoch: a leader must have been welcomed by Welcome
// first.
func (w *Worker) Admit(t task.Term) error { return w.Welcome(t, 0) }

// Welcome is Admit for a leader that says which epoch an operator has confirmed
// last; 0: none. An agent that never heard a leader obeys any.
func (w *Worker) Welcome(t task.Term, confirmedEpoch uint64) error {
	if highest := w.HighestTerm(); t == highest && !t.IsZero() {
		return nil
	}
	w.writing.Lock()
	defer w.writing.Unlock()
	highest := w.HighestTerm()
	if t.Less(highest) || t.IsZero() {
		return fmt.Errorf("term %s, highest %s: %w", t, highest, ErrStaleTerm)
	}
	if !highest.IsZero() && t.Epoch > highest.Epoch && t.Epoch > confirmedEpoch {
		return fmt.Errorf("term %s, highest %s: %w", t, highest, ErrUnconfirmedEpoch)
	}
	if t == highest {
		return nil
	}
	if err := w.journal.setTerm(t); err != nil {
		return w.fail(fmt.Errorf("journaling term %s: %w", t, err))
	}
	w.mu.Lock()
	w.term = t
	w.mu.Unlock()
	return nil
}

// Accept takes a task of an admitted leader. It is on disk when Accept returns
// nil, and its state is reported. A task that the journal has is not taken
// again: how it stands is reported once more.
func (w *Worker) Accept(t *agentv1.Task) error {
	if t.GetId() == "" {
		return errors.New("a task without an id cannot be accepted")
	}
	if w.remind(t.GetId()) {
		return nil
	}
	w.writing.Lock()
	defer w.writing.Unlock()
	if w.remind(t.GetId()) {
		return nil
	}
	e := &entry{id: t.GetId(), task: t, state: task.Accepted, acceptedAt: time.Now()}
	if w.bootID != "" {
		e.marks = []string{MarkBoot, MarkBoot + " " + w.bootID}
	}
	told := w.newer(t, e.acceptedAt)
	if err := w.journal.accept(e, told); err != nil {
		return w.fail(fmt.Errorf("journaling task %s: %w", e.id, err))
	}
	w.mu.Lock()
	if told != nil {
		w.placed[told.vm] = *told
	}
	w.entries[e.id] = e
	w.live[e.id] = newLive()
	w.inbox = append(w.inbox, call{accepted: e.id})
	w.mu.Unlock()
	ring(w.bell)
	w.log.Info("task accepted", e.ids().Args("term", task.TermOf(t.GetTerm()), "observe_only", t.GetObserveOnly())...)
	ring(w.wake)
	return nil
}

// remind makes a known task's report due again.
func (w *Worker) remind(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.entries[id]
	if !ok {
		return false
	}
	if w.live[id] == nil {
		w.live[id] = newLive() // the end was acknowledged: it is told anew
	}
	w.live[id].urgent = true
	w.log.Info("task delivered again", e.ids().Args("state", e.state)...)
	ring(w.wake)
	return true
}

// Cancel asks a task to end; how it ends is its kind's. Unknown and ended ones
// are ignored.
func (w *Worker) Cancel(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.live[id]
	if l == nil || l.isCancelled() {
		return
	}
	close(l.cancelled)
	w.inbox = append(w.inbox, call{cancelled: id})
	ring(w.bell)
	w.log.Info("task to be cancelled", w.entries[id].ids().Args()...)
}

// Relay gives a task what the leader says of the other agent's side.
func (w *Worker) Relay(id string, side *agentv1.Side) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.live[id]; l != nil {
		l.relay(side)
	}
}

// Acknowledge notes that a leader has the task's end: it is reported no more,
// and only its id and end are kept.
func (w *Worker) Acknowledge(id string) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	e := w.entries[id]
	w.mu.Unlock()
	if e == nil || !task.Ended(e.state) {
		return nil
	}
	if !e.acknowledged {
		c := e.clone()
		c.task, c.marks, c.acknowledged = nil, nil, true
		if err := w.journal.put(c); err != nil {
			return w.fail(fmt.Errorf("journaling the acknowledgement of %s: %w", id, err))
		}
		e = c
	}
	w.mu.Lock()
	w.entries[id] = e
	delete(w.live, id)
	w.mu.Unlock()
	return nil
}

// change journals a changed copy of an entry, then publishes it.
func (w *Worker) change(id string, edit func(*entry)) (*entry, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.mu.Lock()
	c := w.entries[id].clone()
	w.mu.Unlock()
	edit(c)
	if err := w.journal.put(c); err != nil {
		return nil, w.fail(fmt.Errorf("journaling task %s: %w", id, err))
	}
	w.mu.Lock()
	w.entries[id] = c
	w.mu.Unlock()
	return c, nil
}

// prune forgets the ends that are old enough.
func (w *Worker) prune(now time.Time) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	var old []string
	w.mu.Lock()
	for id, e := range w.entries {
		if e.acknowledged && now.Sub(e.endedAt) > keepEnded {
			old = append(old, id)
		}
	}
	var forgotten []string
	for vm, p := range w.placed {
		if now.Sub(p.At) > keepPlacement {
			forgotten = append(forgotten, vm)
		}
	}
	w.mu.Unlock()
	if err := w.forget(forgotten); err != nil {
		return err
	}
	if len(old) == 0 {
		return nil
	}
	if err := w.journal.drop(old); err != nil {
		return w.fail(fmt.Errorf("pruning the journal: %w", err))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.entries, func(_ string, e *entry) bool {
		return e.acknowledged && now.Sub(e.endedAt) > keepEnded
	})
	return nil
}

// fail notes that the journal cannot be written, which ends Run.
func (w *Worker) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil {
		w.broken = err
		close(w.dead)
	}
	return err
}

// get is the task's entry as it stands.
func (w *Worker) get(id string) *entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.entries[id]
}
