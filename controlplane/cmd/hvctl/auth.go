package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// authCommand is "hvctl auth": who I am here, and what I may do.
func authCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "auth", Short: "Who you are taken for, and what you may do"}
	c.AddCommand(authWhoAmI(a), authCanI(a))
	return c
}

func authWhoAmI(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who the cluster takes you for, and what you may do", Args: cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				me, err := c.access.WhoAmI(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(me, func() error { return a.printIdentity(me) })
			})
		},
	}
}

func (a *app) printIdentity(me *debvisorv1.CallerIdentity) error {
	var f facts
	f.add("principal", me.GetPrincipal())
	credential := strings.ReplaceAll(strings.ToLower(enumWord(me.GetCredential(), "CREDENTIAL_KIND_")), "_", " ")
	f.add("by", credential+" "+me.GetCredentialId())
	f.add("until", orWord(stamp(me.GetExpiresAt()), "no end"))
	f.add("tenant", orWord(me.GetTenant(), "none: it sees all"))
	f.add("roles", orNone(me.GetRoles()))
	f.add("permissions", orNone(me.GetPermissions()))
	f.add("limit", limitWord(me.GetLimit()))
	f.add("answered by", me.GetAnsweredBy())
	return a.printFacts(f)
}

// limitWord is how often somebody may call; "default" where that is not said.
func limitWord(l *debvisorv1.RateLimit) string {
	switch {
	case l.GetUnlimited():
		return "none"
	case l.GetPerMinute() == 0 && l.GetBurst() == 0:
		return "default"
	}
	word := fmt.Sprintf("%d a minute", l.GetPerMinute())
	if l.GetPerMinute() == 0 {
		word = "default"
	}
	if b := l.GetBurst(); b > 0 && b != l.GetPerMinute() {
		word += fmt.Sprintf(", %d at once", b)
	}
	return word
}

func authCanI(a *app) *cobra.Command {
	var as string
	c := &cobra.Command{
		Use: "can-i PERMISSION", Short: "Tell whether you, or another principal, have a permission", Args: cobra.ExactArgs(1),
		Long: "Tell whether you have a permission, and by what. It ends with exit code 0 if you have it and with 1\n" +
			"if not. With --as it tells of another principal, which needs principal:get.",
		Example:           "  hvctl auth can-i migration:execute\n  hvctl auth can-i storage:snapshot:create --as ci",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				d, err := c.access.CheckAccess(ctx, &debvisorv1.AccessCheck{Permission: args[0], Principal: as})
				if err != nil {
					return err
				}
				err = a.print(d, func() error {
					_, err := fmt.Fprintf(a.out, "%s: %s\n", yesNo(d.GetAllowed()), clean(d.GetReason()))
					return err
				})
				if err == nil && !d.GetAllowed() {
					return errNo
				}
				return err
			})
		},
	}
	c.Flags().StringVar(&as, "as", "", "the principal to tell of")
	complete(c, "as", a.completePrincipalFlag)
	return c
}

// changeAccess makes a change of who may do what, which is instant, and says
// that it is done.
func (a *app) changeAccess(ctx context.Context, done string, change func(context.Context, *client) (proto.Message, error)) error {
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		answer, err := change(a.changing(ctx), c)
		if err != nil {
			return err
		}
		return a.print(answer, func() error {
			_, err := fmt.Fprintln(a.out, clean(done))
			return err
		})
	})
}

// ratedFlags are the flags of how often somebody may call.
type ratedFlags struct {
	rate, burst uint32
	byDefault   bool
}

func (f *ratedFlags) add(c *cobra.Command) {
	c.Flags().Uint32Var(&f.rate, "rate", 0, "calls a minute to each replica; 0: no limit")
	c.Flags().Uint32Var(&f.burst, "burst", 0, "how many at once after a pause; 0: as many as a minute's")
	c.Flags().BoolVar(&f.byDefault, "default-rate", false, "no limit of its own: that of its roles, or the cluster's default")
	complete(c, "rate", cobra.NoFileCompletions)
	complete(c, "burst", cobra.NoFileCompletions)
}

// limit gives the limit that the flags say; given is false where they say none.
func (f *ratedFlags) limit(c *cobra.Command) (limit *debvisorv1.RateLimit, given bool, err error) {
	rate, burst := c.Flags().Changed("rate"), c.Flags().Changed("burst")
	switch {
	case f.byDefault && (rate || burst):
		return nil, false, usage("give either --default-rate, or --rate with or without --burst")
	case burst && (!rate || f.rate == 0):
		return nil, false, usage("--burst goes with a --rate of more than 0")
	case f.byDefault:
		return nil, true, nil
	case !rate:
		return nil, false, nil
	}
	return &debvisorv1.RateLimit{PerMinute: f.rate, Burst: f.burst, Unlimited: f.rate == 0}, true, nil
}
