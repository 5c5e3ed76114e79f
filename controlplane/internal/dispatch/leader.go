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

// deadAfter is the silence after which a session no longer keeps another
// journal out: its agent has long dialled anew, if it lives.
const deadAfter = 10 * time.Second

// leader is dispatch while this replica leads, for one term.
type leader struct {
	cfg  Config
	lead election.Leadership
	log  hclog.Logger
	wg   sync.WaitGroup // all that runs for sessions
	bell chan struct{}  // distribute has to look
	news chan struct{}  // writeReports has something that cannot wait

	mu       sync.Mutex
	ended    bool
	sessions map[string]*session      // by node
	updates  map[string]*update       // by task: reported, not yet written
	sides    map[string]*agentv1.Side // by task: as last reported
}

func newLeader(cfg Config, l election.Leadership) *leader {
	return &leader{
		cfg: cfg, lead: l, log: cfg.Log.With("term", l.Term.String()),
		bell: make(chan struct{}, 1), news: make(chan struct{}, 1),
		sessions: map[string]*session{}, updates: map[string]*update{}, sides: map[string]*agentv1.Side{},
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
// is half-open, and is refused beside a live one of another.
func (l *leader) add(s *session) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return errdefs.New(errdefs.Unavailable, "NOT_LEADER", "this replica does not lead any more")
	}
	if old := l.sessions[s.node]; old != nil {
		if old.journal != s.journal && time.Since(old.lastHeard()) < deadAfter {
			l.log.Error("session refused: two agents claim one node", "node", s.node,
				"journal", old.journal, "remote", old.remote, "refused_journal", s.journal, "refused_remote", s.remote)
			return errdefs.New(errdefs.AlreadyExists, "NODE_HAS_SESSION",
				"node %s has a live session from %s with another journal: two agents claim one node", s.node, old.remote).
				With("node", s.node).With("journal", old.journal).With("refused_journal", s.journal)
		}
		l.log.Info("session replaced", "node", s.node, "remote", old.remote, "by", s.remote)
		old.stop(errdefs.New(errdefs.Aborted, "SESSION_REPLACED", "the node's agent has opened another session"))
	}
	l.sessions[s.node] = s
	l.wg.Add(1)
	return nil
}

func (l *leader) remove(s *session) {
	l.mu.Lock()
	if l.sessions[s.node] == s {
		delete(l.sessions, s.node)
	}
	l.mu.Unlock()
	l.wg.Done()
}

// end ends all sessions and waits for them.
func (l *leader) end() {
	l.mu.Lock()
	l.ended = true
	for _, s := range l.sessions {
		s.stop(errdefs.New(errdefs.Unavailable, "NOT_LEADER", "this replica does not lead any more"))
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// distribute sends sessions what the snapshot and the reports call for, until
// ctx ends.
func (l *leader) distribute(ctx context.Context) error {
	for {
		changed := l.cfg.View.Changed()
		snapshot := l.cfg.View.Current()
		for _, s := range l.open() {
			l.update(s, snapshot)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-l.bell:
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
