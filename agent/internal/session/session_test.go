package session_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/worker"
	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
	"github.com/debvisor/debvisor/shared/task"
)

func notLeader(leader string, replicas ...string) *agentv1.LeaderMessage {
	return &agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_NotLeader{NotLeader: &agentv1.NotLeader{LeaderAddress: leader, Replicas: replicas}}}
}

func TestFindsTheLeaderAndRemembersTheReplicas(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	follower, leader := p.replica(t, "r1"), p.replica(t, "r2")
	a := p.agent(t, follower)
	s, stop := a.start(t)

	first := follower.next(t)
	first.say(t, notLeader("", follower.address)) // an election is under way
	first.end <- nil
	second := follower.next(t)
	second.say(t, notLeader(leader.address, follower.address, leader.address))
	second.end <- nil
	c := leader.next(t)
	if c.hello.GetNodeId() != "node-1" || len(c.hello.GetJournalId()) != 32 || c.hello.GetPeerAddress() == "" || c.hello.GetBootId() != "boot" {
		t.Errorf("Hello: %v", c.hello)
	}
	c.welcome(t, term(5), follower.address, leader.address)
	var seqs []uint64
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool {
		if inv := m.GetInventory(); inv != nil {
			seqs = append(seqs, inv.GetSeq())
			if inv.GetComplete() != (inv.GetSeq() == 1) {
				t.Errorf("inventory %v", inv)
			}
			if inv.GetComplete() {
				go a.host.tell(&agentv1.Inventory{Gone: []string{"x"}})
			}
		}
		return len(seqs) == 2
	})
	if seqs[0] != 1 || seqs[1] != 2 {
		t.Errorf("inventories %v", seqs)
	}
	c.until(t, term(5), func(*agentv1.AgentMessage) bool {
		a.host.mu.Lock()
		defer a.host.mu.Unlock()
		return a.host.rtt > 0
	})
	if got := s.Servers(); got[0] != leader.address {
		t.Errorf("servers %v, want the leader first", got)
	}
	stop()

	a.servers = []string{"127.0.0.1:1"} // what enrolment said is long gone
	s, _ = a.start(t)
	if got := strings.Join(s.Servers(), " "); !strings.Contains(got, leader.address) || !strings.Contains(got, follower.address) {
		t.Errorf("after a restart it knows %s", got)
	}
}

func TestAStaleLeaderIsNotObeyedEvenAfterARestart(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	var runs atomic.Int32
	a := p.agent(t, r)
	a.kinds = []worker.Kind{kind(func(context.Context, worker.Run) *agentv1.TaskOutcome { runs.Add(1); return &agentv1.TaskOutcome{} })}
	_, stop := a.start(t)
	c := r.next(t)
	c.welcome(t, term(7))
	c.until(t, term(7), func(m *agentv1.AgentMessage) bool { return m.GetHeartbeat().GetSeq() > 1 })
	stop()

	a.start(t)
	c = r.next(t)
	if got := task.TermOf(c.hello.GetHighestTerm()); got != (task.Term{Epoch: 1, Revision: 7}) {
		t.Errorf("Hello says that the highest term is %s", got)
	}
	c.welcome(t, term(6)) // woken from a long sleep
	c = r.next(t)         // the agent has left and asks again
	c.welcome(t, term(8))
	c.say(t, &agentv1.LeaderMessage{Term: term(7), Kind: &agentv1.LeaderMessage_Task{Task: &agentv1.Task{Id: "op/1/k"}}})
	c = r.next(t)
	if len(c.hello.GetTasks()) != 0 || runs.Load() != 0 {
		t.Errorf("a task of an older term was taken: %v", c.hello.GetTasks())
	}
	c.welcome(t, term(8))
	c.until(t, nil, func(m *agentv1.AgentMessage) bool { return m.GetHeartbeat() != nil })
	c.say(t, &agentv1.LeaderMessage{Term: term(3), Kind: &agentv1.LeaderMessage_HeartbeatAck{HeartbeatAck: &agentv1.HeartbeatAck{Seq: 1}}})
	r.next(t) // not even an answer to a heartbeat counts
}

// kind is a task kind "k".
type kind func(context.Context, worker.Run) *agentv1.TaskOutcome

