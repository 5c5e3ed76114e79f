package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// bookmark is the kind of what is no event: it tells how far a watch has come.
const bookmark = "cursor"

// oldest is the cursor before all that the cluster has kept.
const oldest = "oldest"

// errNoMore is the end of a stream that was to go on.
var errNoMore = status.Error(codes.Unavailable, "the replica stopped telling")

// eventWatch is what "hvctl events" was told.
type eventWatch struct {
	follow              bool
	after, severity, vm string
	nodes               []string
	filter              debvisorv1.EventFilter
	count               uint32
}

// eventsCommand is "hvctl events": what happens in the cluster.
func eventsCommand(a *app) *cobra.Command {
	var w eventWatch
	c := &cobra.Command{
		Use: "events", Aliases: []string{"event"}, Short: "What happens in the cluster: nodes, VMs, operations, replication, certificates",
		Long: "Print what has happened, as far back as the cluster's history is kept (an hour or a little more), or\n" +
			"with --follow what happens from now on, until it is interrupted. Each event has a cursor, after which\n" +
			"--after goes on without loss at any replica; --follow does so by itself when its replica is lost.\n" +
			"A cursor that is too old ends with EVENTS_LOST (exit code 4) and the oldest that would do.\n" +
			"With -o json each event is a line, with -o yaml a document.",
		Example: "  hvctl events --severity warning\n" +
			"  hvctl events --follow --kind 'node.*' --kind leader.changed\n" +
			"  hvctl events --follow --vm web1 -o json\n" +
			"  hvctl events --follow --kind node.online --node node-3 --count 1   # waits until node-3 is online",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := w.complete(); err != nil {
				return err
			}
			return a.await(cmd.Context(), func(ctx context.Context, c *client) error {
				if err := w.findVM(ctx, c); err != nil {
					return err
				}
				return a.tellEvents(ctx, c, &w)
			})
		},
	}
	f := c.Flags()
	f.BoolVarP(&w.follow, "follow", "f", false, "go on with what happens from now on, or after --after")
	f.StringVar(&w.after, "after", "", `only events after this cursor, or "oldest"`)
	f.StringArrayVar(&w.filter.Kinds, "kind", nil, "only events of this kind, such as vm.moved, or family, such as 'node.*'; repeatable")
	f.StringVar(&w.severity, "severity", "", "only events at least so bad: info, warning, critical")
	f.StringArrayVar(&w.filter.Resources, "resource", nil, "only events about this, such as operation/ID or replication/JOB; repeatable")
	f.StringArrayVar(&w.nodes, "node", nil, "only events about this node; repeatable")
	f.StringVar(&w.vm, "vm", "", "only events about this VM")
	f.Uint32Var(&w.count, "count", 0, "end after so many events; 0: do not")
	complete(c, "kind", cobra.FixedCompletions([]string{
		"node.*", "vm.*", "operation.*", "replication.*", "policy.*", "leader.*", "replica.*", "certificate.*", "ca.*", "token.*", "backup.*", "restore.*", "access.*",
	}, cobra.ShellCompDirectiveNoFileComp))
	complete(c, "severity", cobra.FixedCompletions([]string{"info", "warning", "critical"}, cobra.ShellCompDirectiveNoFileComp))
	complete(c, "node", a.completeNodeFlag)
	complete(c, "vm", a.completeVMFlag)
	for _, name := range []string{"after", "resource", "count"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	return c
}

// complete makes a filter of what was told.
func (w *eventWatch) complete() error {
	switch w.severity {
	case "":
	case "info", "warning", "critical":
		w.filter.MinSeverity = debvisorv1.EventSeverity(debvisorv1.EventSeverity_value["EVENT_SEVERITY_"+strings.ToUpper(w.severity)])
	default:
		return usage("--severity %q is not accepted; expected info, warning or critical", w.severity)
	}
	for _, node := range w.nodes {
		w.filter.Resources = append(w.filter.Resources, "node/"+node)
	}
	if w.after == "" && !w.follow {
		w.after = oldest
	}
	w.filter.After, w.filter.UntilNow, w.filter.Bookmarks = w.after, !w.follow, true
	return nil
}

// findVM has only the events of a VM told, which may be gone: then it is meant by
// its UUID.
func (w *eventWatch) findVM(ctx context.Context, c *client) error {
	if w.vm == "" {
		return nil
	}
	id := w.vm
	vm, err := c.vms.GetVM(ctx, &debvisorv1.VMRef{VmId: w.vm})
	switch {
	case err == nil:
		id = vm.GetId()
	case status.Code(err) != codes.NotFound || strings.Count(id, "-") != 4:
		return err
	}
	w.filter.Resources = append(w.filter.Resources, "vm/"+strings.ToLower(id))
	return nil
}

// tellEvents prints events. A lost connection is no reason to stop, until --timeout
// has passed without one: the watch goes on after the last event that was seen.
func (a *app) tellEvents(ctx context.Context, c *client, w *eventWatch) error {
	again := retry{reach: c.reach, patience: a.flags.timeout, tell: a.hint}
	call, left := again.begin(), w.count
	for {
		err := watchEvents(ctx, c, &w.filter, func(e *debvisorv1.Event) (done bool, err error) {
			call = again.begin()
			if e.GetKind() != bookmark {
				if err := a.printEvent(e); err != nil {
					return true, err
				}
				left--
			}
			w.filter.After = e.GetCursor()
			return w.count > 0 && left == 0, nil
		})
		if err == nil {
			return nil
		}
		if !call.rest(ctx, err) {
			if cursor := w.filter.GetAfter(); w.follow && cursor != "" && cursor != oldest {
				a.hint("go on with: hvctl events --follow --after %s", cursor)
			}
			return err
		}
	}
}

// watchEvents follows one stream: to its end, or until show is done.
func watchEvents(ctx context.Context, c *client, filter *debvisorv1.EventFilter, show func(*debvisorv1.Event) (done bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.events.Watch(ctx, filter)
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && filter.GetUntilNow():
			return nil
		case errors.Is(err, io.EOF):
			return errNoMore
		case err != nil:
			return err
		}
		if done, err := show(e); done || err != nil {
			return err
		}
	}
}

// printEvent prints an event as it comes: columns do not wait for what follows.
func (a *app) printEvent(e *debvisorv1.Event) error {
	if a.forPrograms() {
		return a.printStreamed(e)
	}
	at := "-"
	if e.GetTime() != nil {
		at = moments(e.GetTime()).Local().Format("2006-01-02 15:04:05")
	}
	severity := strings.ToLower(strings.TrimPrefix(e.GetSeverity().String(), "EVENT_SEVERITY_"))
	line := fmt.Sprintf("%-19s  %-8s  %-26s  %s", at, severity, e.GetKind(), firstLine(e.GetMessage()))
	if a.wide() {
		line += fmt.Sprintf("  [%s]  %s  %s", e.GetCursor(), strings.Join(e.GetResources(), ","), e.GetOperationId())
	}
	_, err := fmt.Fprintln(a.out, strings.TrimRight(clean(line), " "))
	return err
}
