package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// The exit codes: a promise to scripts.
const (
	exitOK = iota
	exitInternal
	exitUsage
	exitNotFound
	exitRefused
	exitDenied
	exitUnavailable
	exitConflict
	exitTimeout
	exitFailed
)

// exitNo is the exit code of a command whose answer is no.
const exitNo = 1

// errNo is that the answer, which has been printed, is no.
var errNo = errors.New("no")

// exitMeanings tells each exit code's meaning, in order.
func exitMeanings() []string {
	return []string{
		exitOK:          "done",
		exitInternal:    "internal error, of hvctl or of a replica (its log has the trace id); of auth can-i: no",
		exitUsage:       "wrong flags, arguments, configuration or field values; nothing was changed",
		exitNotFound:    "no such node, VM, operation, token, key, principal, role, tenant or context",
		exitRefused:     "refused in the present state: a precondition fails, a plan is not allowed, it exists already",
		exitDenied:      "no or no valid identity, or permission denied",
		exitUnavailable: "no replica could be reached, there is no leader, or a rate limit; try later",
		exitConflict:    "another operation holds it, or a conflict; try again after that",
		exitTimeout:     "timed out, cancelled or interrupted; an operation that was begun goes on",
		exitFailed:      "the operation that was waited for has FAILED",
	}
}

// exitOf gives the exit code of an error's kind.
func exitOf(kind errdefs.Kind) int {
	switch kind {
	case errdefs.InvalidArgument:
		return exitUsage
	case errdefs.NotFound:
		return exitNotFound
	case errdefs.FailedPrecondition, errdefs.AlreadyExists:
		return exitRefused
	case errdefs.PermissionDenied, errdefs.Unauthenticated:
		return exitDenied
	case errdefs.Unavailable, errdefs.ResourceExhausted:
		return exitUnavailable
	case errdefs.Aborted:
		return exitConflict
	case errdefs.DeadlineExceeded, errdefs.Cancelled:
		return exitTimeout
	default:
		return exitInternal
	}
}

// exitCodesTopic is "hvctl help exit-codes".
func exitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("hvctl ends with one of these exit codes:\n\n")
	for code, meaning := range exitMeanings() {
		fmt.Fprintf(&b, "  %d  %s\n", code, meaning)
	}
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes and what they mean", Long: b.String()}
}
