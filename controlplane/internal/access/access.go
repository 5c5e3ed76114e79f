// Package access holds the rules of changing who may do what: principals, their
// keys, roles, tenants, revoked certificates. It turns a request and a snapshot
// into one store.Change, or refuses it, and records into the API's messages. It
// does no I/O but the randomness of a new key, and decides no call: authn tells
// who calls, authz what they may.
//
// Every change takes the turn of access changes (store.AccessTurnKey), so that
// of two at once one is made anew upon what the other has left: rules over
// several records hold, such as two live keys a principal at most. What
// etcdctl writes takes no turn; then only the records that a change writes are
// compared.
//
// Records are rewritten from what a snapshot has of them. A field that somebody
// put into a record by hand and that the record's proto does not know is lost
// with the first change of that record; apikey_id never is, though a plain key
// there becomes its hash.
package access

import (
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/authz"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The sources of keys in etcd.
const (
	// sourceEtcd is that of the contract's manual set-up.
	sourceEtcd = authz.SourceEtcd
	// sourceMade is that of what CreateKey and RotateKey make.
	sourceMade = "hvctl"
)

// operatorRole is the built-in role that founders have.
const operatorRole = "operator"

// World is all that says who may do what, as one replica sees it at a moment.
type World struct {
	*cluster.Snapshot
	// Policy knows which records are in force, those of File among them.
	Policy *authz.Authorizer
	// File alone changes what it says.
	File *accessfile.File
}

// inFile refuses to change by a call what the access file says.
func (w World) inFile(what, name string) error {
	return errdefs.New(errdefs.FailedPrecondition, "IN_ACCESS_FILE",
		"%s %q comes from the replicas' access file %s, and is changed there only", what, name, w.File.Name()).
		With(what, name).With("file", w.File.Name())
}

// sorted gives values in order, each once, in a list of its own.
func sorted(values []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(values)))
}

// names are those of records, in their order.
func names[T any](records []authz.Record[T]) []string {
	list := make([]string, 0, len(records))
	for _, r := range records {
		list = append(list, r.Name)
	}
	return list
}

// some lists what there is, for an error: all of a few names, the first of many.
func some(names []string) string {
	const most = 20
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}
