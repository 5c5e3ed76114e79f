package session

import (
	"context"
	"sync"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// maxAsked is how many questions may be under way at once, about Ceph and
	// about all else; more are answered that the agent is busy.
	maxAsked = 16
	// answerTimeout bounds the search for an answer for which nobody says how
	// long it is waited for, maxAnswerTimeout any.
	answerTimeout    = 10 * time.Second
	maxAnswerTimeout = time.Hour
	// ahead is how many parts of an answer are sent before the leader says that
	// one was taken; the last one may follow besides.
	ahead = 2
	// maxUnsent is how many parts and refusals may wait to be sent: all that the
	// questions under way can make, and as many refusals as a leader that keeps to
	// its own bounds gets.
	maxUnsent = 2*maxAsked*(ahead+1) + 64
	// codeBusy is the error of a question that is one too many.
	codeBusy = "AGENT_BUSY"
)

// Answerer answers questions. The last part of the answer, or all of it, is what
// Answer returns; those before it are handed to part, which waits for the leader
// to take them and fails once nobody does. Answer ends with its context.
type Answerer interface {
	Answer(ctx context.Context, q *agentv1.Ask, part func(*agentv1.Answer) error) *agentv1.Answer
}

// asked are the leader's questions of one session. Each has a goroutine of its
// own, so that neither heartbeats nor tasks wait for libvirt or ZFS.
type asked struct {
	by Answerer
	// slots are for questions, ceph for those about Ceph: with a dead cluster they
	// all hang for a while, and none about ZFS may be turned away for that.
	slots, ceph chan struct{}
	answers     chan *agentv1.Answer // to be sent
	group       sync.WaitGroup

	mu   sync.Mutex
	open map[uint64]*search
}

// search is what is under way for one question.
type search struct {
	stop context.CancelFunc
	// room has a token for each part that may be sent.
	room chan struct{}
}

func newAsked(by Answerer) *asked {
	return &asked{
		by: by, slots: make(chan struct{}, maxAsked), ceph: make(chan struct{}, maxAsked),
		answers: make(chan *agentv1.Answer, maxUnsent), open: map[uint64]*search{},
	}
}

// ask has a question answered. It waits for nothing, and refuses what is too
// much.
func (a *asked) ask(ctx context.Context, q *agentv1.Ask) {
	slots := a.slots
	if q.GetListRbd() != nil {
		slots = a.ceph
	}
	select {
	case slots <- struct{}{}:
		asking, stop := context.WithTimeout(ctx, patienceFor(q))
		s := &search{stop: stop, room: make(chan struct{}, ahead)}
		for range ahead {
			s.room <- struct{}{}
		}
		a.mu.Lock()
		a.open[q.GetId()] = s
		a.mu.Unlock()
		a.group.Go(func() {
			defer func() { <-slots }()
			defer a.forget(q.GetId(), s)
			a.answer(ctx, asking, q, s)
		})
	default:
		select {
		case a.answers <- &agentv1.Answer{Id: q.GetId(), ErrorCode: codeBusy, ErrorMessage: "the agent answers as many questions as it can at once"}:
		default: // it may go unanswered
		}
	}
}

// patienceFor is how long the answer to a question may be searched for.
func patienceFor(q *agentv1.Ask) time.Duration {
	if ms := q.GetTimeoutMs(); ms > 0 {
		return min(time.Duration(ms)*time.Millisecond, maxAnswerTimeout)
	}
	return answerTimeout
}

// answer searches for an answer and sends it, as long as the session lasts.
func (a *asked) answer(session, asking context.Context, q *agentv1.Ask, s *search) {
	last := a.by.Answer(asking, q, func(part *agentv1.Answer) error {
		select {
		case <-s.room:
		case <-asking.Done():
			return asking.Err()
		}
		part.Id, part.More = q.GetId(), true
		return a.say(asking, part)
	})
	last.Id, last.More = q.GetId(), false
	_ = a.say(session, last) // it may go unanswered with the session
}

// next lets a search send one more part, or ends it.
func (a *asked) next(n *agentv1.AskNext) {
	a.mu.Lock()
	s := a.open[n.GetId()]
	a.mu.Unlock()
	switch {
	case s == nil:
		// It has ended meanwhile.
	case n.GetStop():
		s.stop()
	default:
		select {
		case s.room <- struct{}{}:
		default: // the leader says so twice
		}
	}
}

func (a *asked) forget(id uint64, s *search) {
	s.stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[id] == s {
		delete(a.open, id)
	}
}

// say hands an answer to send, or drops it with the context.
func (a *asked) say(ctx context.Context, answer *agentv1.Answer) error {
	select {
	case a.answers <- answer:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
