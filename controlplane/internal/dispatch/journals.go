package dispatch

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/inventory"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// writeOpen writes down that a node's agent has a session and gives the
// revision from which the snapshot tells which tasks to send on it.
//
// Where the node's journal is another than the last known one, tasks that may
// have been sent to the former but were never reported are first written down
// as that one's: from then on, whoever leads, they are only observed.
func (l *leader) writeOpen(ctx context.Context, node string, f inventory.Facts) (int64, error) {
	former, err := l.cfg.Inventory.Journal(node)
	if err != nil {
		return 0, err
	}
	if former == "" || former == f.JournalID {
		return l.cfg.Inventory.Open(ctx, node, f)
	}
	l.log.Warn("the node's journal is new: open tasks will only be observed", "node", node, "journal", f.JournalID, "former", former)
	before := f
	before.JournalID = former
	revision, err := l.cfg.Inventory.Open(ctx, node, before)
	if err != nil {
		return 0, err
	}
	if err := l.retry(ctx, "giving tasks to the former journal", func() error { return l.ascribe(ctx, node, former, revision) }); err != nil {
		return 0, err
	}
	return l.cfg.Inventory.Open(ctx, node, f)
}

// ascribe gives the journal the node's open tasks that are nobody's and are no
// younger than the revision.
func (l *leader) ascribe(ctx context.Context, node, journal string, revision int64) error {
	if err := l.cfg.View.Await(ctx, revision); err != nil {
		return err
	}
	change := store.Change{Fence: l.lead.Fence}
	for _, t := range l.cfg.View.Current().OpenTasksOn(node) {
		if t.Value.GetJournalId() != "" || t.ModRevision > revision {
			continue
		}
		next := proto.CloneOf(t.Value)
		next.JournalId = journal
		change.Puts = append(change.Puts, store.PutProto(store.TaskKey(next.GetId()), next))
		change.Require = append(change.Require, store.Unchanged(store.TaskKey(next.GetId()), t.ModRevision))
	}
	if len(change.Puts) == 0 {
		return nil
	}
	_, err := l.cfg.Store.Commit(ctx, change)
	return err // after a conflict it is looked at again
}
