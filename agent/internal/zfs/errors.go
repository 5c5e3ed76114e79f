package zfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of errors of this package. Their context names the dataset, snapshot
// or pool as "dataset"; their message is for people.
const (
	// CodeDatasetNotFound: no such dataset, snapshot, bookmark or pool (NotFound).
	CodeDatasetNotFound = "DATASET_NOT_FOUND"
	// CodeDatasetExists: there is one of that name (AlreadyExists).
	CodeDatasetExists = "DATASET_EXISTS"
	// CodeDatasetBusy: in use by somebody, or being received into (Unavailable).
	CodeDatasetBusy = "DATASET_BUSY"
	// CodeDatasetHasChildren: snapshots or datasets below it are in the way (FailedPrecondition).
	CodeDatasetHasChildren = "DATASET_HAS_CHILDREN"
	// CodeDatasetChanged: what has the name is not what has the guid (Aborted).
	CodeDatasetChanged = "DATASET_CHANGED"
	// CodeSnapshotExists: there is a snapshot or a bookmark of that name (AlreadyExists).
	CodeSnapshotExists = "SNAPSHOT_EXISTS"
	// CodeSnapshotHeld: a hold keeps it (FailedPrecondition).
	CodeSnapshotHeld = "SNAPSHOT_HELD"
	// CodeSnapshotHasClones: a clone keeps it (FailedPrecondition).
	CodeSnapshotHasClones = "SNAPSHOT_HAS_CLONES"
	// CodeNoSpace: the pool is full (ResourceExhausted).
	CodeNoSpace = "NO_SPACE"
	// CodeQuota: a quota of the dataset, or of one above it, is reached (ResourceExhausted).
	CodeQuota = "QUOTA"
	// CodePoolSuspended: the pool does no more I/O until somebody repairs it (Unavailable).
	CodePoolSuspended = "POOL_SUSPENDED"
	// CodeStreamBroken: a stream ended too early or is damaged (Unavailable where what
	// arrived can be resumed).
	CodeStreamBroken = "STREAM_BROKEN"
	// CodeTokenDead: a resume token leads to nothing that can be sent (FailedPrecondition).
	CodeTokenDead = "TOKEN_DEAD"
	// CodeDestinationModified: the target has changed since the snapshot that the stream
	// begins at, or has not got it (FailedPrecondition).
	CodeDestinationModified = "DESTINATION_MODIFIED"
	// CodeKeyNotLoaded: an encrypted dataset's key is not there (FailedPrecondition).
	CodeKeyNotLoaded = "KEY_NOT_LOADED"
	// CodePartialReceive: what a receive that was cut off has left is in the way, or is
	// being received just now (FailedPrecondition).
	CodePartialReceive = "PARTIAL_RECEIVE"
	// CodeNotLatest: a dataset has snapshots later than the one to go back to
	// (FailedPrecondition).
	CodeNotLatest = "SNAPSHOT_NOT_LATEST"
	// CodeNotEarlier: an increment cannot begin at that snapshot (FailedPrecondition).
	CodeNotEarlier = "SNAPSHOT_NOT_EARLIER"
	// CodeEncryptedSendUnsafe: this version is known to corrupt what it sends of
	// encrypted datasets (FailedPrecondition).
	CodeEncryptedSendUnsafe = "ENCRYPTED_SEND_UNSAFE"
	// CodeAbsent: this host has no ZFS (Unimplemented).
	CodeAbsent = "ZFS_ABSENT"
	// CodeNotPermitted: this process may not do it (PermissionDenied).
	CodeNotPermitted = "NOT_PERMITTED"
	// CodeUnsupported: this version of ZFS, or this pool, cannot do it (Unimplemented).
	CodeUnsupported = "ZFS_UNSUPPORTED"
	// CodeZFS: anything else that zfs refused (FailedPrecondition).
	CodeZFS = "ZFS_ERROR"
)

// said is what zfs says, a part of it, and what that means. Messages are those of
// libzfs, which LC_ALL=C keeps as they are in its source.
type said struct {
	words string
	kind  errdefs.Kind
	code  string
}

