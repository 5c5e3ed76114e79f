package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/shared/manual"
)

// newRoot builds the whole tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "hvctl",
		Short: "Operate a DebVisor cluster",
		Long: `hvctl talks to any replica of a DebVisor cluster: it lists nodes and VMs,
moves VMs between nodes and follows operations.

Answers go to standard output; hints, progress and errors to standard error.`,
		Example: `  hvctl node list
  hvctl migrate plan web1
  hvctl migrate run web1 --to node-2`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.flags.bounded = cmd.Flags().Changed("timeout")
			return a.checkFlags()
		},
	}
	root.AddCommand(
		clusterCommand(a), nodeCommand(a), vmCommand(a), migrateCommand(a), failoverCommand(a), planCommand(a), operationCommand(a),
		storageCommand(a), snapshotCommand(a), templateCommand(a), cloneCommand(a), retentionCommand(a), replicationCommand(a),
		tokenCommand(a), authCommand(a), principalCommand(a), roleCommand(a), keyCommand(a), tenantCommand(a), certCommand(a), certificateCommand(a), configCommand(a), versionCommand(a),
		auditCommand(a), eventsCommand(a),
		exitCodesTopic(), configurationTopic(), manual.Command("1"),
	)
	a.addFlags(root)
	a.own(root)
	return root
}

// addFlags declares the flags that every command has.
func (a *app) addFlags(root *cobra.Command) {
	f, p := &a.flags, root.PersistentFlags()
	p.StringVar(&f.given.Server, "server", "", "replicas as host[:port], comma-separated; tried in turn when one cannot be reached")
	p.StringVar(&f.given.CA, "ca", "", "PEM file with the cluster's CA certificate")
	p.StringVar(&f.given.Cert, "cert", "", "PEM file with your client certificate")
	p.StringVar(&f.given.Key, "key", "", "PEM file with your client certificate's key")
	p.StringVar(&f.given.APIKey, "api-key", "", "API key; @FILE reads it from a file")
	p.StringVar(&f.given.Token, "token", "", "JWT; @FILE reads it from a file")
	p.StringVar(&f.context, "context", "", "the context of the configuration file to use")
	p.StringVarP(&f.output, "output", "o", formatTable, strings.Join(formats(), ", "))
	p.BoolVar(&f.wait, "wait", true, "wait for the end of the operation that a command begins")
	p.BoolVar(&f.noWait, "no-wait", false, "return as soon as the operation is recorded and print its id")
	p.DurationVar(&f.timeout, "timeout", defaultTimeout,
		"bound of each call with its retries; waiting for an operation is bounded only when this is given")
	p.StringVar(&f.traceEndpoint, "trace-endpoint", "",
		"the OpenTelemetry collector that this command's trace goes to, https://host:port or unix:///path; else as OTEL_EXPORTER_OTLP_ENDPOINT says")
	p.StringVar(&f.traceCA, "trace-ca", "", "PEM file of the CAs that vouch for it; else as OTEL_EXPORTER_OTLP_CERTIFICATE says, else the host's")
	root.MarkFlagsMutuallyExclusive("wait", "no-wait")
	complete(root, "output", cobra.FixedCompletions(formats(), cobra.ShellCompDirectiveNoFileComp))
	complete(root, "context", a.completeContexts)
	for _, name := range []string{"server", "api-key", "token", "timeout", "trace-endpoint"} {
		complete(root, name, cobra.NoFileCompletions)
	}
}

// checkFlags refuses flags that mean nothing.
func (a *app) checkFlags() error {
	if !slices.Contains(formats(), a.flags.output) {
		return usage("--output %q is not accepted; expected %s", a.flags.output, strings.Join(formats(), ", "))
	}
	if a.flags.timeout <= 0 {
		return usage("--timeout %s is not accepted; expected more than 0, such as 30s", a.flags.timeout)
	}
	return nil
}
