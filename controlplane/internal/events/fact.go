// Package events tells what happens in the cluster. A fact is derived from the
// change of a record in etcd, of which etcd's history has the former and the new
// form; nothing is written for it. Every replica derives the same facts, under
// the same cursors, from the same history, so that a watch goes on at another
// replica without loss and without repeats. Who may see which fact is part of
// it; to ask for the caller is the API's.
package events

import (
	"fmt"
	"strconv"
	"strings"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// Fact is one event. It is never changed: who wants to tell it copies its Event.
type Fact struct {
	Cursor Cursor
	// Event says nothing that not everybody may know who may see the fact. Its
	// operation is for those whom Operation names.
	Event *debvisorv1.Event
	Owner Owner
	// Why and By are for callers whom no tenant confines: texts of people, libvirt
	// and ZFS, which may name anything, and who did it.
	Why, By string
	// Operation owns Event.OperationId.
	Operation Owner
}

// Owner says who may know of something besides those whom no tenant confines,
// who know all.
type Owner struct {
	// Everybody is for what belongs to all, such as nodes.
	Everybody bool
	// Tenant is whose it is; empty: no tenant's.
	Tenant string
}

// Shows tells whether a caller that is confined to a tenant may know of it;
// empty: one that no tenant confines.
func (o Owner) Shows(tenant string) bool {
	return tenant == "" || o.Everybody || o.Tenant == tenant
}

// Cursor is a place in the history: after all facts of lower revisions, and of
// its revision after those up to its index.
type Cursor struct {
	Revision int64
	Index    int
}

// Oldest is the cursor, as callers say it, before all that the history has.
const Oldest = "oldest"

// String is a cursor as callers see it.
func (c Cursor) String() string { return fmt.Sprintf("%d.%d", c.Revision, c.Index) }

// Before tells whether a cursor is an earlier place than another.
func (c Cursor) Before(other Cursor) bool {
	return c.Revision < other.Revision || c.Revision == other.Revision && c.Index < other.Index
}

// after is the place after everything of a revision.
func after(revision int64) Cursor { return Cursor{Revision: revision + 1} }

// ParseCursor reads a cursor that a caller has seen before.
func ParseCursor(s string) (Cursor, error) {
	revision, index, ok := strings.Cut(s, ".")
	r, errRevision := strconv.ParseUint(revision, 10, 63)
	i, errIndex := strconv.ParseUint(index, 10, 31)
	if !ok || errRevision != nil || errIndex != nil || r == 0 { // etcd begins at 1, and takes 0 for now
		return Cursor{}, errdefs.Field("after", s, `the cursor of an event, such as "4711.1", "oldest", or nothing`)
	}
	return Cursor{Revision: int64(r), Index: int(i)}, nil
}
