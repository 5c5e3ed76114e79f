package session

import (
	"context"
	"sync"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

const (
	// maxAsked is how many questions may be under way at once; more are
	// answered that the agent is busy.
	maxAsked = 16
	// answerTimeout bounds the search for one answer.
	answerTimeout = 10 * time.Second
	// codeBusy is the error of a question that is one too many.
	codeBusy = "AGENT_BUSY"
)

// Answerer answers questions; it ends with its context.
type Answerer interface {
	Answer(ctx context.Context, q *agentv1.Ask) *agentv1.Answer
}

// asked are the leader's questions of one session. Each has a goroutine of its
// own, so that neither heartbeats nor tasks wait for libvirt.
type asked struct {
	by      Answerer
	slots   chan struct{}
	answers chan *agentv1.Answer // to be sent
	group   sync.WaitGroup
}

func newAsked(by Answerer) *asked {
	return &asked{by: by, slots: make(chan struct{}, maxAsked), answers: make(chan *agentv1.Answer, maxAsked)}
}

// ask has a question answered. It waits for nothing, and refuses what is too
// much.
func (a *asked) ask(ctx context.Context, q *agentv1.Ask) {
	select {
	case a.slots <- struct{}{}:
		a.group.Go(func() {
			defer func() { <-a.slots }()
			a.say(ctx, a.answer(ctx, q))
		})
	default:
		select {
		case a.answers <- &agentv1.Answer{Id: q.GetId(), ErrorCode: codeBusy, ErrorMessage: "the agent answers as many questions as it can at once"}:
		default: // it may go unanswered
		}
	}
}

func (a *asked) answer(ctx context.Context, q *agentv1.Ask) *agentv1.Answer {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return a.by.Answer(ctx, q)
}

// say hands an answer to send, or drops it with the session.
func (a *asked) say(ctx context.Context, answer *agentv1.Answer) {
	select {
	case a.answers <- answer:
	case <-ctx.Done():
	}
}
