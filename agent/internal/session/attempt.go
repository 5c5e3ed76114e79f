package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/task"
)

// attempt asks one replica for a session and, where it leads, keeps it until
// it breaks. welcomed tells whether there was one.
func (s *Session) attempt(ctx context.Context, address string) (welcomed bool, err error) {
	if address == "" {
		return false, errors.New("no replica is known")
	}
	conn, err := s.conns.to(address)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(welcomeTimeout, func() { cancel(fmt.Errorf("no answer to Hello for %s", welcomeTimeout)) })
	defer late.Stop()

	stream, err := agentv1.NewSessionServiceClient(conn).Connect(ctx)
	if err != nil {
		return false, cause(ctx, err)
	}
	welcome, err := s.greet(stream)
	if err != nil {
		return false, cause(ctx, err)
	}
	if !late.Stop() {
		return false, cause(ctx, context.Canceled)
	}
	s.conns.closeExcept(address)
	s.servers.welcomed(address, welcome.GetReplicas())
	s.cfg.Log.Info("session open", "replica", address, "leader", welcome.GetLeader(), "term", s.cfg.Work.HighestTerm())
	if s.cfg.Up != nil {
		s.cfg.Up(welcome.GetLeader())
	}
	if s.cfg.Down != nil {
		defer s.cfg.Down()
	}
	interval := time.Duration(welcome.GetHeartbeatIntervalMs()) * time.Millisecond
	l := newLink(s.cfg, s.conns.shown, stream, interval, cancel)
	if bundle := welcome.GetTrustBundle(); bundle != nil && s.cfg.Trust != nil {
		// A leader that tells none would not understand what is told of them.
		s.cfg.Trust.Take(bundle)
		l.trust = s.cfg.Trust
	}
	return true, l.serve(ctx)
}

// greet says Hello and takes the answer.
func (s *Session) greet(stream agentv1.SessionService_ConnectClient) (*agentv1.Welcome, error) {
	hello := &agentv1.Hello{
		NodeId: s.cfg.Node, JournalId: s.cfg.Work.JournalID(), AgentVersion: s.cfg.Version,
		HighestTerm: s.cfg.Work.HighestTerm().Wire(), Tasks: s.cfg.Work.Open(),
		PeerAddress: s.cfg.PeerAddress, BootId: s.cfg.BootID,
	}
	// A send that fails leaves its reason to Recv.
	_ = stream.Send(&agentv1.AgentMessage{Kind: &agentv1.AgentMessage_Hello{Hello: hello}})
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if n := m.GetNotLeader(); n != nil {
		return nil, &notLeaderError{leader: n.GetLeaderAddress(), replicas: n.GetReplicas()}
	}
	w := m.GetWelcome()
	if w == nil {
		return nil, fmt.Errorf("the replica answered Hello with %T", m.GetKind())
	}
	if err := s.cfg.Work.Welcome(task.TermOf(m.GetTerm()), w.GetConfirmedEpoch()); err != nil {
		return nil, fmt.Errorf("the replica %s says that it leads: %w", w.GetLeader(), err)
	}
	return w, nil
}

// cause is why the stream ended: our own reason to end it, where there is one,
// else the replica's.
func cause(ctx context.Context, err error) error {
	if own := context.Cause(ctx); own != nil {
		return own
	}
	return errdefs.FromStatus(err)
}
