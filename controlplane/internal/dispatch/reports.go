package dispatch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/obs"
	"github.com/debvisor/debvisor/shared/task"
)

const (
	progressEvery = time.Second
	// reportsPerWrite keeps a transaction far below etcd's limits.
	reportsPerWrite = 200
	// awaitTimeout is how long the snapshot may lag behind a write.
	awaitTimeout = 2 * time.Second
)

// update is what agents reported of a task since its record was written.
type update struct {
	node    string
	journal string
	report  *agentv1.TaskReport
}

// report takes an agent's report. It does not wait: writeReports writes it.
func (l *leader) report(s *session, r *agentv1.TaskReport) {
	id := r.GetTaskId()
	entry, known := l.cfg.View.Current().Tasks[id]
	if !known || entry.Value.GetNode() != s.node {
		l.foreign(s, r)
		return
	}
	t := entry.Value
	state := task.State(t.GetState())
	if task.Ended(state) {
		if task.Ended(r.GetState()) {
			s.acknowledge(id)
		} else {
			l.over(s, t)
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.updates[id]; u != nil && u.report.GetState() > r.GetState() {
		return // states only grow
	}
	if r.GetState() < state {
		return
	}
	side := sideOf(r)
	if side != nil && !proto.Equal(side, l.sides[id]) {
		l.sides[id] = side
		ring(l.bell)
	}
	l.updates[id] = &update{node: s.node, journal: s.journal, report: r}
	if task.CanMove(state, r.GetState()) || isNews(t, r) {
		ring(l.news)
	}
}

// over tells an agent that a task of its has ended without it, on the word that
// its node was off: what is left of it is to be cleared up.
func (l *leader) over(s *session, t *storev1.Task) {
	l.log.Warn("the agent is still at a task that was ended without it", store.TaskIDs(t).Args("node", s.node)...)
	s.cancel(t.GetId())
	if side := l.otherSide(l.cfg.View.Current(), t); side != nil {
		s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_PeerSide{PeerSide: &agentv1.PeerSide{TaskId: t.GetId(), Side: side}}})
	}
}

// foreign answers a report of a task that is not the node's: purged, or from
// before a restored backup. One that has ended is done with, one that has not
// is asked to.
func (l *leader) foreign(s *session, r *agentv1.TaskReport) {
	l.log.Warn("report of an unknown task", obs.TaskKey, r.GetTaskId(), "node", s.node, "state", r.GetState())
	if task.Ended(r.GetState()) {
		l.cfg.Inventory.ForeignEnded(s.node, r.GetTaskId())
		s.acknowledge(r.GetTaskId())
		return
	}
	s.cancel(r.GetTaskId())
}

func (s *session) acknowledge(id string) {
	s.push(&agentv1.LeaderMessage{Kind: &agentv1.LeaderMessage_ReportAck{ReportAck: &agentv1.ReportAck{TaskId: id}}})
}

// isNews tells whether the progress holds something that a controller waits
// for, which is not merely further along.
func isNews(t *storev1.Task, r *agentv1.TaskReport) bool {
	var was agentv1.TaskProgress
	if proto.Unmarshal(t.GetProgress(), &was) != nil {
		return true
	}
	now := r.GetProgress()
	return was.GetMigrateReceive().GetRefused() != now.GetMigrateReceive().GetRefused() ||
		was.GetReplicateReceive().GetAddress() != now.GetReplicateReceive().GetAddress() ||
		was.GetReplicateReceive().GetRefused() != now.GetReplicateReceive().GetRefused() ||
		was.GetMigrateReceive().GetTunnelAddress() != now.GetMigrateReceive().GetTunnelAddress() ||
		was.GetMigrateReceive().GetSide().GetState() != now.GetMigrateReceive().GetSide().GetState() ||
		was.GetMigrateSend().GetSwitchingOver() != now.GetMigrateSend().GetSwitchingOver() ||
		was.GetMigrateSend().GetSide().GetState() != now.GetMigrateSend().GetSide().GetState()
}

