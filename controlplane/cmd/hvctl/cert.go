package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// certCommand is "hvctl cert": the cluster's certificates and its CA.
func certCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "cert", Short: "The cluster's certificates: issue, list and revoke them, exchange the CA",
		Long: "The cluster's certificates: those that replicas and agents renew by themselves, those of principals,\n" +
			"and the CA that signs them, which can be exchanged while everything runs.",
	}
	c.AddCommand(certIssue(a), certList(a), certRevoke(a), certCA(a), certRotate(a))
	return c
}

// holderKinds are the words for whose a certificate is.
func holderKinds() map[string]debvisorv1.CertificateHolder {
	return map[string]debvisorv1.CertificateHolder{
		"principal": debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_PRINCIPAL,
		"node":      debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_AGENT,
		"replica":   debvisorv1.CertificateHolder_CERTIFICATE_HOLDER_REPLICA,
	}
}

func holderWord(c *debvisorv1.Certificate) string {
	for word, kind := range holderKinds() {
		if kind == c.GetHolder() {
			return word + "/" + c.GetName()
		}
	}
	return c.GetName()
}

func certList(a *app) *cobra.Command {
	var of string
	var all bool
	var within span
	c := &cobra.Command{
		Use: "list", Short: "List the certificates that the cluster has issued, the soonest to end first", Args: cobra.NoArgs,
		Long: "List the certificates that the cluster has issued, the soonest to end first: those that can be used and\n" +
			"that none has taken the place of, with --all every one that is still noted.",
		Example:           "  hvctl cert list --expires-within 14d\n  hvctl cert list --of node/node-1 --all",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter := &debvisorv1.CertificateFilter{All: all, ExpiresWithinSeconds: within.seconds()}
			if of != "" {
				kind, name, _ := strings.Cut(of, "/")
				if filter.Holder = holderKinds()[kind]; filter.GetHolder() == 0 {
					return usage("--of %q is not accepted; expected principal, node or replica, with /NAME or without", of)
				}
				filter.Name = name
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.certificates.ListCertificates(ctx, filter)
				if err != nil {
					return err
				}
				return a.print(list, func() error { return a.printTable(certTable(list, a.wide(), time.Now())) })
			})
		},
	}
	c.Flags().StringVar(&of, "of", "", "only those of principal, node or replica, or of one of them: node/node-1")
	c.Flags().BoolVar(&all, "all", false, "those that have ended, are revoked or were renewed as well")
	c.Flags().Var(&within, "expires-within", "only those that end within this time, such as 14d")
	for _, flag := range []string{"of", "expires-within"} {
		complete(c, flag, cobra.NoFileCompletions)
	}
	return c
}

func certTable(list *debvisorv1.CertificateList, wide bool, now time.Time) table {
	t := table{head: []string{"HOLDER", "SERIAL", "STATE", "ISSUED", "ENDS"}}
	if wide {
		t.head = append(t.head, "BY", "CA", "REASON")
	}
	for _, c := range list.GetCertificates() {
		row := []string{holderWord(c), c.GetSerial(), certState(c, now), ago(c.GetIssuedAt()), endsIn(c.GetExpiresAt(), now)}
		if wide {
			row = append(row, orWord(c.GetIssuedBy(), "itself"), c.GetCa(), c.GetRevokedReason())
		}
		t.add(row...)
	}
	return t
}

// certState tells whether a certificate can be used, and whether it ends soon.
func certState(c *debvisorv1.Certificate, now time.Time) string {
	left, life := moments(c.GetExpiresAt()).Sub(now), moments(c.GetExpiresAt()).Sub(moments(c.GetIssuedAt()))
	switch {
	case c.GetRevoked():
		return "revoked"
	case left <= 0:
		return "ended"
	case c.GetSuperseded():
		return "renewed"
	case left < min(soon, life/6):
		return "ends soon"
	}
	return "live"
}