// meanings are tried in this order; the first that matches counts.
var meanings = []said{
	{"is currently suspended", errdefs.Unavailable, CodePoolSuspended},
	{"must be run as root", errdefs.PermissionDenied, CodeNotPermitted},
	{"ermission denied", errdefs.PermissionDenied, CodeNotPermitted},
	{"'..' is found in name", errdefs.InvalidArgument, CodeZFS},
	{"being held", errdefs.FailedPrecondition, CodeSnapshotHeld},
	{"dependent clones", errdefs.FailedPrecondition, CodeSnapshotHasClones},
	{"partially-complete state", errdefs.FailedPrecondition, CodePartialReceive},
	{"resume token is corrupt", errdefs.FailedPrecondition, CodeTokenDead},
	{"used in the initial send", errdefs.FailedPrecondition, CodeTokenDead},
	{"quota exceeded", errdefs.ResourceExhausted, CodeQuota},
	{"size is less than current used", errdefs.ResourceExhausted, CodeQuota},
	{"out of space", errdefs.ResourceExhausted, CodeNoSpace},
	{"No space left", errdefs.ResourceExhausted, CodeNoSpace},
	{"has been modified", errdefs.FailedPrecondition, CodeDestinationModified},
	{"does not match incremental source", errdefs.FailedPrecondition, CodeDestinationModified},
	{"earlier snapshot", errdefs.FailedPrecondition, CodeNotEarlier},
	{"more recent snapshots", errdefs.FailedPrecondition, CodeNotLatest},
	{"has children", errdefs.FailedPrecondition, CodeDatasetHasChildren},
	{"key must be loaded", errdefs.FailedPrecondition, CodeKeyNotLoaded},
	{"key is not loaded", errdefs.FailedPrecondition, CodeKeyNotLoaded},
	{"keys must be loaded", errdefs.FailedPrecondition, CodeKeyNotLoaded},
	{"checksum mismatch", errdefs.Unavailable, CodeStreamBroken},
	{"incomplete stream", errdefs.Unavailable, CodeStreamBroken},
	{"failed to read from stream", errdefs.Unavailable, CodeStreamBroken},
	{"invalid stream", errdefs.Unavailable, CodeStreamBroken},
	{"invalid backup stream", errdefs.Unavailable, CodeStreamBroken},
	// What libzfs says of a record it does not understand, most often because the
	// stream is damaged.
	{"must be upgraded to receive", errdefs.Unavailable, CodeStreamBroken},
	{"is busy", errdefs.Unavailable, CodeDatasetBusy},
	{"bookmark exists", errdefs.AlreadyExists, CodeSnapshotExists},
	{"already exists", errdefs.AlreadyExists, CodeDatasetExists},
	{"' exists", errdefs.AlreadyExists, CodeDatasetExists},
	{"does not exist", errdefs.NotFound, CodeDatasetNotFound},
	{"no such pool", errdefs.NotFound, CodeDatasetNotFound},
	{"could not find any snapshots", errdefs.NotFound, CodeDatasetNotFound},
	{"invalid character", errdefs.InvalidArgument, CodeZFS},
	{"invalid property", errdefs.InvalidArgument, CodeZFS},
	{"bad property", errdefs.InvalidArgument, CodeZFS},
	{"must be power of 2", errdefs.InvalidArgument, CodeZFS},
	{"must be a multiple", errdefs.InvalidArgument, CodeZFS},
	{"too long", errdefs.InvalidArgument, CodeZFS},
	{"not supported", errdefs.Unimplemented, CodeUnsupported},
	{"must be upgraded", errdefs.Unimplemented, CodeUnsupported},
}

// special are meanings that words have for one verb only, tried before the
// others.
var special = map[string][]said{
	"send": {
		{"No such process", errdefs.NotFound, CodeDatasetNotFound}, // an increment's beginning, when estimated
		{"cross-device link", errdefs.FailedPrecondition, CodeNotEarlier},
		{"incremental source", errdefs.NotFound, CodeDatasetNotFound},
	},
	"resume": { // send -t
		{"No such process", errdefs.FailedPrecondition, CodeTokenDead},
		{"cross-device link", errdefs.FailedPrecondition, CodeTokenDead},
		{"incremental source", errdefs.FailedPrecondition, CodeTokenDead},
		{"does not exist", errdefs.FailedPrecondition, CodeTokenDead},
	},
	"receive": {
		// An increment that has nothing to be added to.
		{"does not exist", errdefs.FailedPrecondition, CodeDestinationModified},
	},
}

// translate gives what a command complained of a kind and a code.
func translate(verb, about, stderr string, cause error) error {
	kind, code := meaning(verb, stderr)
	first := firstLine(stderr)
	if named := quoted(first); named != "" {
		about = named
	}
	if code == CodeDatasetExists && strings.ContainsAny(about, "@#") {
		code = CodeSnapshotExists
	}
	if first == "" {
		first = "zfs " + verb + " failed and does not say why"
	}
	e := errdefs.New(kind, code, "%s", first).WithCause(fmt.Errorf("zfs %s: %w", verb, cause))
	if about != "" {
		e = e.With("dataset", about)
	}
	return e
}

func meaning(verb, stderr string) (errdefs.Kind, string) {
	for _, s := range slices.Concat(special[verb], meanings) {
		if strings.Contains(stderr, s.words) {
			return s.kind, s.code
		}
	}
	return errdefs.FailedPrecondition, CodeZFS
}

// firstLine is zfs's first line; what follows is advice for a terminal, tokens and
// usage.
func firstLine(stderr string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
	return shortened(strings.TrimPrefix(strings.TrimSpace(line), "warning: "))
}

// quoted is the name that a message speaks of first; the apostrophe of "it's" begins
// none.
func quoted(message string) string {
	before, rest, _ := strings.Cut(message, "'")
	name, _, closed := strings.Cut(rest, "'")
	if _, err := ParseName(name); closed && err == nil && strings.HasSuffix(before, " ") {
		return name
	}
	return ""
}

// has tells whether err has the code.
func has(err error, code string) bool {
	var e *errdefs.Error
	return errors.As(err, &e) && e.Code == code
}
