package dispatch

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// askTimeout is how long an agent may take to answer.
	askTimeout = 5 * time.Second
	// maxAsked bounds the questions that a session waits for at a time.
	maxAsked = 64
)

// Ask puts a question to a node's agent and waits for its answer, 5 s at most;
// the question's id is given here. It changes nothing anywhere, so nothing of
// it is written. Errors: Unavailable where this replica does not lead, is not
// sure to, or the node has no session whose agent has acknowledged the term;
// ResourceExhausted when too much is asked of it already; DeadlineExceeded;
// and FailedPrecondition with the agent's own code when it cannot answer.
func (d *Dispatch) Ask(ctx context.Context, node string, q *agentv1.Ask) (*agentv1.Answer, error) {
	l := d.current()
	if l == nil {
		return nil, errdefs.New(errdefs.Unavailable, "NOT_LEADER", "this replica does not lead").WithRetry(time.Second)
	}
	s := l.sessionOf(node)
	if s == nil {
		return nil, errdefs.New(errdefs.Unavailable, "NO_SESSION", "the agent of node %s is not heard", node).
			With("node", node).WithRetry(time.Second)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return s.ask(ctx, q)
}

// sessionOf is the node's session whose beginning is in etcd; nil: none.
func (l *leader) sessionOf(node string) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[node]
	if s == nil || !s.isOpened() {
		return nil
	}
	return s
}

// asked are a session's questions that were not answered yet, by their ids.
type asked struct {
	last    uint64
	waiting map[uint64]chan<- *agentv1.Answer
}

// ask sends a question and waits for its answer, the session's end or ctx's.
func (s *session) ask(ctx context.Context, q *agentv1.Ask) (*agentv1.Answer, error) {
	answered := make(chan *agentv1.Answer, 1)
	s.mu.Lock()
	if len(s.asked.waiting) >= maxAsked {
		s.mu.Unlock()
		return nil, errdefs.New(errdefs.ResourceExhausted, "AGENT_BUSY", "node %s has %d questions to answer first", s.node, maxAsked).
			WithRetry(time.Second)
	}
	s.asked.last++
	id := s.asked.last
	s.asked.waiting[id] = answered
	s.mu.Unlock()
	defer s.forget(id)
	q = proto.CloneOf(q)
	q.Id = id
	s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_Ask{Ask: q}})
	select {
	case a := <-answered:
		if code := a.GetErrorCode(); code != "" {
			return nil, errdefs.New(errdefs.FailedPrecondition, code, "node %s cannot answer: %s", s.node, a.GetErrorMessage()).
				With("node", s.node)
		}
		return a, nil
	case <-s.stopped:
		return nil, errdefs.New(errdefs.Unavailable, "SESSION_ENDED", "the session of node %s ended before its answer", s.node).
			With("node", s.node).WithCause(s.reason)
	case <-ctx.Done():
		return nil, errdefs.New(errdefs.DeadlineExceeded, "NO_ANSWER", "node %s has not answered", s.node).
			With("node", s.node).WithCause(ctx.Err())
	}
}

func (s *session) forget(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked.waiting, id)
}

// answer hands an answer to whoever waits for it. One that nobody waits for any
// more, or that was never asked for, is dropped.
func (s *session) answer(a *agentv1.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waiting, ok := s.asked.waiting[a.GetId()]; ok {
		delete(s.asked.waiting, a.GetId())
		waiting <- a
	}
}
