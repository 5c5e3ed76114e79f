package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// defaultTimeout bounds a call with its retries where --timeout is not given.
const defaultTimeout = 30 * time.Second

// app is one run of hvctl: its streams, its flags and what commands share.
type app struct {
	out, errOut *os.File
	flags       flags
	// what tells the command at work, such as "node show n1"; empty before
	// its own work begins, so that an error then is cobra's, one of usage.
	what string
	// tracing is of this run.
	tracing tracing
}

// flags are those that every command has.
type flags struct {
	given   endpoint
	context string
	output  string
	wait    bool
	noWait  bool
	timeout time.Duration
	bounded bool
	// traceEndpoint and traceCA tell the collector of traces.
	traceEndpoint, traceCA string
}

// work is the body of a command that talks to a replica.
type work func(ctx context.Context, c *client) error

// ask runs work that is done with an answer: all of it within --timeout.
func (a *app) ask(ctx context.Context, do work) error {
	ctx, cancel := context.WithTimeout(ctx, a.flags.timeout)
	defer cancel()
	return a.connected(ctx, do)
}

// await runs work that waits for an operation's end: unbounded, unless
// --timeout was given.
func (a *app) await(ctx context.Context, do work) error {
	if a.flags.bounded {
		return a.ask(ctx, do)
	}
	return a.connected(ctx, do)
}

// connected runs work with a client that lives as long as it.
func (a *app) connected(ctx context.Context, do work) error {
	ctx, err := a.trace(ctx)
	if err != nil {
		return err
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.close()
	return c.told(do(rpc.WithTraceID(ctx, c.trace), c))
}

// waits tells whether a change is followed to the end of its operation.
func (a *app) waits() bool { return a.flags.wait && !a.flags.noWait }

// hint tells people something that scripts do not want, on standard error.
func (a *app) hint(format string, args ...any) {
	say(a.errOut, "%s\n", clean(fmt.Sprintf(format, args...)))
}

// own makes every command below c note when its own work begins, and makes
// groups of commands refuse what they do not know.
func (a *app) own(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.own(sub)
	}
	do := c.RunE
	if do == nil && c.HasSubCommands() {
		c.Args = cobra.ArbitraryArgs
		do = refuseGroup
	}
	if do == nil {
		return
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		a.tracing.command = commandName(cmd)
		a.what = strings.TrimSpace(strings.Join(append([]string{commandName(cmd)}, args...), " "))
		err := do(cmd, args)
		a.endTrace(cmd.Context(), err)
		return err
	}
}

// refuseGroup is what a group of commands does itself: show its help and fail.
func refuseGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		cmd.SetOut(cmd.ErrOrStderr())
		if err := cmd.Help(); err != nil {
			return err
		}
		return usage("a command is missing")
	}
	message := fmt.Sprintf("unknown command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2 // cobra's default, which it sets only for the root
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		message += "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usage("%s", message)
}

// commandName is a command's name without "hvctl".
func commandName(cmd *cobra.Command) string {
	_, name, _ := strings.Cut(cmd.CommandPath(), " ")
	return name
}

// usage is an error of the command line.
func usage(format string, args ...any) error {
	return errdefs.New(errdefs.InvalidArgument, codeUsage, format, args...)
}
