package session_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// lister answers in as many parts as it is asked for by the dataset's name's
// length, and tells what became of each question.
type lister struct {
	began chan struct{}
	ended chan error
}

func (l lister) Answer(ctx context.Context, q *agentv1.Ask, part func(*agentv1.Answer) error) *agentv1.Answer {
	name := "hang"
	if zfs := q.GetListZfs(); zfs != nil {
		name = zfs.GetDatasets()[0]
	}
	parts := len(name)
	if name == "hang" {
		l.began <- struct{}{}
		<-ctx.Done()
		l.ended <- ctx.Err()
		return &agentv1.Answer{ErrorCode: "ENDED", ErrorMessage: "x"}
	}
	for i := range parts - 1 {
		if err := part(listed(fmt.Sprint(i))); err != nil {
			l.ended <- err
			return &agentv1.Answer{ErrorCode: "ENDED", ErrorMessage: "x"}
		}
	}
	return listed(fmt.Sprint(parts - 1))
}

func listed(name string) *agentv1.Answer {
	return &agentv1.Answer{Answer: &agentv1.Answer_ZfsListing{ZfsListing: &agentv1.ZfsListing{
		Snapshots: []*agentv1.ZfsSnapshot{{Name: name}},
	}}}
}

// parts receives n parts of that question's answer, and gives their names and
// whether the last says that more follow.
func (c *conducted) parts(t *testing.T, id uint64, n int) (names []string, more bool) {
	t.Helper()
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool {
		if a := m.GetAnswer(); a.GetId() == id && m.GetAnswer() != nil {
			for _, s := range a.GetZfsListing().GetSnapshots() {
				names = append(names, s.GetName())
			}
			more = a.GetMore()
			return len(names) == n || a.GetErrorCode() != ""
		}
		return false
	})
	return names, more
}

func TestAnswersInPartsKeepPace(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	a := p.agent(t, r)
	l := lister{make(chan struct{}, 1), make(chan error, 1)}
	a.answers = l
	a.start(t)
	c := r.next(t)
	c.welcome(t, term(5))
	say := func(m *agentv1.LeaderMessage) {
		m.Term = term(5)
		c.say(t, m)
	}
	ask := func(id uint64, name string, ms uint32) {
		say(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_Ask{Ask: &agentv1.Ask{
			Id: id, TimeoutMs: ms, Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{Datasets: []string{name}}},
		}}})
	}
	next := func(id uint64, stop bool) {
		say(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_AskNext{AskNext: &agentv1.AskNext{Id: id, Stop: stop}}})
	}

	ask(1, "three", 60_000) // five parts
	if names, more := c.parts(t, 1, 2); fmt.Sprint(names) != "[0 1]" || !more {
		t.Errorf("the first two: %v, more %v", names, more)
	}
	ask(2, "a", 60_000) // nothing more came of the first before the second's answer
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool {
		if m.GetAnswer().GetId() == 1 {
			t.Errorf("a third part was sent though none was taken: %v", m)
		}
		return m.GetAnswer().GetId() == 2 && !m.GetAnswer().GetMore()
	})
	for beats := 0; beats < 3; { // nor within some heartbeats
		c.until(t, term(5), func(m *agentv1.AgentMessage) bool {
			if m.GetAnswer() != nil {
				t.Errorf("sent unasked: %v", m)
			}
			return m.GetHeartbeat() != nil
		})
		beats++
	}
	next(1, false)
	next(1, false)
	next(7, false) // of no question
	if names, more := c.parts(t, 1, 3); fmt.Sprint(names) != "[2 3 4]" || more {
		t.Errorf("the rest: %v, more %v", names, more)
	}

	wait := func(what string) {
		t.Helper()
		select {
		case err := <-l.ended:
			if err == nil {
				t.Errorf("%s: no reason", what)
			}
		case <-time.After(patience):
			t.Fatalf("%s: the search goes on", what)
		}
	}
	ask(3, "three", 60_000)
	c.parts(t, 3, 2)
	next(3, true)
	wait("nobody waits any more")
	ask(4, "hang", 60_000)
	<-l.began
	next(4, true)
	wait("stopped before anything came")
	ask(5, "hang", 1)
	<-l.began
	wait("its time is over")
	ask(6, "three", 1)
	wait("its time is over while nobody takes")
	ask(8, "hang", 60_000)
	<-l.began
	c.end <- nil
	wait("the session ended")
}

// TestCephIsNotInTheWay: however many questions about Ceph hang, those about all else are answered.
func TestCephIsNotInTheWay(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	a := p.agent(t, r)
	l := lister{make(chan struct{}, 64), make(chan error, 64)}
	a.answers = l
	a.start(t)
	c := r.next(t)
	c.welcome(t, term(5))
	ask := func(q *agentv1.Ask) {
		q.TimeoutMs = 60_000
		c.say(t, &agentv1.LeaderMessage{Term: term(5), Kind: &agentv1.LeaderMessage_Ask{Ask: q}})
	}
	const hanging = 40
	for id := range uint64(hanging) {
		ask(&agentv1.Ask{Id: id + 1, Question: &agentv1.Ask_ListRbd{ListRbd: &agentv1.ListRbd{}}})
	}
	ask(&agentv1.Ask{Id: 100, Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{Datasets: []string{"a"}}}})
	busy := 0
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool {
		answer := m.GetAnswer()
		if answer.GetErrorCode() == "AGENT_BUSY" && answer.GetId() <= hanging {
			busy++
			return false
		}
		if answer != nil && (answer.GetId() != 100 || answer.GetErrorCode() != "") {
			t.Errorf("while questions about Ceph hang: %v", answer)
		}
		return answer.GetId() == 100
	})
	if busy == 0 {
		t.Errorf("all of %d questions about Ceph were let in: none was in the way", hanging)
	}
	c.end <- nil
}
