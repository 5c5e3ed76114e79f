package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
)

// certificateCommand is "hvctl certificate": the ends of certificates.
func certificateCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "certificate", Aliases: []string{"certificates"}, Short: "Certificates: end one before its time"}
	c.AddCommand(certificateRevoke(a), certificateList(a))
	return c
}

func certificateRevoke(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "revoke SERIAL", Short: "End a certificate at once, a principal's or an agent's", Args: cobra.ExactArgs(1),
		Long: "End a certificate at once, a principal's or an agent's, by its serial as openssl prints it: in either\n" +
			"case, with or without colons. There is no way back; the holder needs a new certificate.",
		Example:           "  hvctl certificate revoke $(openssl x509 -noout -serial -in panel.pem | cut -d= -f2) --reason 'laptop stolen'",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
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

func certificateList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the certificates that were revoked", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *client) error {
				list, err := c.access.ListRevokedCertificates(ctx, &debvisorv1.Empty{})
				if err != nil {
					return err
				}
				return a.print(list, func() error {
					t := table{head: []string{"SERIAL", "REASON"}}
					for _, r := range list.GetCertificates() {
						t.add(r.GetSerial(), r.GetReason())
					}
					return a.printTable(t)
				})
			})
		},
	}
}
