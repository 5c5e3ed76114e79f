package dispatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
	"github.com/debvisor/debvisor/shared/task"
)

// helloTimeout is how long an agent may take to speak.
const helloTimeout = 5 * time.Second

type stream = agentv1.SessionService_ConnectServer

// Connect serves one agent's session.
func (d *Dispatch) Connect(st stream) error {
	ctx := st.Context()
	agent, err := d.identify(ctx)
	if err != nil {
		return err
	}
	if d.cfg.View.Current().Unconfirmed() {
		return unconfirmed(d.cfg.View.Current())
	}
	hello, err := receiveHello(ctx, st)
	if err != nil {
		return err
	}
	if hello.GetNodeId() != agent.Node {
		d.cfg.Log.Error("session refused: an agent speaks for another node",
			"certificate", agent.Node, "serial", agent.Serial, "claims", hello.GetNodeId(), "remote", rpc.Address(ctx))
		return errdefs.New(errdefs.PermissionDenied, "NOT_YOUR_NODE",
			"the certificate is node %s's agent's and speaks for no other node", agent.Node).
			With("certificate", agent.Node).With("claimed", hello.GetNodeId())
	}
	leader := d.current()
	if leader == nil {
		return st.Send(d.notLeader())
	}
	if err := leader.admit(hello); err != nil {
		return err
	}
	s := newSession(leader, agent, hello, rpc.Address(ctx))
	if err := leader.add(s); err != nil {
		return err
	}
	defer leader.remove(s)
	return s.serve(ctx, st)
}

// identify tells whose agent calls, and refuses all that are none.
func (d *Dispatch) identify(ctx context.Context) (*identity.AgentIdentity, error) {
	leaf := rpc.Certificate(ctx)
	if leaf == nil {
		return nil, errdefs.New(errdefs.Unauthenticated, "NO_CERTIFICATE", "a session needs an agent's certificate")
	}
	id, err := identity.FromCertificate(leaf, d.cfg.Cluster)
	if err != nil {
		return nil, err
	}
	if id.Agent == nil {
		return nil, errdefs.New(errdefs.PermissionDenied, "NOT_AN_AGENT", "%s is no agent", id)
	}
	if id.Agent.Expired(time.Now()) {
		return nil, errdefs.New(errdefs.Unauthenticated, "CERTIFICATE_EXPIRED",
			"the certificate of node %s's agent has expired: it may only renew it", id.Agent.Node)
	}
	if err := entitled(d.cfg.View.Current(), id.Agent); err != nil {
		if errdefs.Is(err, errdefs.NotFound) {
			d.noteStranger(ctx, id.Agent)
		}
		d.cfg.Log.Warn("session refused", "node", id.Agent.Node, "serial", id.Agent.Serial, "remote", rpc.Address(ctx), "reason", err)
		return nil, err
	}
	return id.Agent, nil
}

// entitled refuses an agent that speaks for its node no more: its certificate
// is revoked, or the node is gone or was enrolled anew since. It is asked when
// a session begins and at every change of the records.
func entitled(s *cluster.Snapshot, agent *identity.AgentIdentity) error {
	if _, revoked := s.Revoked[agent.Serial]; revoked {
		return errdefs.New(errdefs.PermissionDenied, "CERTIFICATE_REVOKED", "the certificate of node %s's agent is revoked", agent.Node)
	}
	node, ok := s.Nodes[agent.Node]
	switch {
	case !ok:
		return errdefs.New(errdefs.NotFound, "NODE_NOT_FOUND", "node %s is not registered", agent.Node)
	case agent.Replaced(node.Value.GetEnrolledAt().AsTime()):
		return errdefs.New(errdefs.PermissionDenied, "NODE_REPLACED",
			"node %s was enrolled anew after this agent's certificate was issued: another agent is the node's now", agent.Node)
	}
	return nil
}

// receiveHello takes the first message, and does not wait for it for ever.
func receiveHello(ctx context.Context, st stream) (*agentv1.Hello, error) {
	type first struct {
		m   *agentv1.AgentMessage
		err error
	}
	got := make(chan first, 1)
	go func() { // ends with the call, whose handler returns when it is late
		m, err := st.Recv()
		got <- first{m, err}
	}()
	late := time.NewTimer(helloTimeout)
	defer late.Stop()
	select {
	case f := <-got:
		if f.err != nil {
			return nil, f.err
		}
		hello := f.m.GetHello()
		if hello == nil || hello.GetJournalId() == "" {
			return nil, errdefs.Field("kind", fmt.Sprintf("%T", f.m.GetKind()), "a Hello with a journal id first")
		}
		return hello, nil
	case <-late.C:
		return nil, errdefs.New(errdefs.DeadlineExceeded, "NO_HELLO", "no Hello within %s", helloTimeout)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (d *Dispatch) notLeader() *agentv1.LeaderMessage {
	s := d.cfg.View.Current()
	n := &agentv1.NotLeader{Replicas: replicas(s)}
	// A leader that doubts its lease must not send agents back to itself.
	if s.Leader != nil && s.Leader.Name != d.cfg.Replica {
		n.LeaderAddress = s.Leader.AgentsAddress
	}
	return &agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_NotLeader{NotLeader: n}}
}

// admit refuses an agent that knows a newer leader: this one must not speak.
func (l *leader) admit(hello *agentv1.Hello) error {
	if highest := task.TermOf(hello.GetHighestTerm()); l.lead.Term.Less(highest) {
		l.log.Error("an agent has heard a newer leader", "node", hello.GetNodeId(), "its_term", highest, "term", l.lead.Term)
		return errdefs.New(errdefs.Unavailable, "STALE_LEADER", "term %s is older than %s, which the agent has heard", l.lead.Term, highest)
	}
	return nil
}

var errNotFresh = errors.New("the lease may have run out")
