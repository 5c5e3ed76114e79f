package relay

import (
	"context"
	"errors"
	"time"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/dispatch"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// patience is how long a question waits for a leader, or for the session of a
	// node that is there: after a change of leaders agents dial anew within a
	// second or two.
	patience = 5 * time.Second
	// again is how often it is tried meanwhile.
	again = 100 * time.Millisecond
)

// Sessions are the agents' sessions of this replica, if it leads
// (dispatch.Dispatch).
type Sessions interface {
	AskParts(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error
}

// View is where the snapshot comes from (store.View).
type View interface {
	Current() *cluster.Snapshot
	Changed() <-chan struct{}
}

// Config is what a relay is made of.
type Config struct {
	// Replica is this replica's name.
	Replica  string
	View     View
	Sessions Sessions
	// Leader is how other replicas are dialled.
	Leader *Lines
}

// Relay asks agents. It is safe for concurrent use.
type Relay struct {
	agentv1.UnimplementedRelayServiceServer
	cfg Config
}

// New makes a relay.
func New(cfg Config) *Relay { return &Relay{cfg: cfg} }

// Ask puts a question to a node's agent and hands each part of the answer to
// part, one after the other. It ends with ctx, or after a minute where ctx has no
// deadline. Errors are those of dispatch.AskParts and part's own; besides,
// Unavailable where there is no leader, or where it changed within the answer.
// After an error, the parts that came are not all that there is.
func (r *Relay) Ask(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	if _, ok := ctx.Deadline(); !ok {
		bounded, cancel := context.WithTimeout(ctx, dispatch.AskPartsTimeout)
		defer cancel()
		ctx = bounded
	}
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		changed := r.cfg.View.Changed()
		taken := &taker{part: part}
		err := r.askOnce(ctx, node, q, taken.take)
		switch {
		case err == nil:
			return nil
		case taken.err != nil:
			return taken.err
		case ctx.Err() != nil && errdefs.Is(err, errdefs.Cancelled):
			return errdefs.New(errdefs.DeadlineExceeded, "NO_ANSWER", "node %s has not answered", node).With("node", node).WithCause(ctx.Err())
		case taken.parts > 0:
			return cut(err, node)
		case !r.mayHelp(err, node):
			return err
		}
		select {
		case <-patient.Done():
			return err
		case <-changed:
		case <-time.After(again):
		}
	}
}

// taker hands parts on, and knows whether it was the asker that had enough.
type taker struct {
	part  func(*agentv1.Answer) error
	parts int
	err   error
}

func (t *taker) take(a *agentv1.Answer) error {
	t.parts++
	t.err = t.part(a)
	return t.err
}

// cut is the error of an answer of which some parts have come.
func cut(err error, node string) error {
	if !errdefs.Is(err, errdefs.Unavailable) && !errdefs.Is(err, errdefs.Cancelled) {
		return err
	}
	return errdefs.New(errdefs.Unavailable, "ANSWER_CUT", "the answer of node %s was cut off before its end; ask again", node).
		With("node", node).WithRetry(time.Second).WithCause(err)
}

// mayHelp tells whether to ask again may help soon.
func (r *Relay) mayHelp(err error, node string) bool {
	switch {
	case errdefs.Is(err, errdefs.Cancelled):
		return true // the line was closed since the leader is another now
	case !errdefs.Is(err, errdefs.Unavailable):
		return false
	}
	var known *errdefs.Error
	if errors.As(err, &known) && (known.Code == "NO_SESSION" || known.Code == "SESSION_ENDED") {
		return r.cfg.View.Current().Statuses[node].Value.GetLiveness() == storev1.NodeLiveness_NODE_LIVENESS_ONLINE
	}
	return true
}

// askOnce asks the node itself if this replica leads, else the leader.
func (r *Relay) askOnce(ctx context.Context, node string, q *agentv1.Ask, part func(*agentv1.Answer) error) error {
	leader := r.cfg.View.Current().Leader
	switch {
	case leader == nil || leader.AgentsAddress == "":
		return errdefs.New(errdefs.Unavailable, "NO_LEADER", "no replica leads at present: nobody can ask node %s", node).
			With("node", node).WithRetry(time.Second)
	case leader.Name == r.cfg.Replica:
		return r.cfg.Sessions.AskParts(ctx, node, q, part)
	}
	conn, err := r.cfg.Leader.to(leader.AgentsAddress)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the call wherever this returns
	stream, err := agentv1.NewRelayServiceClient(conn).AskNode(ctx, &agentv1.AskNodeRequest{NodeId: node, Ask: q})
	if err != nil {
		return errdefs.FromStatus(err)
	}
	for {
		a, err := stream.Recv()
		if err != nil {
			// io.EOF, too, is an end before the last part.
			return errdefs.FromStatus(err)
		}
		if err := part(a); err != nil {
			return err
		}
		if !a.GetMore() {
			return nil
		}
	}
}

// AskNode asks a node for another replica. It relays to nobody else: where this
// replica does not lead, or is not sure to, it says so.
func (r *Relay) AskNode(req *agentv1.AskNodeRequest, stream agentv1.RelayService_AskNodeServer) error {
	if req.GetNodeId() == "" {
		return errdefs.Field("node_id", "", "a node's id")
	}
	if req.GetAsk().GetQuestion() == nil {
		return errdefs.Field("ask", "none", "a question")
	}
	return r.cfg.Sessions.AskParts(stream.Context(), req.GetNodeId(), req.GetAsk(), stream.Send)
}
