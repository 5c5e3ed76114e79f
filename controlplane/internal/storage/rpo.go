package storage

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/debvisor/debvisor/controlplane/internal/audit"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/election"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// watch notes of each job whether its RPO is missed since, or kept again. What
// changes it is the clock and the ends of runs: it need not look at every change.
func (c *Controller) watch(ctx context.Context, l election.Leadership) error {
	snapshot, now := c.view.Current(), time.Now()
	if now.Sub(c.watched) < c.pace.look {
		return nil
	}
	c.watched = now
	for id, job := range snapshot.Replications {
		if now.Before(c.pauses[id]) {
			continue
		}
		s := judgeRPO(job, now)
		if s == nil {
			continue
		}
		if _, err := c.take(ctx, l, s, snapshot.Revision); err != nil {
			return err
		}
	}
	return nil
}

// judgeRPO gives the step that notes a change of a job's RPO; nil: there is none.
// It is pure.
func judgeRPO(job cluster.Entry[*storev1.ReplicationJob], now time.Time) *step {
	since := missedSince(job.Value, now)
	if since == nil == (job.Value.GetRpoMissedSince() == nil) {
		return nil
	}
	next := proto.CloneOf(job.Value)
	next.RpoMissedSince = since
	word, code := "is kept again", "RPO_KEPT"
	if since != nil {
		word, code = "is missed", "RPO_MISSED"
	}
	reason := fmt.Sprintf("the RPO of replication %s (%s of %s to %s) %s: the newest snapshot there is of %s",
		next.GetId(), next.GetDataset(), next.GetSource(), next.GetTarget(), word, newest(next))
	key := store.ReplicationKey(next.GetId())
	return &step{
		name: stepRPO, about: next.GetId(), log: reason, job: next,
		change: store.Change{
			Require: []store.Condition{store.Unchanged(key, job.ModRevision)},
			Puts:    []store.Put{store.PutProto(key, next)},
		},
		audit: &audit.Event{Time: now, Kind: audit.Action, Principal: "system:replication", Method: "rpo", Error: code, Reason: reason, Operation: next.GetLastOperation()},
	}
}

// missedSince is since when a job's RPO is missed; nil: it is kept, or there is
// none.
func missedSince(job *storev1.ReplicationJob, now time.Time) *timestamppb.Timestamp {
	options := &debvisorv1.ReplicationOptions{}
	if job.GetDeleting() || proto.Unmarshal(job.GetOptions(), options) != nil || options.GetRpoSeconds() == 0 {
		return nil
	}
	from := job.GetCreatedAt().AsTime()
	switch {
	case job.GetCursorCreated() != nil:
		from = job.GetCursorCreated().AsTime()
	case job.GetCursorGuid() != 0 && job.GetLastSuccess() != nil:
		from = job.GetLastSuccess().AsTime()
	}
	const longest = uint64(100 * 365 * 24 * 3600)
	due := from.Add(time.Duration(min(options.GetRpoSeconds(), longest)) * time.Second)
	if !now.After(due) {
		return nil
	}
	return timestamppb.New(due)
}

// newest tells when the target's newest snapshot was taken.
func newest(job *storev1.ReplicationJob) string {
	if job.GetCursorGuid() == 0 {
		return "never"
	}
	if job.GetCursorCreated() == nil {
		return "a time that is not known"
	}
	return job.GetCursorCreated().AsTime().Format(time.RFC3339)
}