func certRevoke(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "revoke HOLDER|SERIAL", Short: "End all certificates of a holder at once, or the one of a serial", Args: cobra.ExactArgs(1),
		Long: "End all certificates of a holder (principal/NAME, node/ID, replica/NAME) at once, or the one of a serial.\n" +
			"Open connections are cut within seconds. A node has to be enrolled anew after it (hvctl node token ID\n" +
			"--replace); a replica has to be removed and to join anew; a principal can be issued new ones.",
		Example:           "  hvctl cert revoke node/node-1 --reason 'disk stolen'\n  hvctl cert revoke principal/ci",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name, named := strings.Cut(args[0], "/")
			holder := holderKinds()[kind]
			if named && (holder == 0 || name == "") {
				return usage("%q is not accepted; expected principal/NAME, node/ID, replica/NAME or a serial", args[0])
			}
			if named {
				return a.revokeHolder(cmd.Context(), &debvisorv1.HolderRevocation{Holder: holder, Name: name, Reason: reason}, args[0])
			}
			serial := strings.ReplaceAll(strings.TrimPrefix(args[0], "serial="), ":", "")
			return a.changeAccess(cmd.Context(), "certificate "+serial+" revoked", func(ctx context.Context, c *client) (proto.Message, error) {
				return c.access.RevokeCertificate(ctx, &debvisorv1.CertificateRevocation{Serial: serial, Reason: reason})
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for others to read (at most 256 characters)")
	complete(c, "reason", cobra.NoFileCompletions)
	return c
}

func (a *app) revokeHolder(ctx context.Context, req *debvisorv1.HolderRevocation, who string) error {
	return a.ask(ctx, func(ctx context.Context, c *client) error {
		answer, err := c.certificates.RevokeHolder(a.changing(ctx), req)
		if err != nil {
			return err
		}
		return a.print(answer, func() error {
			_, err := fmt.Fprintf(a.out, "%d certificates of %s revoked\n", len(answer.GetSerials()), clean(who))
			return err
		})
	})
}

func certCA(a *app) *cobra.Command {
	var save bool
	c := &cobra.Command{
		Use: "ca", Short: "Show the CAs that are to be trusted, and how far an exchange is", Args: cobra.NoArgs,
		Long: "Show the CAs that are to be trusted, how far an exchange of the CA is and who is not ready for its next\n" +
			"phase. With --save they are written into the CA file that this command was told (--ca, HVCTL_CA or the\n" +
			"context's), so that hvctl goes on trusting the cluster when the old CA goes.",
		Example:           "  hvctl cert ca --save",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				ca, err := c.certificates.GetCA(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				if save {
					if err := a.saveCA(ca.GetBundle()); err != nil {
						return err
					}
				}
				return a.print(ca, func() error { return a.printCA(ca) })
			})
		},
	}
	c.Flags().BoolVar(&save, "save", false, "write the CAs into the CA file that hvctl uses")
	return c
}

// saveCA replaces the CA file of this run.
func (a *app) saveCA(bundle []byte) error {
	where, err := a.endpoint()
	if err != nil {
		return err
	}
	if was, err := os.ReadFile(where.CA); err == nil && string(was) == string(bundle) {
		return nil
	}
	if err := writePrivate(where.CA, bundle); err != nil {
		return badConfig("writing the CA file: %v", err)
	}
	a.hint("the CAs are written to %s", where.CA)
	return nil
}

func (a *app) printCA(ca *debvisorv1.CAStatus) error {
	var f facts
	f.add("phase", strings.ToLower(enumWord(ca.GetPhase(), "CA_PHASE_")))
	f.add("since", orWord(stamp(ca.GetPhaseSince()), "it was made"))
	f.add("CA", ca.GetCurrent())
	f.add("ends", stamp(ca.GetCurrentExpiresAt()))
	if ca.GetNext() != "" {
		f.add("next CA", ca.GetNext())
		f.add("ends", stamp(ca.GetNextExpiresAt()))
	}
	if err := a.printFacts(f); err != nil || len(ca.GetWaitingFor()) == 0 {
		return err
	}
	t := table{head: []string{"WAITS FOR", "WHY"}}
	for _, l := range ca.GetWaitingFor() {
		t.add(l.GetWho(), l.GetWhy())
	}
	return a.printTable(t)
}

func certRotate(a *app) *cobra.Command {
	var leave []string
	steps := map[string]debvisorv1.CAAction{
		"begin":  debvisorv1.CAAction_CA_ACTION_BEGIN,
		"switch": debvisorv1.CAAction_CA_ACTION_SWITCH,
		"finish": debvisorv1.CAAction_CA_ACTION_FINISH,
		"back":   debvisorv1.CAAction_CA_ACTION_BACK,
	}
	c := &cobra.Command{
		Use: "rotate-ca begin|switch|finish|back", Short: "Take the exchange of the CA one phase on, or back", Args: cobra.ExactArgs(1),
		Long: "Take the exchange of the CA one phase on, or back:\n\n" +
			"  begin   makes a new CA that all come to trust; the old one signs\n" +
			"  switch  the new one signs; everybody renews; both are trusted\n" +
			"  finish  the old one is trusted no more\n" +
			"  back    one phase back: the old one signs again, or the new one is given up\n\n" +
			"\"hvctl cert ca\" tells who is not ready for the next phase. Nodes and principals can be left behind by name:\n" +
			"they have to be enrolled, or issued certificates, anew.",
		Example:           "  hvctl cert rotate-ca begin\n  hvctl cert rotate-ca finish --leave-behind principal/former-ci",
		ValidArgsFunction: cobra.FixedCompletions([]string{"begin", "switch", "finish", "back"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			action := steps[args[0]]
			if action == 0 {
				return usage("%q is not accepted; expected begin, switch, finish or back", args[0])
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				ca, err := c.certificates.RotateCA(a.changing(ctx), &debvisorv1.CARotationRequest{Action: action, LeaveBehind: leave})
				if err != nil {
					return err
				}
				return a.print(ca, func() error { return a.printCA(ca) })
			})
		},
	}
	c.Flags().StringSliceVar(&leave, "leave-behind", nil, "go on without these: node/ID, principal/NAME, comma-separated")
	complete(c, "leave-behind", cobra.NoFileCompletions)
	return c
}
