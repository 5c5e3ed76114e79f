package dispatch_test

import (
	"context"
	"errors"
	"testing"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// asking is a question on its way.
type asking struct {
	answer *agentv1.Answer
	err    error
}

func compare(xml string) *agentv1.Ask {
	return &agentv1.Ask{Question: &agentv1.Ask_CompareCpu{CompareCpu: &agentv1.CompareCPU{Cpu: &agentv1.CPUDescription{Xml: xml}}}}
}

// ask asks a node in the background.
func (r *replica) ask(ctx context.Context, node string, q *agentv1.Ask) <-chan asking {
	done := make(chan asking, 1)
	go func() {
		a, err := r.Ask(ctx, node, q)
		done <- asking{a, err}
	}()
	return done
}

func (a *agent) answer(t *testing.T, answer *agentv1.Answer) {
	t.Helper()
	a.say(t, &agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Answer{Answer: answer}})
}

// open opens a session and waits until questions may be asked on it.
func (r *replica) open(t *testing.T, node, journal string) *agent {
	t.Helper()
	a := r.session(t, node, journal)
	r.eventually(t, "session in etcd", func() bool { return r.view.Current().Statuses[node].Value.GetJournalId() == journal })
	r.eventually(t, "questions are possible", func() bool {
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := r.Ask(short, node, compare("probe"))
		return codeOf(err) == "NO_ANSWER"
	})
	return a
}

// askedFor waits for the question about that CPU; probes are dropped.
func (a *agent) askedFor(t *testing.T, xml string) *agentv1.LeaderMessage {
	t.Helper()
	return a.await(t, "question about "+xml, func(m *agentv1.LeaderMessage) bool {
		return m.GetAsk().GetCompareCpu().GetCpu().GetXml() == xml
	})
}

func codeOf(err error) string {
	var e *errdefs.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestQuestionsAreAnsweredInAnyOrder(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	a := r.open(t, "node-1", "j1")
	first := r.ask(t.Context(), "node-1", compare("one"))
	one := a.askedFor(t, "one")
	second := r.ask(t.Context(), "node-1", compare("two"))
	two := a.askedFor(t, "two")
	if task.TermOf(one.GetTerm()) != l.Term || one.GetAsk().GetId() == two.GetAsk().GetId() {
		t.Errorf("asked %v and %v", one, two)
	}
	verdict := func(ok bool, detail string) *agentv1.Answer_CpuComparison {
		return &agentv1.Answer_CpuComparison{CpuComparison: &agentv1.CPUComparison{Compatible: ok, Detail: detail}}
	}
	a.answer(t, &agentv1.Answer{Id: two.GetAsk().GetId(), Answer: verdict(false, "no avx512")})
	a.answer(t, &agentv1.Answer{Id: 999}) // never asked
	a.answer(t, &agentv1.Answer{Id: one.GetAsk().GetId(), Answer: verdict(true, "")})
	if got := <-second; got.err != nil || got.answer.GetCpuComparison().GetDetail() != "no avx512" {
		t.Errorf("two: %v, %v", got.answer, got.err)
	}
	if got := <-first; got.err != nil || !got.answer.GetCpuComparison().GetCompatible() {
		t.Errorf("one: %v, %v", got.answer, got.err)
	}
	third := r.ask(t.Context(), "node-1", compare("three"))
	a.answer(t, &agentv1.Answer{Id: a.askedFor(t, "three").GetAsk().GetId(), ErrorCode: "LIBVIRT_DOWN", ErrorMessage: "no libvirt"})
	if got := <-third; codeOf(got.err) != "LIBVIRT_DOWN" || !errdefs.Is(got.err, errdefs.FailedPrecondition) {
		t.Errorf("three: %v", got.err)
	}
}

func TestQuestionsEnd(t *testing.T) {
	r := newReplica(t)
	if _, err := r.Ask(t.Context(), "node-1", compare("x")); codeOf(err) != "NOT_LEADER" {
		t.Errorf("a replica that does not lead: %v", err)
	}
	l := r.lead(t)
	r.eventually(t, "leading", func() bool {
		_, err := r.Ask(t.Context(), "node-2", compare("x"))
		return codeOf(err) == "NO_SESSION"
	})
	a := r.open(t, "node-1", "j1")

	ctx, cancel := context.WithCancel(t.Context())
	waiting := r.ask(ctx, "node-1", compare("the caller leaves"))
	a.askedFor(t, "the caller leaves")
	cancel()
	if got := <-waiting; codeOf(got.err) != "NO_ANSWER" || !errors.Is(got.err, context.Canceled) {
		t.Errorf("the caller left: %v", got.err)
	}

	waiting = r.ask(t.Context(), "node-1", compare("the session ends"))
	a.askedFor(t, "the session ends")
	a.leave()
	if got := <-waiting; codeOf(got.err) != "SESSION_ENDED" || !errdefs.Is(got.err, errdefs.Unavailable) {
		t.Errorf("the session ended: %v", got.err)
	}

	r.eventually(t, "session gone", func() bool {
		_, err := r.Ask(t.Context(), "node-1", compare("x"))
		return codeOf(err) == "NO_SESSION"
	})
	b := r.open(t, "node-1", "j1")
	waiting = r.ask(t.Context(), "node-1", compare("leadership ends"))
	b.askedFor(t, "leadership ends")
	l.stop()
	if got := <-waiting; !errdefs.Is(got.err, errdefs.Unavailable) {
		t.Errorf("leadership ended: %v", got.err)
	}
}

func TestTooManyQuestions(t *testing.T) {
	r := newReplica(t)
	r.lead(t)
	a := r.open(t, "node-1", "j1")
	ctx, cancel := context.WithCancel(t.Context())
	var all []<-chan asking
	for range 64 {
		all = append(all, r.ask(ctx, "node-1", compare("many")))
	}
	for range all {
		a.askedFor(t, "many")
	}
	if _, err := r.Ask(t.Context(), "node-1", compare("one more")); codeOf(err) != "AGENT_BUSY" {
		t.Errorf("one more: %v", err)
	}
	cancel()
	for _, one := range all {
		<-one
	}
	again := r.ask(t.Context(), "node-1", compare("again"))
	a.answer(t, &agentv1.Answer{Id: a.askedFor(t, "again").GetAsk().GetId()})
	if got := <-again; got.err != nil {
		t.Errorf("after the others have left: %v", got.err)
	}
}

func TestALeaderThatIsNotSureAsksNothing(t *testing.T) {
	r := newReplica(t)
	l := r.lead(t)
	a := r.open(t, "node-1", "j1")
	for len(a.got) > 0 {
		<-a.got
	}
	l.fresh.Store(false) // it slept past its lease
	if _, err := r.Ask(t.Context(), "node-1", compare("x")); codeOf(err) != "NOT_LEADER" {
		t.Errorf("got %v", err)
	}
	a.beat(t, 2) // its answer would be sent after the question
	if err := a.awaitEnd(t); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("the session ended with %v", err)
	}
	for len(a.got) > 0 {
		if m := <-a.got; m.GetAsk().GetCompareCpu().GetCpu().GetXml() == "x" { // an earlier one may have been on its way
			t.Errorf("asked %v", m)
		}
	}
}
