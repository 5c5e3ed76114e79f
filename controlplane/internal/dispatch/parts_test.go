package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// listing is a question whose answer comes in parts; the name tells it apart.
func listing(name string) *agentv1.Ask {
	return &agentv1.Ask{Question: &agentv1.Ask_ListZfs{ListZfs: &agentv1.ListZfs{Datasets: []string{name}}}}
}

// partOf is a part with one snapshot.
func partOf(id uint64, name string, more bool) *agentv1.Answer {
	return &agentv1.Answer{Id: id, More: more, Answer: &agentv1.Answer_ZfsListing{ZfsListing: &agentv1.ZfsListing{
		Snapshots: []*agentv1.ZfsSnapshot{{Name: name}},
	}}}
}

// collected is what came of a question in parts.
type collected struct {
	names []string
	err   error
}

// askParts asks in the background; each part waits for a word on take, if there
// is such a channel.
func (r *replica) askParts(ctx context.Context, node string, q *agentv1.Ask, take <-chan struct{}) <-chan collected {
	done := make(chan collected, 1)
	go func() {
		var c collected
		c.err = r.AskParts(ctx, node, q, func(a *agentv1.Answer) error {
			for _, s := range a.GetZfsListing().GetSnapshots() {
				c.names = append(c.names, s.GetName())
			}
			if take != nil {
				<-take
			}
			return nil
		})
		done <- c
	}()
	return done
}

// askedToList waits for the question; its id is what the answer needs.
func (a *agent) askedToList(t *testing.T, name string) *agentv1.Ask {
	t.Helper()
	return a.await(t, "question about "+name, func(m *agentv1.LeaderMessage) bool {
		names := m.GetAsk().GetListZfs().GetDatasets()
		return len(names) == 1 && names[0] == name
	}).GetAsk()
}

func (a *agent) awaitNext(t *testing.T, id uint64, stop bool) {
	t.Helper()
	a.await(t, fmt.Sprintf("a word about %d, stop %v", id, stop), func(m *agentv1.LeaderMessage) bool {
		return m.GetAskNext().GetId() == id && m.GetAskNext().GetStop() == stop
	})
}

func TestAnAnswerInParts(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	a := r.open(t, "node-1", "j1")
	ctx, cancel := context.WithTimeout(t.Context(), 42*time.Second)
	defer cancel()
	take := make(chan struct{})
	whole := r.askParts(ctx, "node-1", listing("tank"), take)
	q := a.askedToList(t, "tank")
	other := r.askParts(t.Context(), "node-1", listing("dozer"), nil)
	p := a.askedToList(t, "dozer")
	if ms := q.GetTimeoutMs(); ms <= 20_000 || ms > 42_000 {
		t.Errorf("the agent is told to answer within %d ms", ms)
	}
	if ms := p.GetTimeoutMs(); ms <= 30_000 || ms > 60_000 {
		t.Errorf("without a deadline, the agent is told to answer within %d ms", ms)
	}
	a.answer(t, partOf(q.GetId(), "a", true))
	a.answer(t, partOf(q.GetId(), "b", true)) // as far ahead as an agent may get
	a.answer(t, partOf(p.GetId(), "x", false))
	if c := <-other; c.err != nil || fmt.Sprint(c.names) != "[x]" {
		t.Errorf("another question waits for the first: %v", c)
	}
	take <- struct{}{}
	a.awaitNext(t, q.GetId(), false)
	a.answer(t, partOf(q.GetId(), "c", true))
	a.answer(t, partOf(q.GetId(), "d", false)) // the last may come besides
	for range 3 {
		take <- struct{}{}
	}
	if c := <-whole; c.err != nil || fmt.Sprint(c.names) != "[a b c d]" {
		t.Errorf("got %v, %v", c.names, c.err)
	}
}

