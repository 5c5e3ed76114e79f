package rbd

import (
	"errors"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// The codes of errors of this package. Their context names what they speak of as
// "pool", "image" or "snapshot"; their message is for people.
const (
	// CodeNoCeph: this host has no Ceph (Unimplemented).
	CodeNoCeph = "NO_CEPH"
	// CodeDown: Ceph does not answer; nothing was changed (Unavailable).
	CodeDown = "CEPH_DOWN"
	// CodeUnknown: Ceph did not answer; what was asked may have been done. Look again
	// (Unavailable).
	CodeUnknown = "CEPH_UNKNOWN"
	// CodeOtherCluster: the host's Ceph is not the one that was asked for
	// (FailedPrecondition).
	CodeOtherCluster = "OTHER_CEPH_CLUSTER"
	// CodeNoPermission: Ceph does not let the agent's entity do it (PermissionDenied).
	CodeNoPermission = "NO_PERMISSION"
	// CodePoolNotFound, CodeImageNotFound, CodeSnapshotNotFound: it does not exist
	// (NotFound).
	CodePoolNotFound     = "POOL_NOT_FOUND"
	CodeImageNotFound    = "IMAGE_NOT_FOUND"
	CodeSnapshotNotFound = "SNAPSHOT_NOT_FOUND"
	// CodeImageReplaced, CodeSnapshotReplaced: what has the name has another id
	// (Aborted).
	CodeImageReplaced    = "IMAGE_REPLACED"
	CodeSnapshotReplaced = "SNAPSHOT_REPLACED"
	// CodeImageExists, CodeSnapshotExists: another one has the name (AlreadyExists).
	CodeImageExists    = "IMAGE_EXISTS"
	CodeSnapshotExists = "SNAPSHOT_EXISTS"
	// CodeSnapshotCloned: images are clones of it (FailedPrecondition).
	CodeSnapshotCloned = "SNAPSHOT_CLONED"
	// CodeSnapshotProtected: somebody has protected it (FailedPrecondition).
	CodeSnapshotProtected = "SNAPSHOT_PROTECTED"
	// CodeNoTemplate: it cannot be cloned, being part of a group's snapshot
	// (FailedPrecondition).
	CodeNoTemplate = "NOT_CLONABLE"
	// CodeInGroup: an image is in a group of somebody else's (FailedPrecondition).
	CodeInGroup = "IMAGE_IN_GROUP"
	// CodeCloneTooDeep: too many parents would stand above the clone
	// (FailedPrecondition).
	CodeCloneTooDeep = "CLONE_TOO_DEEP"
	// CodeForeignImage: it is no clone that the operation made (FailedPrecondition).
	CodeForeignImage = "FOREIGN_IMAGE"
	// CodeHasSnapshots, CodeHasClones, CodeInUse: what is in the way of an image's
	// removal (FailedPrecondition).
	CodeHasSnapshots = "IMAGE_HAS_SNAPSHOTS"
	CodeHasClones    = "IMAGE_HAS_CLONES"
	CodeInUse        = "IMAGE_IN_USE"
	// CodeNoExclusiveLock: the image lets several write at once
	// (FailedPrecondition).
	CodeNoExclusiveLock = "NO_EXCLUSIVE_LOCK"
	// CodeNoSpace: a quota of the pool is reached (ResourceExhausted).
	CodeNoSpace = "NO_SPACE"
	// CodeCeph: anything else that Ceph refused (FailedPrecondition).
	CodeCeph = "CEPH_ERROR"
)

// has tells whether err has one of the codes.
func has(err error, codes ...string) bool {
	var e *errdefs.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, code := range codes {
		if e.Code == code {
			return true
		}
	}
	return false
}

// silent tells whether err says that the cluster does not answer.
func silent(err error) bool { return has(err, CodeDown, CodeUnknown) }

// unanswered is the error of a call that Ceph did not answer: changes may have
// been made.
func unanswered(changes bool, format string, args ...any) *errdefs.Error {
	if changes {
		return errdefs.New(errdefs.Unavailable, CodeUnknown, format, args...)
	}
	return errdefs.New(errdefs.Unavailable, CodeDown, format, args...)
}
