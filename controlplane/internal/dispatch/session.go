package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
)

// maxOutbox bounds what may wait for an agent that does not read.
const maxOutbox = 1024

// session is one agent's stream. One goroutine receives and one sends what is
// in the outbox; the handler's own only waits for the end, so that it can end
// the stream whatever the other two wait for.
type session struct {
	leader  *leader
	node    string
	agent   *identity.AgentIdentity
	journal string
	remote  string
	hello   *agentv1.Hello
	bell    chan struct{} // the outbox has something
	stopped chan struct{}

	mu       sync.Mutex
	heard    time.Time
	outbox   []*agentv1.LeaderMessage
	reason   error // set when stopped is closed
	opening  bool
	openedAt int64 // revision at which etcd has the session; 0: not yet
	sent     sent
	asked    asked
	// bundle is what the agent was last told to trust, trust what it last said.
	bundle *agentv1.TrustBundle
	trust  *agentv1.Trust
}

// sent is what this session was sent already; distribute alone uses it.
type sent struct {
	tasks   map[string]bool
	cancels map[string]bool
	sides   map[string]*agentv1.Side
}

func newSession(l *leader, agent *identity.AgentIdentity, hello *agentv1.Hello, remote string) *session {
	s := &session{
		leader: l, node: agent.Node, agent: agent, journal: hello.GetJournalId(), remote: remote, hello: hello,
		bell: make(chan struct{}, 1), stopped: make(chan struct{}), heard: l.cfg.Now(),
		sent:  sent{tasks: map[string]bool{}, cancels: map[string]bool{}, sides: map[string]*agentv1.Side{}},
		asked: asked{waiting: map[uint64]chan *agentv1.Answer{}},
	}
	for _, r := range hello.GetTasks() {
		s.sent.tasks[r.GetTaskId()] = true // the agent has it
	}
	return s
}

// serve serves the stream until it breaks or is stopped.
func (s *session) serve(ctx context.Context, st stream) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.tellForeign(s.leader.cfg.View.Current().Tasks)
	s.leader.cfg.Inventory.Greet(s.node, s.hello.GetBootId())
	s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_Welcome{Welcome: &agentv1.Welcome{
		Leader:              s.leader.cfg.Replica,
		HeartbeatIntervalMs: uint32(s.leader.cfg.Interval / time.Millisecond),
		Replicas:            replicas(s.leader.cfg.View.Current()),
		TrustBundle:         s.nextBundle(true),
		ConfirmedEpoch:      s.leader.cfg.View.Current().ConfirmedEpoch(),
	}}})
	s.leader.log.Info("session open", "node", s.node, "journal", s.journal, "remote", s.remote, "version", s.hello.GetAgentVersion())
	// Both end when this call has returned.
	s.leader.wg.Go(func() { s.receive(ctx, st) })
	s.leader.wg.Go(func() { s.send(ctx, st) })
	var err error
	select {
	case <-s.stopped:
		err = s.reason
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.leader.log.Info("session ended", "node", s.node, "remote", s.remote, "reason", err)
	return err
}

// send sends the outbox. Right before each message it makes sure that the
// lease has not run out: a leader that slept must say nothing.
func (s *session) send(ctx context.Context, st stream) {
	for {
		for _, m := range s.takeOutbox() {
			m.Term = s.leader.lead.Term.Wire()
			if !s.leader.lead.Fresh() {
				s.stop(errdefs.New(errdefs.Unavailable, "NOT_LEADER", "this replica is not sure to lead any more").WithCause(errNotFresh))
				return
			}
			if err := st.Send(m); err != nil {
				s.stop(fmt.Errorf("sending to node %s: %w", s.node, err))
				return
			}
			if m.GetLeaving() != nil {
				s.stop(errNotLeader())
				return
			}
		}
		select {
		case <-s.bell:
		case <-s.stopped:
			return
		case <-ctx.Done():
			return
		}
	}
}

// receive takes what comes up until the stream ends. It waits for nothing
// else.
func (s *session) receive(ctx context.Context, st stream) {
	for {
		m, err := st.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errdefs.New(errdefs.Cancelled, "AGENT_LEFT", "the agent has ended the session")
			}
			s.stop(err)
			return
		}
		if s.isStopped() {
			return // a newer session may have told more by now
		}
		s.hear(ctx)
		switch k := m.GetKind().(type) {
		case *agentv1.AgentMessage_Heartbeat:
			s.leader.cfg.Inventory.Heartbeat(s.node, k.Heartbeat.GetHealth())
			s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_HeartbeatAck{HeartbeatAck: &agentv1.HeartbeatAck{Seq: k.Heartbeat.GetSeq()}}})
		case *agentv1.AgentMessage_Inventory:
			s.leader.cfg.Inventory.Report(s.node, k.Inventory)
		case *agentv1.AgentMessage_Report:
			s.leader.report(s, k.Report)
		case *agentv1.AgentMessage_Answer:
			s.answer(k.Answer)
		case *agentv1.AgentMessage_Trust:
			s.leader.cfg.Inventory.Trust(s.node, k.Trust)
			s.hearTrust(k.Trust)
		default:
			s.stop(errdefs.Field("kind", fmt.Sprintf("%T", m.GetKind()), "a heartbeat, an inventory, a report or an answer after Hello"))
			return
		}
	}
}

// hear notes a sign of life. The first one after Welcome says that the agent
// has the term on disk: from then on the session can be written down.
func (s *session) hear(ctx context.Context) {
	s.mu.Lock()
	s.heard = s.leader.cfg.Now()
	first := !s.opening
	s.opening = true
	s.mu.Unlock()
	if first {
		s.leader.wg.Go(func() { s.open(ctx) })
	}
}

// open writes the session's beginning, then lets tasks be sent on it.
func (s *session) open(ctx context.Context) {
	facts := inventory.Facts{
		AgentVersion: s.hello.GetAgentVersion(), PeerAddress: s.hello.GetPeerAddress(),
		JournalID: s.journal, BootID: s.hello.GetBootId(), Term: s.leader.lead.Term,
	}
	revision, err := s.leader.writeOpen(ctx, s.node, facts)
	if err != nil {
		s.stop(fmt.Errorf("writing the session of node %s: %w", s.node, err))
		return
	}
	s.mu.Lock()
	s.openedAt = revision
	s.mu.Unlock()
	for _, r := range s.hello.GetTasks() {
		s.leader.report(s, r)
	}
	ring(s.leader.bell)
}

func (s *session) isReady(snapshot *cluster.Snapshot) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openedAt != 0 && snapshot.Revision >= s.openedAt
}

// isOpened tells whether etcd has the session.
func (s *session) isOpened() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openedAt != 0
}

func (s *session) lastHeard() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

// push puts a message in the outbox. It never waits.
func (s *session) push(m *agentv1.LeaderMessage) {
	s.mu.Lock()
	full := len(s.outbox) >= maxOutbox
	if !full {
		s.outbox = append(s.outbox, m)
	}
	s.mu.Unlock()
	if full {
		s.stop(errdefs.New(errdefs.ResourceExhausted, "AGENT_SLOW", "the agent of node %s does not read", s.node))
		return
	}
	ring(s.bell)
}

func (s *session) takeOutbox() []*agentv1.LeaderMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.outbox
	s.outbox = nil
	return out
}

func (s *session) isStopped() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return false
	}
}

// stop ends the session; the first reason counts.
func (s *session) stop(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason == nil {
		s.reason = reason
		close(s.stopped)
	}
}
