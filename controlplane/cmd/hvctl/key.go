package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// keyCommand is "hvctl key": the API keys.
func keyCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "key", Aliases: []string{"keys"}, Short: "API keys: how services and CI jobs say who they are",
		Long: "API keys: how services and CI jobs say who they are. The cluster keeps only a key's hash: the key\n" +
			"itself is shown once, when it is made. A principal has two live keys at most, the second one for\n" +
			"the time in which it takes the place of the first.",
	}
	c.AddCommand(keyCreate(a), keyList(a), keyRotate(a), keyRevoke(a))
	return c
}

func keyCreate(a *app) *cobra.Command {
	life := span(90 * 24 * time.Hour)
	var description string
	c := &cobra.Command{
		Use: "create PRINCIPAL", Short: "Make a key for a principal; only the key goes to standard output", Args: cobra.ExactArgs(1),
		Example:           "  hvctl key create ci --description 'nightly builds' > key",
		ValidArgsFunction: a.completePrincipals,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeKey(cmd.Context(), func(ctx context.Context, c *client) (*debvisorv1.APIKey, error) {
				return c.access.CreateKey(ctx, &debvisorv1.KeyRequest{Principal: args[0], TtlSeconds: life.seconds(), Description: description})
			})
		},
	}
	addKeyLife(c, &life)
	c.Flags().StringVar(&description, "description", "", "what it is for (at most 256 characters)")
	complete(c, "description", cobra.NoFileCompletions)
	return c
}

func addKeyLife(c *cobra.Command, life *span) {
	c.Flags().Var(life, "ttl", "how long the key can be used, such as 12h, 90d or 365d")
	complete(c, "ttl", cobra.NoFileCompletions)
}

// makeKey makes a key and prints it, and nothing else, on standard output.
func (a *app) makeKey(ctx context.Context, ask func(context.Context, *client) (*debvisorv1.APIKey, error)) error {
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		key, err := ask(a.changing(ctx), c)
		if err != nil {
			return err
		}
		return a.print(key, func() error {
			_, err := fmt.Fprintln(a.out, key.GetKey())
			a.hint("key %s of %s can be used until %s; it is not shown again", key.GetId(), key.GetPrincipal(), stamp(key.GetExpiresAt()))
			return err
		})
	})
}

func keyList(a *app) *cobra.Command {
	var principal string
	c := &cobra.Command{
		Use: "list", Short: "List the keys: whose they are, how long they live, when they were last used", Args: cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.access.ListKeys(ctx, &debvisorv1.KeyFilter{Principal: principal})
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(keyTable(list, a.wide(), time.Now())) })
			})
		},
	}
	c.Flags().StringVar(&principal, "principal", "", "only those of this principal")
	complete(c, "principal", a.completePrincipalFlag)
	return c
}

// soon is how long before its end a key is said to end soon.
const soon = 14 * 24 * time.Hour

// keyTable lists keys.
func keyTable(list *debvisorv1.APIKeyList, wide bool, now time.Time) table {
	t := table{head: []string{"KEY", "PRINCIPAL", "STATE", "MADE", "ENDS", "LAST USED"}}
	if wide {
		t.head = append(t.head, "FROM", "BY", "SOURCE", "DESCRIPTION")
	}
	for _, k := range list.GetKeys() {
		row := []string{k.GetId(), orWord(k.GetPrincipal(), "nobody"), keyState(k, now), ago(k.GetCreatedAt()), endsIn(k.GetExpiresAt(), now), orWord(ago(k.GetLastUsedAt()), "never")}
		if wide {
			row = append(row, k.GetLastUsedFrom(), k.GetCreatedBy(), k.GetSource(), k.GetDescription())
		}
		t.add(row...)
	}
	return t
}

// keyState tells whether a key can be used, and whether it is to be rotated.
func keyState(k *debvisorv1.APIKey, now time.Time) string {
	end := moments(k.GetExpiresAt())
	switch {
	case k.GetExpiresAt() != nil && !now.Before(end):
		return "ended"
	case k.GetMustRotate():
		return "rotate it: its text was in the store"
	case k.GetExpiresAt() != nil && end.Sub(now) < soon:
		return "ends soon"
	}
	return "live"
}

// endsIn tells when something ends, or has ended.
func endsIn(at *debvisorv1.Timestamp, now time.Time) string {
	if at == nil {
		return "never"
	}
	if left := moments(at).Sub(now); left > 0 {
		return "in " + duration(left)
	}
	return ago(at)
}

func keyRotate(a *app) *cobra.Command {
	life, overlap := span(90*24*time.Hour), span(24*time.Hour)
	var now bool
	c := &cobra.Command{
		Use: "rotate KEY-ID", Short: "Make a new key in the place of one; only the new key goes to standard output", Args: cobra.ExactArgs(1),
		Long: "Make a new key of the same principal in the place of one. The old one ends after --overlap, in which\n" +
			"both work, or at once with --now.",
		Example:           "  hvctl key rotate 0123456789abcdef > key\n  hvctl key rotate 0123456789abcdef --now > key",
		ValidArgsFunction: a.completeKeys,
		RunE: func(cmd *cobra.Command, args []string) error {
			if now && cmd.Flags().Changed("overlap") {
				return usage("give either --overlap or --now")
			}
			req := &debvisorv1.KeyRotation{Id: a.keyID(args[0]), OverlapSeconds: overlap.seconds(), TtlSeconds: life.seconds()}
			if now {
				req.NoOverlap, req.OverlapSeconds = true, 0
			}
			return a.makeKey(cmd.Context(), func(ctx context.Context, c *client) (*debvisorv1.APIKey, error) {
				return c.access.RotateKey(ctx, req)
			})
		},
	}
	addKeyLife(c, &life)
	c.Flags().Var(&overlap, "overlap", "how long the old key still works, at most 30d")
	c.Flags().BoolVar(&now, "now", false, "the old key ends at once")
	complete(c, "overlap", cobra.NoFileCompletions)
	return c
}

func keyRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "revoke KEY-ID", Short: "End a key at once", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeKeys,
		RunE: func(cmd *cobra.Command, args []string) error {
			id := a.keyID(args[0])
			return a.changeAccess(cmd.Context(), "key "+id+" revoked", func(ctx context.Context, c *client) (proto.Message, error) {
				return c.access.RevokeKey(ctx, &debvisorv1.KeyRef{Id: id})
			})
		},
	}
}

// keyID gives the id of a key where the whole key was given: it must not travel,
// and not be repeated in an error.
func (a *app) keyID(given string) string {
	parts := strings.Split(given, "_")
	if len(parts) < 3 || parts[0] != "dvk" {
		return given
	}
	a.what = strings.ReplaceAll(a.what, given, parts[1])
	a.hint("the whole key was given; its id is %s", parts[1])
	return parts[1]
}
