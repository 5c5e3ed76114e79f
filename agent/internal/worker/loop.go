package worker

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/shared/task"
)

const pruneEvery = time.Hour

// call tells Run's loop what happened; one field is set.
type call struct {
	accepted  string
	cancelled string
	ping      chan<- struct{}
}

func (w *Worker) takeCalls() []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.inbox
	w.inbox = nil
	return calls
}

func (w *Worker) brokenErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

// queues holds, for each resource, the ids of its tasks: the first runs, the
// others wait in the order in which they were accepted.
type queues map[string][]string

// Run resumes what a former process left and runs what is accepted, until ctx
// ends (nil) or the journal cannot be written. It returns once no kind runs.
func (w *Worker) Run(ctx context.Context) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()
	defer stop() // before Wait

	q := queues{}
	finished := make(chan string)
	start := func(id string) {
		group.Go(func() {
			w.execute(running, id)
			select {
			case finished <- id:
			case <-running.Done():
			}
		})
	}
	enqueue := func(id string) {
		e := w.get(id)
		resource := e.resource()
		if task.Ended(e.state) || slices.Contains(q[resource], id) {
			return // accepted before Run's first look, which took it already
		}
		q[resource] = append(q[resource], id)
		if len(q[resource]) == 1 {
			start(id)
		}
	}
	for _, id := range w.unended() {
		enqueue(id)
	}
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.dead:
			return w.brokenErr()
		case <-w.bell:
			for _, c := range w.takeCalls() {
				switch {
				case c.ping != nil:
					close(c.ping)
				case c.accepted != "":
					enqueue(c.accepted)
				default:
					w.cancelWaiting(q, c.cancelled)
				}
			}
		case id := <-finished:
			for resource, ids := range q {
				if ids[0] == id {
					q.next(resource, start)
					break
				}
			}
		case now := <-tick.C:
			_ = w.prune(now) // its failure closes dead
		}
	}
}

// next lets the resource's next task run.
func (q queues) next(resource string, start func(string)) {
	q[resource] = q[resource][1:]
	if len(q[resource]) == 0 {
		delete(q, resource)
		return
	}
	start(q[resource][0])
}

// cancelWaiting ends a task that waits for its resource and was never begun.
func (w *Worker) cancelWaiting(q queues, id string) {
	e := w.get(id)
	if e == nil || e.began || task.Ended(e.state) {
		return
	}
	i := slices.Index(q[e.resource()], id)
	if i <= 0 {
		return
	}
	q[e.resource()] = slices.Delete(q[e.resource()], i, i+1)
	w.end(id, cancelledBefore())
}

// unended lists the tasks to resume, those begun first, then by acceptance.
func (w *Worker) unended() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var open []*entry
	for _, e := range w.entries {
		if !task.Ended(e.state) {
			open = append(open, e)
		}
	}
	slices.SortFunc(open, func(a, b *entry) int {
		if a.began != b.began {
			if a.began {
				return -1
			}
			return 1
		}
		if c := a.acceptedAt.Compare(b.acceptedAt); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	ids := make([]string, len(open))
	for i, e := range open {
		ids[i] = e.id
	}
	return ids
}
