package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// deadAfter is the silence after which a node's agent no longer keeps another
// journal out, with its session or after it: it has long dialled anew, if it
// lives.
const deadAfter = 10 * time.Second

// leader is dispatch while this replica leads, for one term.
type leader struct {
	cfg  Config
	lead election.Leadership
	log  hclog.Logger
	from time.Time      // when it began to lead
	wg   sync.WaitGroup // all that runs for sessions
	bell chan struct{}  // distribute has to look
	news chan struct{}  // writeReports has something that cannot wait

	mu       sync.Mutex
	ended    bool
	sessions map[string]*session      // by node
	heard    map[string]time.Time     // by node: when its last session that ended was last heard
	updates  map[string]*update       // by task: reported, not yet written
	sides    map[string]*agentv1.Side // by task: as last reported
}

func newLeader(cfg Config, l election.Leadership) *leader {
	return &leader{
		cfg: cfg, lead: l, log: cfg.Log.With("term", l.Term.String()), from: cfg.Now(),
		bell: make(chan struct{}, 1), news: make(chan struct{}, 1),
		sessions: map[string]*session{}, heard: map[string]time.Time{}, updates: map[string]*update{}, sides: map[string]*agentv1.Side{},
	}
}

const retryEvery = 500 * time.Millisecond

// retry repeats what failed because etcd did not answer.
func (l *leader) retry(ctx context.Context, what string, do func() error) error {
	for {
		err := do()
		if err == nil {
			return nil
		}
		if errors.Is(err, store.ErrFenced) || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		l.log.Warn("will be tried again", "what", what, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEvery):
		}
	}
}

// add makes s its node's session: it replaces one of the same journal, which
// is half-open, and is refused beside a live one of another. A session of
// another journal than the node's last is refused for as long as the former
// may only be looking for this leader: else a second agent would take the
// node's place whenever the leader changes or a connection breaks.
func (l *leader) add(s *session) error {
	former, err := l.cfg.Inventory.Journal(s.node)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return errNotLeader()
	}
	if old := l.sessions[s.node]; old != nil {
		if old.journal != s.journal && l.cfg.Now().Sub(old.lastHeard()) < deadAfter {
			l.log.Error("session refused: two agents claim one node", "node", s.node,
				"journal", old.journal, "remote", old.remote, "refused_journal", s.journal, "refused_remote", s.remote)
			return errdefs.New(errdefs.AlreadyExists, "NODE_HAS_SESSION",
				"node %s has a live session from %s with another journal: two agents claim one node", s.node, old.remote).
				With("node", s.node).With("journal", old.journal).With("refused_journal", s.journal)
		}
		l.log.Info("session replaced", "node", s.node, "remote", old.remote, "by", s.remote)
		old.stop(errdefs.New(errdefs.Aborted, "SESSION_REPLACED", "the node's agent has opened another session"))
	} else if wait := l.awaits(s.node); former != "" && former != s.journal && wait > 0 {
		l.log.Warn("session refused: the node's agent may be on its way with the journal that it had", "node", s.node,
			"journal", former, "refused_journal", s.journal, "refused_remote", s.remote, "wait", wait)
		return errdefs.New(errdefs.Unavailable, "FORMER_JOURNAL_AWAITED",
			"node %s had another journal: the agent that has it is waited for until it has been silent for %s", s.node, deadAfter).
			With("node", s.node).With("journal", former).With("refused_journal", s.journal).WithRetry(wait)
	}
	l.sessions[s.node] = s
	l.wg.Add(1)
	return nil
}

// awaits is for how long yet an agent of a node without a session may come
// back. One that was enrolled before the node was enrolled anew cannot. The
// caller holds l.mu.
func (l *leader) awaits(node string) time.Duration {
	heard := l.from // the former leader may have heard it until then
	if at := l.heard[node]; at.After(heard) {
		heard = at
	}
	if l.cfg.View.Current().Nodes[node].Value.GetEnrolledAt().AsTime().After(heard) {
		return 0
	}
	return deadAfter - l.cfg.Now().Sub(heard)
}

func (l *leader) remove(s *session) {
	l.mu.Lock()
	if l.sessions[s.node] == s {
		delete(l.sessions, s.node)
		if entitled(l.cfg.View.Current(), s.agent) == nil { // else it cannot come back
			l.heard[s.node] = s.lastHeard()
		}
	}
	l.mu.Unlock()
	l.wg.Done()
}

// lastWord is how long agents have to be told that they are to leave.
const lastWord = 200 * time.Millisecond

// end tells all agents to look for the next leader, ends their sessions and
// waits for them.
func (l *leader) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	sessions := l.open()
	for _, s := range sessions {
		s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_Leaving{Leaving: &agentv1.Leaving{}}})
	}
	late := time.After(lastWord)
	for _, s := range sessions {
		select {
		case <-s.stopped: // it was told
		case <-late:
			late = nil
		}
		if late == nil {
			break
		}
	}
	for _, s := range sessions {
		s.stop(errNotLeader())
	}
	l.wg.Wait()
}

func errNotLeader() error {
	return errdefs.New(errdefs.Unavailable, "NOT_LEADER", "this replica does not lead any more").WithRetry(lastWord)
}

// distribute sends sessions what the snapshot and the reports call for, until
// ctx ends.
func (l *leader) distribute(ctx context.Context) error {
	for {
		changed := l.cfg.View.Changed()
		snapshot := l.cfg.View.Current()
		var trusts <-chan struct{}
		if l.cfg.Trust != nil {
			trusts = l.cfg.Trust.Changed()
		}
		for _, s := range l.open() {
			l.update(s, snapshot)
			s.tellTrust()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-l.bell:
		case <-trusts:
		}
	}
}

// open are the sessions, whether or not their beginning is in etcd yet.
func (l *leader) open() []*session {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*session, 0, len(l.sessions))
	for _, s := range l.sessions {
		list = append(list, s)
	}
	return list
}

func (l *leader) update(s *session, snapshot *cluster.Snapshot) {
	if err := entitled(snapshot, s.agent); err != nil {
		l.log.Warn("session ended", "node", s.node, "serial", s.agent.Serial, "reason", err)
		s.stop(err)
		return
	}
	if s.isReady(snapshot) {
		l.sendTasks(s, snapshot)
	}
}

func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
