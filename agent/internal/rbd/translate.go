//go:build ceph_preview

package rbd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	notFound     = -int(unix.ENOENT)
	alreadyThere = -int(unix.EEXIST)
)

// errno is Ceph's number of an error, negative; 0 where it has none.
func errno(err error) int {
	var numbered interface{ ErrorCode() int }
	if errors.As(err, &numbered) {
		return numbered.ErrorCode()
	}
	return 0
}

// changing tells whether a request's silence leaves open what it has done.
func changing(v verb) bool {
	switch v {
	case verbCreate, verbRemove, verbClone, verbFlatten, verbRemoveImage, verbFence, verbUnfence:
		return true
	}
	return false
}

// translate gives an error of Ceph's a kind. changes: while nobody answered it may
// have been done.
func translate(err error, changes bool, format string, args ...any) *errdefs.Error {
	doing := fmt.Sprintf(format, args...)
	var ours *errdefs.Error
	if errors.As(err, &ours) {
		return ours
	}
	code := unix.Errno(-errno(err))
	text := fmt.Sprintf("%s: Ceph says %v (-%d)", doing, code, int(code))
	switch code {
	case unix.ETIMEDOUT, unix.ENOTCONN, unix.EBADMSG, unix.EHOSTUNREACH, unix.ECONNREFUSED, unix.ERESTART:
		// CreateSnapshot says EBADMSG where its OSD is dead.
		return unanswered(changes, "%s: Ceph did not answer (-%d)", doing, int(code))
	case unix.ESHUTDOWN:
		return unanswered(changes, "%s: Ceph has blocklisted the agent's client", doing).WithCause(errBlocklisted)
	case unix.EPERM, unix.EACCES:
		return errdefs.New(errdefs.PermissionDenied, CodeNoPermission, "%s", text)
	case unix.EDQUOT, unix.ENOSPC:
		return errdefs.New(errdefs.ResourceExhausted, CodeNoSpace, "%s", text)
	case unix.EBUSY, unix.ETXTBSY:
		return errdefs.New(errdefs.FailedPrecondition, CodeInUse, "%s", text)
	case 0:
		return errdefs.New(errdefs.FailedPrecondition, CodeCeph, "%s: %v", doing, err)
	}
	return errdefs.New(errdefs.FailedPrecondition, CodeCeph, "%s", text)
}

// withText adds the words of a monitor to its number.
func withText(e *errdefs.Error, said string) *errdefs.Error {
	if said != "" {
		e.Message += ": " + said
	}
	return e
}
