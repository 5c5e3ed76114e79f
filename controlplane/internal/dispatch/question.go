package dispatch

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// asked are a session's questions that were not answered yet, by their ids.
type asked struct {
	last    uint64
	waiting map[uint64]chan *agentv1.Answer
}

// question is one of them, for whoever waits for its answer.
type question struct {
	session *session
	id      uint64
	// parts holds what has come and was not taken; closed: the agent has sent
	// more than it may.
	parts chan *agentv1.Answer
}

// codeBusy is the agent's own word for too many questions.
const codeBusy = "AGENT_BUSY"

// ask sends a question and hands the parts of its answer on, until the last one,
// the session's end or ctx's.
func (s *session) ask(ctx context.Context, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	w, err := s.begin()
	if err != nil {
		return err
	}
	q = proto.CloneOf(q)
	q.Id, q.TimeoutMs = w.id, remaining(ctx)
	s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_Ask{Ask: q}})
	defer w.end()
	for {
		a, err := w.next(ctx)
		if err != nil {
			return err
		}
		if err := part(a); err != nil {
			return err
		}
		if !a.GetMore() {
			return nil
		}
		s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_AskNext{AskNext: &agentv1.AskNext{Id: w.id}}})
	}
}

// remaining is the time that ctx leaves, in milliseconds; 0: it has no deadline.
func remaining(ctx context.Context) uint32 {
	at, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	const most = 1 << 31
	return uint32(min(max(time.Until(at).Milliseconds(), 1), most))
}

// begin makes room for one more answer.
func (s *session) begin() (*question, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked.waiting) >= maxAsked {
		return nil, errdefs.New(errdefs.ResourceExhausted, codeBusy, "node %s has %d questions to answer first", s.node, maxAsked).
			With("node", s.node).WithRetry(time.Second)
	}
	s.asked.last++
	w := &question{session: s, id: s.asked.last, parts: make(chan *agentv1.Answer, ahead+1)}
	s.asked.waiting[w.id] = w.parts
	return w, nil
}

// next waits for the next part. What has come counts before what has ended.
func (w *question) next(ctx context.Context) (*agentv1.Answer, error) {
	select {
	case a, ok := <-w.parts:
		return w.taken(a, ok)
	default:
	}
	s := w.session
	select {
	case a, ok := <-w.parts:
		return w.taken(a, ok)
	case <-s.stopped:
		return nil, errdefs.New(errdefs.Unavailable, "SESSION_ENDED", "the session of node %s ended before its answer", s.node).
			With("node", s.node).WithCause(s.reason)
	case <-ctx.Done():
		return nil, errNoAnswer(s.node, ctx)
	}
}

func (w *question) taken(a *agentv1.Answer, ok bool) (*agentv1.Answer, error) {
	node := w.session.node
	switch code := a.GetErrorCode(); {
	case !ok:
		w.stop()
		return nil, errdefs.New(errdefs.Internal, "ANSWER_NOT_PACED", "node %s sends its answer faster than it is asked to", node).With("node", node)
	case code == codeBusy:
		return nil, errdefs.New(errdefs.ResourceExhausted, code, "node %s cannot answer: %s", node, a.GetErrorMessage()).
			With("node", node).WithRetry(time.Second)
	case code != "":
		return nil, errdefs.New(errdefs.FailedPrecondition, code, "node %s cannot answer: %s", node, a.GetErrorMessage()).With("node", node)
	}
	return a, nil
}

// end forgets the question, and stops the agent's search for an answer that
// nobody waits for any more.
func (w *question) end() {
	s := w.session
	s.mu.Lock()
	_, unanswered := s.asked.waiting[w.id]
	delete(s.asked.waiting, w.id)
	s.mu.Unlock()
	if unanswered && !s.isStopped() {
		w.stop()
	}
}

func (w *question) stop() {
	w.session.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_AskNext{AskNext: &agentv1.AskNext{Id: w.id, Stop: true}}})
}

// answer hands a part of an answer to whoever waits for it. One that nobody
// waits for any more, or that was never asked for, is dropped. It never waits.
func (s *session) answer(a *agentv1.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts, ok := s.asked.waiting[a.GetId()]
	if !ok {
		return
	}
	if !a.GetMore() {
		delete(s.asked.waiting, a.GetId())
	}
	select {
	case parts <- a:
	default:
		delete(s.asked.waiting, a.GetId())
		close(parts)
	}
}
