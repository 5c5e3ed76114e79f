package session_test

import (
	"testing"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// A leader that resigns says so: the session goes to the next one at once.
func TestALeaderThatLeavesIsLeft(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	first, second := p.replica(t, "r1"), p.replica(t, "r2")
	a := p.agent(t, first, second)
	a.start(t)
	c := first.next(t)
	c.welcome(t, term(5))
	c.say(t, &agentv1.LeaderMessage{Term: term(5), Kind: &agentv1.LeaderMessage_Leaving{Leaving: &agentv1.Leaving{}}})
	second.next(t).welcome(t, term(6)) // though the first one's stream stands
}