func (kind) Name() string { return "k" }

func (k kind) Do(ctx context.Context, _ *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
	return k(ctx, r)
}

func (k kind) Observe(ctx context.Context, _ *agentv1.Task, r worker.Run) *agentv1.TaskOutcome {
	return k(ctx, r)
}

func TestATaskIsDoneOnceAndItsEndIsToldUntilAcknowledged(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	var runs atomic.Int32
	a := p.agent(t, r)
	a.kinds = []worker.Kind{kind(func(_ context.Context, run worker.Run) *agentv1.TaskOutcome {
		runs.Add(1)
		<-run.Cancelled()
		return &agentv1.TaskOutcome{ErrorCode: worker.CodeCancelled, Side: <-run.Relayed()}
	})}
	_, stop := a.start(t)
	deliver := &agentv1.LeaderMessage{Term: term(5), Kind: &agentv1.LeaderMessage_Task{Task: &agentv1.Task{Id: "op/1/k", Term: term(5)}}}
	state := func(want task.State) func(*agentv1.AgentMessage) bool {
		return func(m *agentv1.AgentMessage) bool { return m.GetReport().GetState() == want }
	}
	c := r.next(t)
	c.welcome(t, term(5))
	c.say(t, deliver)
	c.say(t, deliver)
	c.until(t, term(5), state(task.Running))
	c.end <- nil // the leader dies

	c = r.next(t)
	if tasks := c.hello.GetTasks(); len(tasks) != 1 || tasks[0].GetState() != task.Running {
		t.Fatalf("the next leader is told %v", tasks)
	}
	c.welcome(t, term(6))
	c.say(t, &agentv1.LeaderMessage{Term: term(6), Kind: &agentv1.LeaderMessage_PeerSide{PeerSide: &agentv1.PeerSide{TaskId: "op/1/k", Side: &agentv1.Side{Reason: "relayed"}}}})
	c.say(t, &agentv1.LeaderMessage{Term: term(6), Kind: &agentv1.LeaderMessage_CancelTask{CancelTask: &agentv1.CancelTask{TaskId: "op/1/k"}}})
	c.until(t, term(6), state(task.Cancelled))
	stop() // before the end was acknowledged

	_, stop = a.start(t)
	c = r.next(t)
	if tasks := c.hello.GetTasks(); len(tasks) != 1 || tasks[0].GetState() != task.Cancelled || tasks[0].GetOutcome().GetSide().GetReason() != "relayed" {
		t.Fatalf("after the restart the leader is told %v", tasks)
	}
	c.welcome(t, term(6))
	c.until(t, term(6), state(task.Cancelled)) // once more, since nobody acknowledged it
	c.say(t, &agentv1.LeaderMessage{Term: term(6), Kind: &agentv1.LeaderMessage_ReportAck{ReportAck: &agentv1.ReportAck{TaskId: "op/1/k"}}})
	deliver.Term = term(6)
	c.say(t, deliver)
	c.until(t, term(6), state(task.Cancelled)) // late: answered, not done
	c.say(t, &agentv1.LeaderMessage{Term: term(6), Kind: &agentv1.LeaderMessage_ReportAck{ReportAck: &agentv1.ReportAck{TaskId: "op/1/k"}}})
	c.until(t, term(6), func(m *agentv1.AgentMessage) bool { return m.GetHeartbeat() != nil })
	stop()
	if runs.Load() != 1 {
		t.Errorf("done %d times", runs.Load())
	}
}

func TestASilentLeaderIsLeft(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	a := p.agent(t, r)
	said := make(chan string, 10)
	a.says = func(what string) { said <- what }
	a.start(t)
	c := r.next(t)
	c.welcome(t, term(5))
	if what := <-said; !strings.HasPrefix(what, "up ") {
		t.Errorf("a session begins with %q", what)
	}
	began := time.Now()
	r.next(t) // nothing was answered: it dials anew
	if took := time.Since(began); took < 7*time.Second || took > 12*time.Second {
		t.Errorf("left after %s, want 8 s", took)
	}
	if what := <-said; what != "down" {
		t.Errorf("it ends with %q: whoever is told of sessions believes that there is one", what)
	}
}

