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
	"maps"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/controlplane/internal/accessfile"
	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	storev1 "github.com/debvisor/debvisor/proto/debvisor/store/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// The sources of principals, roles and tenants, and of keys.
const (
	sourceEtcd    = "etcd"
	sourceFile    = accessfile.Source
	sourceBuiltIn = "built-in"
	sourceFounder = "founder"
	// sourceMade is that of a key that CreateKey or RotateKey made.
	sourceMade = "hvctl"
)

// operatorRole is the built-in role that founders have.
const operatorRole = "operator"

// World is all that says who may do what, as one replica sees it at a moment.
type World struct {
	*cluster.Snapshot
	// File is what the access file says, and FileName what it is called; the
	// names in it are its own to change. Nil: there is none.
	File     *accessfile.Policy
	FileName string
	// BuiltIn are the permissions of the roles that are there without a record.
	BuiltIn map[string][]string
	// Founders are operators for as long as they have no record.
	Founders []string
}

// file gives what the access file says; an empty policy where there is none.
func (w World) file() *accessfile.Policy {
	if w.File == nil {
		return &accessfile.Policy{}
	}
	return w.File
}

// findPrincipal gives what counts for a principal and where that is.
func (w World) findPrincipal(name string) (record *storev1.Principal, source string, ok bool) {
	if record, ok := w.file().Principals[name]; ok {
		return record, sourceFile, true
	}
	if entry, ok := w.Principals[name]; ok {
		return entry.Value, sourceEtcd, true
	}
	if slices.Contains(w.Founders, name) {
		return &storev1.Principal{Roles: []string{operatorRole}}, sourceFounder, true
	}
	return nil, "", false
}

// findRole gives what counts for a role and where that is.
func (w World) findRole(name string) (record *storev1.Role, source string, ok bool) {
	if record, ok := w.file().Roles[name]; ok {
		return record, sourceFile, true
	}
	if entry, ok := w.Roles[name]; ok {
		return entry.Value, sourceEtcd, true
	}
	if permissions, ok := w.BuiltIn[name]; ok {
		return &storev1.Role{Permissions: permissions}, sourceBuiltIn, true
	}
	return nil, "", false
}

// findTenant gives what counts for a tenant and where that is.
func (w World) findTenant(name string) (record *storev1.Tenant, source string, ok bool) {
	if record, ok := w.file().Tenants[name]; ok {
		return record, sourceFile, true
	}
	if entry, ok := w.Tenants[name]; ok {
		return entry.Value, sourceEtcd, true
	}
	return nil, "", false
}

func (w World) principalNames() []string {
	names := slices.AppendSeq(slices.Clone(w.Founders), maps.Keys(w.Principals))
	return sorted(slices.AppendSeq(names, maps.Keys(w.file().Principals)))
}

func (w World) roleNames() []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(w.BuiltIn)), maps.Keys(w.Roles))
	return sorted(slices.AppendSeq(names, maps.Keys(w.file().Roles)))
}

func (w World) tenantNames() []string {
	return sorted(slices.AppendSeq(slices.Collect(maps.Keys(w.Tenants)), maps.Keys(w.file().Tenants)))
}

// inFile refuses to change by a call what the access file says.
func (w World) inFile(what, name string) error {
	return errdefs.New(errdefs.FailedPrecondition, "IN_ACCESS_FILE",
		"%s %q comes from the access file %s of the replicas, and is changed there only", what, name, w.FileName).
		With(what, name).With("file", w.FileName)
}

// sorted gives values in order, each once, in a list of its own; nil for none.
func sorted(values []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(values)))
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
