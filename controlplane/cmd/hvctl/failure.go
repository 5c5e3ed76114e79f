package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// failure is what hvctl says when it fails: what failed, why, what to do next.
type failure struct {
	exit  int
	what  string
	why   string
	code  string
	next  []string
	trace string
}

// write tells it, on few lines.
func (f failure) write(w io.Writer) {
	var b strings.Builder
	b.WriteString("hvctl: ")
	if f.what != "" {
		b.WriteString(clean(f.what) + ": ")
	}
	b.WriteString(indent(clean(f.why)) + "\n")
	if f.code != "" {
		fmt.Fprintf(&b, "  code:  %s (exit code %d)\n", clean(f.code), f.exit)
	}
	for i, next := range f.next {
		label := "next: "
		if i > 0 {
			label = "      "
		}
		fmt.Fprintf(&b, "  %s %s\n", label, clean(next))
	}
	if f.trace != "" {
		fmt.Fprintf(&b, "  trace: %s\n", clean(f.trace))
	}
	say(w, "%s", b.String())
}

// indent puts the lines after the first under it.
func indent(text string) string {
	return strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ")
}

// explain turns the error that a command ended with into what hvctl says.
func (a *app) explain(cmd *cobra.Command, err error) failure {
	if a.what == "" {
		return failure{exit: exitUsage, what: commandName(cmd), why: usageText(err), next: []string{helpOf(cmd)}}
	}
	if ended, ok := errors.AsType[*endedError](err); ok {
		return ended.failure(a.what)
	}
	if left, ok := errors.AsType[*leftError](err); ok {
		return left.failure(a.what)
	}
	e := asError(err)
	f := failure{exit: exitOf(e.Kind), what: a.what, why: e.Message, code: e.Code, trace: e.Context["trace_id"]}
	if e.Code == codeUsage {
		f.code, f.next = "", []string{helpOf(cmd)}
		return f
	}
	f.next = advice(e, a.what)
	return f
}

// usageText is cobra's text for an error before a command's own work.
func usageText(err error) string {
	// Cobra gives "unknown command" suggestions on lines of their own.
	return strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n\n", "\n"))
}

// helpOf says where the help of a command is.
func helpOf(cmd *cobra.Command) string { return cmd.CommandPath() + " --help" }

// asError gives any error a kind.
func asError(err error) *errdefs.Error {
	if e, ok := errors.AsType[*errdefs.Error](err); ok {
		return e
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errdefs.New(errdefs.Cancelled, codeInterrupted, "interrupted")
	case errors.Is(err, context.DeadlineExceeded):
		return errdefs.New(errdefs.DeadlineExceeded, codeTimeout, "not done within --timeout")
	}
	return errdefs.New(errdefs.Internal, codeInternal, "%s", err.Error())
}

// endedError is that an operation has ended, and not as was asked.
type endedError struct {
	op *debvisorv1.Operation
}

// Error tells the operation and why.
func (e *endedError) Error() string {
	return fmt.Sprintf("operation %s: %s: %s", e.op.GetId(), stateWord(e.op.GetState()), e.op.GetError().GetMessage())
}

func (e *endedError) failure(what string) failure {
	state, reason := e.op.GetState(), e.op.GetError()
	f := failure{
		exit: exitFailed, what: what, code: reason.GetCode(), trace: reason.GetTraceId(),
		why: fmt.Sprintf("the operation ended %s: %s", stateWord(state), orWord(reason.GetMessage(), "it gave no reason")),
	}
	if state == debvisorv1.OperationState_OPERATION_STATE_CANCELLED {
		f.exit = exitTimeout
	}
	if f.trace == "" {
		f.trace = e.op.GetTraceId()
	}
	kinded := errdefs.New(errdefs.Internal, reason.GetCode(), "%s", reason.GetMessage())
	kinded.Context = reason.GetContext()
	f.next = append(adviceByCode(kinded), "hvctl operation show "+e.op.GetId())
	if m := e.op.GetMigration(); m != nil && f.exit == exitFailed {
		f.next = append(f.next, "hvctl migrate plan "+orWord(m.GetVmName(), m.GetVmId())+" tells whether it can be tried again")
	}
	return f
}

// leftError is that hvctl stopped following an operation, which goes on.
type leftError struct {
	id    string
	cause error
}

// Error tells the operation and why it is followed no more.
func (e *leftError) Error() string { return e.id + " goes on: " + e.cause.Error() }

// Unwrap gives why it is followed no more.
func (e *leftError) Unwrap() error { return e.cause }

func (e *leftError) failure(what string) failure {
	cause := asError(e.cause)
	return failure{
		exit: exitOf(cause.Kind), what: what, code: cause.Code, trace: cause.Context["trace_id"],
		why: fmt.Sprintf("%s; operation %s goes on", cause.Message, e.id),
		next: []string{
			"to follow it: hvctl operation watch " + e.id,
			"to cancel it: hvctl operation cancel " + e.id,
		},
	}
}