func TestAnAnswerInPartsEnds(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	a := r.open(t, "node-1", "j1")
	begin := func(ctx context.Context, take <-chan struct{}) (<-chan collected, uint64) {
		t.Helper()
		done := r.askParts(ctx, "node-1", listing("tank"), take)
		id := a.askedToList(t, "tank").GetId()
		a.answer(t, partOf(id, "a", true))
		return done, id
	}

	ctx, cancel := context.WithCancel(t.Context())
	done, id := begin(ctx, nil)
	a.awaitNext(t, id, false) // the part was taken
	cancel()
	a.awaitNext(t, id, true) // the agent hears that nobody waits any more
	if c := <-done; codeOf(c.err) != "NO_ANSWER" || !errors.Is(c.err, context.Canceled) || len(c.names) != 1 {
		t.Errorf("the asker left: %v", c)
	}
	a.answer(t, partOf(id, "late", true)) // and what was on its way harms nobody

	enough := errors.New("enough")
	failed := make(chan error, 1)
	go func() {
		failed <- r.AskParts(t.Context(), "node-1", listing("tank"), func(*agentv1.Answer) error { return enough })
	}()
	id = a.askedToList(t, "tank").GetId()
	a.answer(t, partOf(id, "a", true))
	a.awaitNext(t, id, true)
	if err := <-failed; !errors.Is(err, enough) {
		t.Errorf("the asker had enough: %v", err)
	}

	done, id = begin(t.Context(), nil)
	a.answer(t, &agentv1.Answer{Id: id, ErrorCode: "POOL_SUSPENDED", ErrorMessage: "tank is suspended"})
	if c := <-done; codeOf(c.err) != "POOL_SUSPENDED" || !errdefs.Is(c.err, errdefs.FailedPrecondition) {
		t.Errorf("the agent fails in the middle: %v", c.err)
	}

	take := make(chan struct{})
	done, id = begin(t.Context(), take)
	for _, name := range []string{"b", "c", "d", "e", "f"} { // nobody has taken a part yet
		a.answer(t, partOf(id, name, true))
	}
	a.beat(t, 9)
	a.await(t, "heartbeat's answer", func(m *agentv1.LeaderMessage) bool { return m.GetHeartbeatAck().GetSeq() == 9 })
	close(take)
	if c := <-done; codeOf(c.err) != "ANSWER_NOT_PACED" {
		t.Errorf("an agent that does not wait: %v", c.err)
	}
	a.awaitNext(t, id, true)

	done, _ = begin(t.Context(), nil)
	a.leave()
	if c := <-done; codeOf(c.err) != "SESSION_ENDED" {
		t.Errorf("the session ended: %v", c.err)
	}
	r.eventually(t, "session gone", func() bool {
		_, err := r.Ask(t.Context(), "node-1", compare("x"))
		return codeOf(err) == "NO_SESSION"
	})
	a = r.open(t, "node-1", "j1")
	done, _ = begin(t.Context(), nil)
	l.stop()
	if c := <-done; !errdefs.Is(c.err, errdefs.Unavailable) {
		t.Errorf("leadership ended: %v", c.err)
	}
}

// TestAnswersInPartsTakeTurns: no more than 32 are in memory at a time; the next
// waits, until its own deadline.
func TestAnswersInPartsTakeTurns(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	a := r.open(t, "node-1", "j1")
	var all []<-chan collected
	ids := make([]uint64, 32)
	for i := range ids {
		all = append(all, r.askParts(t.Context(), "node-1", listing("many"), nil))
		ids[i] = a.askedToList(t, "many").GetId()
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.AskParts(short, "node-1", listing("late"), nil); codeOf(err) != "NO_ANSWER" || !errdefs.Is(err, errdefs.DeadlineExceeded) {
		t.Errorf("one more: %v", err)
	}
	waiting := r.askParts(t.Context(), "node-1", listing("next"), nil)
	a.answer(t, partOf(ids[0], "a", false))
	if c := <-all[0]; c.err != nil {
		t.Errorf("the first: %v", c.err)
	}
	a.answer(t, partOf(a.askedToList(t, "next").GetId(), "n", false))
	if c := <-waiting; c.err != nil || fmt.Sprint(c.names) != "[n]" {
		t.Errorf("the next: %v", c)
	}
	a.leave()
	for _, one := range all[1:] {
		if c := <-one; codeOf(c.err) != "SESSION_ENDED" {
			t.Errorf("got %v", c.err)
		}
	}
}

// TestCephIsNotInTheWay: however many questions about Ceph hang, one about ZFS is asked at once.
func TestCephIsNotInTheWay(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	a := r.open(t, "node-1", "j1")
	b := r.open(t, "node-2", "j2")
	ctx, cancel := context.WithCancel(t.Context())
	var hanging []<-chan collected
	for i := range 64 { // each node's own bound is not reached
		q := &agentv1.Ask{Question: &agentv1.Ask_ListRbd{ListRbd: &agentv1.ListRbd{}}}
		hanging = append(hanging, r.askParts(ctx, []string{"node-1", "node-2"}[i%2], q, nil))
	}
	for _, one := range []*agent{a, b} {
		one.await(t, "a question about Ceph", func(m *agentv1.LeaderMessage) bool { return m.GetAsk().GetListRbd() != nil })
	}
	whole := r.askParts(t.Context(), "node-1", listing("tank"), nil)
	a.answer(t, partOf(a.askedToList(t, "tank").GetId(), "x", false))
	if c := <-whole; c.err != nil || fmt.Sprint(c.names) != "[x]" {
		t.Errorf("beside 64 questions about Ceph: %v", c)
	}
	cancel()
	for _, one := range hanging {
		if c := <-one; !errdefs.Is(c.err, errdefs.DeadlineExceeded) && !errdefs.Is(c.err, errdefs.Cancelled) {
			t.Errorf("a question about Ceph: %v", c.err)
		}
	}
}
