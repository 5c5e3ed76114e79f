package api

import (
	"fmt"
	"sync"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// maxTallied is how many callers' refusals are summed up one by one; those of
// others beyond it are one sum.
const maxTallied = 1 << 16

// tally sums up refusals that may come by the thousand. The first one of a
// caller is told at once; those that follow are told once in a while, with their
// number, so that nothing is unaudited and nobody fills the log.
type tally struct {
	every time.Duration
	log   *audit.Log

	mu   sync.Mutex
	sums map[sumOf]*sum
}

// sumOf is what refusals have in common.
type sumOf struct{ caller, code string }

// sum is refusals that wait to be told.
type sum struct {
	began time.Time
	more  int
	// last is that of the latest call.
	trace, principal, peer, method string
	refusal                        *errdefs.Error
	kind                           audit.Kind
}

func newTally(every time.Duration, log *audit.Log) tally {
	return tally{every: every, log: log, sums: map[sumOf]*sum{}}
}

// tell takes the refusal of a call.
func (t *tally) tell(k *call, err error) {
	refusal := errdefs.Of(err)
	of := sumOf{name(k.caller), refusal.Code}
	if of.caller == "" {
		of.caller = network(k.peer)
	}
	if t.add(of, k, refusal) {
		e := k.result(k.kind, nil, err)
		t.log.Add(&e)
	}
}

// add counts a refusal, and tells whether it is the first.
func (t *tally) add(of sumOf, k *call, refusal *errdefs.Error) (first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sums[of]
	if s == nil && len(t.sums) >= maxTallied {
		of.caller = "others"
		s = t.sums[of]
	}
	if s == nil {
		t.sums[of] = &sum{began: k.began}
		return true
	}
	s.more++
	s.trace, s.principal, s.peer, s.method, s.refusal, s.kind = k.trace, name(k.caller), k.peer, k.method, refusal, k.kind
	return false
}

// flush tells the sums that are old enough, and forgets callers of whom nothing
// more was refused.
func (t *tally) flush(now time.Time) {
	t.flushIf(func(s *sum) bool { return now.Sub(s.began) >= t.every }, now)
}

// flushAll tells every sum.
func (t *tally) flushAll() {
	t.flushIf(func(*sum) bool { return true }, time.Now())
}

func (t *tally) flushIf(due func(*sum) bool, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for of, s := range t.sums {
		if !due(s) {
			continue
		}
		if s.more == 0 {
			delete(t.sums, of)
			continue
		}
		t.log.Add(&audit.Event{
			Time: now, Kind: s.kind, TraceID: s.trace, Principal: s.principal, Peer: s.peer, Method: shownMethod(s.method),
			Code: s.refusal.Kind.String(), Error: s.refusal.Code,
			Reason: fmt.Sprintf("%d more calls were refused since %s, the last because %s", s.more, s.began.UTC().Format(time.RFC3339Nano), s.refusal.Message),
		})
		*s = sum{began: now}
	}
}