// writeReports writes reports to the tasks' records until ctx ends: what is
// news at once, mere progress of all tasks together once a second.
func (l *leader) writeReports(ctx context.Context) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.news:
		case <-tick.C:
		}
		for again := true; again; {
			var err error
			if again, err = l.writeSome(ctx); err == nil {
				continue
			}
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, store.ErrFenced) {
				return fmt.Errorf("writing reports: %w", err)
			}
			l.log.Warn("reports not written, will be tried again", "error", err)
			again = false // with the next tick
		}
	}
}

// writeSome writes what one transaction takes; again tells whether there may
// be more to write now.
func (l *leader) writeSome(ctx context.Context) (again bool, err error) {
	snapshot := l.cfg.View.Current()
	taken := l.takeUpdates()
	change := store.Change{Fence: l.lead.Fence}
	for id, u := range taken {
		next, at := apply(snapshot, id, u)
		if next == nil {
			continue
		}
		change.Puts = append(change.Puts, store.PutProto(store.TaskKey(id), next))
		change.Require = append(change.Require, store.Unchanged(store.TaskKey(id), at))
	}
	if len(change.Puts) > 0 {
		revision, err := l.cfg.Store.Commit(ctx, change)
		if err == nil {
			err = l.await(ctx, revision)
		}
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			l.giveBack(taken)
			return true, l.awaitChange(ctx, snapshot)
		}
		if err != nil {
			l.giveBack(taken)
			return false, err
		}
	}
	l.acknowledge(taken)
	return len(taken) == reportsPerWrite, nil
}

func (l *leader) takeUpdates() map[string]*update {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := map[string]*update{}
	for _, id := range slices.Sorted(maps.Keys(l.updates)) {
		if len(taken) == reportsPerWrite {
			break
		}
		taken[id] = l.updates[id]
		delete(l.updates, id)
	}
	return taken
}

// giveBack has reports written later, unless newer ones have come.
func (l *leader) giveBack(taken map[string]*update) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, u := range taken {
		if l.updates[id] == nil {
			l.updates[id] = u
		}
	}
}

// acknowledge tells the agents whose tasks' ends are now in etcd.
func (l *leader) acknowledge(written map[string]*update) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, u := range written {
		if !task.Ended(u.report.GetState()) {
			continue
		}
		delete(l.sides, id) // the record has it
		if s := l.sessions[u.node]; s != nil {
			s.acknowledge(id)
		}
	}
}

func (l *leader) await(ctx context.Context, revision int64) error {
	bounded, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	return l.cfg.View.Await(bounded, revision)
}

// awaitChange waits until the snapshot is another.
func (l *leader) awaitChange(ctx context.Context, s *cluster.Snapshot) error {
	return l.await(ctx, s.Revision+1)
}

// apply makes the task's next record of a report, and gives the revision of
// the present one; nil: the report says nothing new.
func apply(snapshot *cluster.Snapshot, id string, u *update) (next *storev1.Task, at int64) {
	entry, ok := snapshot.Tasks[id]
	if !ok {
		return nil, 0
	}
	state := task.State(entry.Value.GetState())
	moves := task.CanMove(state, u.report.GetState())
	if task.Ended(state) || !moves && u.report.GetState() != state {
		return nil, 0
	}
	next = proto.CloneOf(entry.Value)
	if next.GetJournalId() == "" {
		next.JournalId = u.journal
	}
	if p := u.report.GetProgress(); p != nil {
		next.Progress = encode(p)
	}
	if moves {
		next.State = task.Recorded(u.report.GetState())
	}
	if task.Ended(u.report.GetState()) {
		next.Outcome = encode(u.report.GetOutcome())
		next.EndedAt = timestamppb.Now()
	}
	if proto.Equal(next, entry.Value) {
		return nil, 0
	}
	return next, entry.ModRevision
}

// encode is deterministic, so that equal messages are equal bytes.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil // only invalid UTF-8, which the wire did not let through
	}
	return b
}
