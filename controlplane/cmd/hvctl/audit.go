package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
)

// auditCommand is "hvctl audit": who did what. Each replica has a log of its own.
func auditCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "The audit log: who did what, and whether it is whole"}
	c.AddCommand(auditTail(a), auditSearch(a), auditVerify(a), auditHeads(a))
	return c
}

// auditFilter is what lines are wanted.
type auditFilter struct {
	replica      string
	since, until string
	query        debvisorv1.AuditQuery
}

// addTo declares the flags of a filter.
func (f *auditFilter) addTo(a *app, c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.replica, "replica", "", "only this replica's log")
	flags.StringSliceVar(&f.query.Events, "event", nil, "kinds of event, such as permission_denied, comma-separated")
	flags.StringVar(&f.query.Principal, "principal", "", "who did it, such as operator or system:power")
	flags.StringVar(&f.query.Method, "method", "", "the method's name, such as MigrateVM, or its full name")
	flags.StringVar(&f.query.TraceId, "trace", "", "the trace id of the call")
	flags.StringVar(&f.query.Operation, "operation", "", "the operation that was begun or changed")
	flags.StringVar(&f.query.Peer, "peer", "", "the address that the call came from")
	flags.StringVar(&f.query.Code, "code", "", "what came of it, such as OK or PERMISSION_DENIED")
	for _, name := range []string{"event", "principal", "method", "trace", "peer", "code"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	complete(c, "replica", a.completeReplicas)
	complete(c, "operation", func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeOperations(cmd, nil, typed)
	})
}

// resolve reads the moments.
func (f *auditFilter) resolve(now time.Time) (err error) {
	if f.query.Since, err = readMoment("--since", f.since, now); err != nil {
		return err
	}
	f.query.Until, err = readMoment("--until", f.until, now)
	return err
}

// readMoment reads a moment: how long ago, or when.
func readMoment(flag, text string, now time.Time) (*debvisorv1.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		ago, agoErr := time.ParseDuration(text)
		if agoErr != nil || ago < 0 {
			return nil, usage("%s %q is not accepted; expected how long ago, such as 90m, or when, such as 2026-01-31T15:04:05Z", flag, text)
		}
		at = now.Add(-ago)
	}
	return &debvisorv1.Timestamp{Seconds: at.Unix(), Nanos: int32(at.Nanosecond())}, nil
}

func auditTail(a *app) *cobra.Command {
	var f auditFilter
	c := &cobra.Command{
		Use: "tail", Short: "Show the last lines of the audit log",
		Long: "Show the last lines of the audit log, of all replicas in the order of time. With --follow go on\n" +
			"with what is added. With -o json each line is as it stands in the log.",
		Example: "  hvctl audit tail\n  hvctl audit tail -f --event permission_denied",
		Args:    cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.query.Last == 0 {
				return usage("--lines 0 is not accepted; expected 1 or more")
			}
			if f.query.Follow {
				return a.await(cmd.Context(), func(ctx context.Context, c *client) error { return a.showAudit(ctx, c, &f) })
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error { return a.showAudit(ctx, c, &f) })
		},
	}
	f.addTo(a, c)
	c.Flags().Uint32VarP(&f.query.Last, "lines", "n", 20, "how many")
	c.Flags().BoolVarP(&f.query.Follow, "follow", "f", false, "go on until interrupted")
	complete(c, "lines", cobra.NoFileCompletions)
	return c
}

func auditSearch(a *app) *cobra.Command {
	var f auditFilter
	c := &cobra.Command{
		Use: "search", Short: "Find lines of the audit log",
		Long: "Find lines of the audit log, of all replicas in the order of time. Lines that cannot be read are\n" +
			"always shown. With -o json each line is as it stands in the log.",
		Example: "  hvctl audit search --since 2h --principal ci --code PERMISSION_DENIED\n" +
			"  hvctl audit search --operation op-01k9x3m7q2v8r5t6w4y1z0abcd -o wide",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.resolve(time.Now()); err != nil {
				return err
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error { return a.showAudit(ctx, c, &f) })
		},
	}
	f.addTo(a, c)
	c.Flags().StringVar(&f.since, "since", "", "from when on: how long ago (90m), or a moment (2026-01-31T15:04:05Z)")
	c.Flags().StringVar(&f.until, "until", "", "until when, in the same forms")
	c.Flags().Uint32Var(&f.query.Last, "last", 0, "the last so many only (default: all)")
	for _, name := range []string{"since", "until", "last"} {
		complete(c, name, cobra.NoFileCompletions)
	}
	return c
}

func auditHeads(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "heads", Short: "Show the ends of all replicas' logs as etcd has them",
		Long: "Show the ends of all replicas' logs as etcd has them. What is noted before a log is copied proves\n" +
			"the copy: hvctl audit verify --head NUMBER:HASH FILE.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.audits.ListAuditHeads(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error {
					t := table{head: []string{"REPLICA", "LINE", "HASH", "AT"}}
					for _, h := range list.GetHeads() {
						t.add(h.GetReplica(), fmt.Sprint(h.GetSequence()), h.GetHash(), stamp(h.GetAt()))
					}
					return a.printTable(t)
				})
			})
		},
	}
}

// completeReplicas completes a replica's name.
func (a *app) completeReplicas(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.suggest(cmd.Context(), typed, func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		known, err := c.cluster.GetCluster(ctx, &debvisorv1.Empty{})
		var list []cobra.Completion
		for _, r := range known.GetReplicas() {
			list = append(list, cobra.CompletionWithDesc(r.GetName(), r.GetCallersAddress()))
		}
		return list, err
	})
}

// replicaClient is a client of one replica in particular.
type replicaClient struct {
	*client
	name string
	err  error
}

// replicas gives a client of each replica, or of the one of that name. The one
// that is connected already is used as it is.
func (a *app) replicas(ctx context.Context, c *client, only string) (list []replicaClient, done func(), err error) {
	known, err := c.cluster.GetCluster(ctx, &debvisorv1.Empty{})
	if err != nil {
		return nil, nil, err
	}
	var opened []*client
	for _, r := range known.GetReplicas() {
		if only != "" && r.GetName() != only {
			continue
		}
		if r.GetName() == known.GetAnsweredBy() {
			list = append(list, replicaClient{client: c, name: r.GetName()})
			continue
		}
		other, err := a.dialTo([]string{r.GetCallersAddress()})
		if err == nil {
			other.trace = c.trace
			opened = append(opened, other)
		}
		list = append(list, replicaClient{client: other, name: r.GetName(), err: err})
	}
	done = func() {
		for _, other := range opened {
			other.close()
		}
	}
	if only != "" && len(list) == 0 {
		done()
		return nil, nil, errdefs.New(errdefs.NotFound, "REPLICA_NOT_FOUND", "no replica %q", only)
	}
	return list, done, nil
}