func TestARenewedCertificateMovesTheSession(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	a := p.agent(t, r)
	a.start(t)
	c := r.next(t)
	first := rpc.Certificate(c.Context())
	c.welcome(t, term(5))
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool { return m.GetHeartbeat() != nil })
	p.reloader(t, "agent", certs.AgentLeaf(clusterName, "node-1", time.Hour)) // writes the files
	if err := a.tls.Reload(); err != nil {
		t.Fatal(err)
	}
	second := r.next(t)
	if shown := rpc.Certificate(second.Context()); certs.Serial(shown) == certs.Serial(first) || certs.Serial(shown) != certs.Serial(a.tls.Leaf()) {
		t.Errorf("the next session shows %s, the first showed %s, and the agent has %s", certs.Serial(shown), certs.Serial(first), certs.Serial(a.tls.Leaf()))
	}
	second.welcome(t, term(5))
	second.until(t, term(5), func(m *agentv1.AgentMessage) bool { return m.GetHeartbeat() != nil })
}

func TestARefusalIsLogged(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	log := &syncBuffer{}
	a := p.agent(t, r)
	a.log = hclog.New(&hclog.LoggerOptions{Output: log})
	a.start(t)
	r.next(t).end <- errdefs.New(errdefs.AlreadyExists, "NODE_HAS_SESSION", "two agents claim one node")
	deadline := time.Now().Add(patience)
	for !strings.Contains(log.String(), "session refused") || !strings.Contains(log.String(), "two agents claim one node") {
		if time.Now().After(deadline) {
			t.Fatalf("the log says:\n%s", log)
		}
		time.Sleep(10 * time.Millisecond) // the deadline's polling
	}
}

// syncBuffer is a log that a test can read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// oracle answers when the test says so.
type oracle struct {
	answer chan struct{}
	ended  chan struct{}
}

func (o oracle) Answer(ctx context.Context, q *agentv1.Ask, _ func(*agentv1.Answer) error) *agentv1.Answer {
	select {
	case <-o.answer:
	case <-ctx.Done():
		o.ended <- struct{}{}
	}
	return &agentv1.Answer{Id: q.GetId(), Answer: &agentv1.Answer_CpuComparison{CpuComparison: &agentv1.CPUComparison{Compatible: true}}}
}

func TestQuestionsHoldUpNothing(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	r := p.replica(t, "r1")
	const many = 16
	o := oracle{make(chan struct{}), make(chan struct{}, many)}
	a := p.agent(t, r)
	a.answers = o
	var runs atomic.Int32
	a.kinds = []worker.Kind{kind(func(context.Context, worker.Run) *agentv1.TaskOutcome { runs.Add(1); return &agentv1.TaskOutcome{} })}
	_, stop := a.start(t)
	c := r.next(t)
	c.welcome(t, term(5))
	ask := func(id uint64) {
		c.say(t, &agentv1.LeaderMessage{Term: term(5), Kind: &agentv1.LeaderMessage_Ask{Ask: &agentv1.Ask{Id: id}}})
	}
	for id := range uint64(many + 1) {
		ask(id + 1)
	}
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool { // one too many
		return m.GetAnswer().GetId() == many+1 && m.GetAnswer().GetErrorCode() == "AGENT_BUSY"
	})
	// Nothing is answered yet, and all else goes on.
	c.say(t, &agentv1.LeaderMessage{Term: term(5), Kind: &agentv1.LeaderMessage_Task{Task: &agentv1.Task{Id: "op/1/k", Term: term(5)}}})
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool { return task.Ended(m.GetReport().GetState()) })
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool { return m.GetHeartbeat() != nil })
	for range many - 1 {
		o.answer <- struct{}{}
	}
	seen := map[uint64]bool{}
	c.until(t, term(5), func(m *agentv1.AgentMessage) bool {
		if answer := m.GetAnswer(); answer.GetCpuComparison().GetCompatible() {
			seen[answer.GetId()] = true
		}
		return len(seen) == many-1
	})
	stop() // the last question ends with its session
	select {
	case <-o.ended:
	default:
		t.Error("the session has ended and its question has not")
	}
	if runs.Load() != 1 {
		t.Errorf("the task ran %d times", runs.Load())
	}
}
