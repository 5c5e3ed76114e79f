package access

import (
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// Change is a change of who may do what.
type Change struct {
	store.Change
	// After is the snapshot that it was made from, with the change made: for
	// judging what it would mean.
	After *cluster.Snapshot
}

// edit is a change in the making.
type edit struct {
	from   *cluster.Snapshot
	draft  *cluster.Draft
	change store.Change
}

// begin begins a change, which takes the turn.
func (w World) begin() *edit {
	turn := store.AccessTurnKey()
	return &edit{from: w.Snapshot, draft: w.Draft(), change: store.Change{
		Require: []store.Condition{store.Unchanged(turn, w.AccessTurn)},
		Puts:    []store.Put{store.PutString(turn, "")},
	}}
}

// done ends it.
func (e *edit) done() Change {
	return Change{Change: e.change, After: e.draft.Snapshot(e.from.Revision + 1)}
}

// put writes a record in JSON, if it is still as the snapshot has it.
func put[M proto.Message](e *edit, key string, was map[string]cluster.Entry[M], table *cluster.Table[M], name string, record M) {
	e.change.Require = append(e.change.Require, store.Unchanged(key, was[name].ModRevision))
	e.change.Puts = append(e.change.Puts, store.PutJSON(key, record))
	table.Put(name, record, e.from.Revision+1)
}

// drop deletes a record, if it is still as the snapshot has it.
func drop[T any](e *edit, key string, was map[string]cluster.Entry[T], table *cluster.Table[T], name string) {
	e.change.Require = append(e.change.Require, store.Unchanged(key, was[name].ModRevision))
	e.change.Deletes = append(e.change.Deletes, key)
	table.Delete(name)
}
