package machine

import (
	"io"
	"sync"
)

// A queue is a pipe without a bound: what is put in never waits for who takes it out, so that one stream that nobody reads does not
// hold up the others of a serial line.
type queue struct {
	mu     sync.Mutex
	filled *sync.Cond
	data   []byte
	ended  bool
}

func newQueue() *queue {
	q := &queue{}
	q.filled = sync.NewCond(&q.mu)
	return q
}

// put adds to the queue; nothing ends it.
func (q *queue) put(raw []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(raw) == 0 {
		q.ended = true
	} else if !q.ended {
		q.data = append(q.data, raw...)
	}
	q.filled.Signal()
}

// drain writes all that comes to w until the queue ends or w fails.
func (q *queue) drain(w io.Writer) {
	for {
		q.mu.Lock()
		for len(q.data) == 0 && !q.ended {
			q.filled.Wait()
		}
		raw := q.data
		q.data = nil
		q.mu.Unlock()
		if len(raw) == 0 {
			return
		}
		if _, err := w.Write(raw); err != nil {
			return
		}
	}
}
