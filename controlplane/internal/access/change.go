package access

import (
	"google.golang.org/protobuf/proto"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// begin begins a change, which takes the turn.
func (w World) begin() *store.Change {
	turn := store.AccessTurnKey()
	return &store.Change{
		Require: []store.Condition{store.Unchanged(turn, w.AccessTurn)},
		Puts:    []store.Put{store.PutString(turn, "")},
	}
}

// Joins is what must hold, and is changed, for something to become a tenant's:
// the tenant exists, and is not deleted at the same moment. InvalidArgument, of
// that field, for one that does not exist.
func (w World) Joins(field, tenant string) (store.Change, error) {
	if err := w.hasTenant(field, tenant); err != nil {
		return store.Change{}, err
	}
	return *w.begin(), nil
}

// put writes a record in JSON, if that of its name is still as it was.
func put[M proto.Message](c *store.Change, key string, was map[string]cluster.Entry[M], name string, record M) {
	c.Require = append(c.Require, store.Unchanged(key, was[name].ModRevision))
	c.Puts = append(c.Puts, store.PutJSON(key, record))
}

// drop deletes a record, if it is still as it was.
func drop[T any](c *store.Change, key string, was map[string]cluster.Entry[T], name string) {
	c.Require = append(c.Require, store.Unchanged(key, was[name].ModRevision))
	c.Deletes = append(c.Deletes, key)
}
