package dispatch

import (
	"context"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// askTimeout is how long an agent may take to answer in one part.
	askTimeout = 5 * time.Second
	// AskPartsTimeout is how long an answer in parts may take where its asker
	// sets no deadline.
	AskPartsTimeout = time.Minute
	// maxAsked bounds the questions that a session waits for at a time.
	maxAsked = 64
	// maxInParts bounds the answers in parts that are under way at a time, over
	// all sessions: each may have some parts in memory. Those about Ceph have
	// places of their own: none about ZFS waits for a dead cluster.
	maxInParts, maxInPartsOfCeph = 32, 16
	// ahead is how many parts an agent may send before one is taken; the last one
	// may come besides.
	ahead = 2
)

// Ask puts a question to a node's agent and waits for its answer, 5 s at most;
// the question's id is given here. It changes nothing anywhere, so nothing of
// it is written. Errors: Unavailable where this replica does not lead, is not
// sure to, or the node has no session whose agent has acknowledged the term;
// ResourceExhausted when too much is asked of it already; DeadlineExceeded;
// and FailedPrecondition with the agent's own code when it cannot answer.
func (d *Dispatch) Ask(ctx context.Context, node string, q *agentv1.Ask) (*agentv1.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var answer *agentv1.Answer
	err := d.ask(ctx, node, q, func(a *agentv1.Answer) error {
		answer = a
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// AskParts is Ask for an answer that may come in parts: each is handed to part,
// one after the other, and the agent gets no further ahead than memory allows.
// It ends with ctx, after a minute where ctx has no deadline, and with the error
// that part returns; the agent's search ends then, too. After an error, the
// parts that came are not all that there is. When many answers are under way,
// it waits for its turn.
func (d *Dispatch) AskParts(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	if _, ok := ctx.Deadline(); !ok {
		bounded, cancel := context.WithTimeout(ctx, AskPartsTimeout)
		defer cancel()
		ctx = bounded
	}
	places := d.inParts
	if q.GetListRbd() != nil {
		places = d.cephInParts
	}
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return errNoAnswer(node, ctx)
	}
	defer func() { <-places }()
	return d.ask(ctx, node, q, part)
}

func (d *Dispatch) ask(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	l := d.current()
	if l == nil {
		return errdefs.New(errdefs.Unavailable, "NOT_LEADER", "this replica does not lead").WithRetry(time.Second)
	}
	s := l.sessionOf(node)
	if s == nil {
		return errdefs.New(errdefs.Unavailable, "NO_SESSION", "the agent of node %s is not heard", node).
			With("node", node).WithRetry(time.Second)
	}
	return s.ask(ctx, q, part)
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

func errNoAnswer(node string, ctx context.Context) error { //nolint:revive // the context is what is told of
	return errdefs.New(errdefs.DeadlineExceeded, "NO_ANSWER", "node %s has not answered", node).
		With("node", node).WithCause(ctx.Err())
}
