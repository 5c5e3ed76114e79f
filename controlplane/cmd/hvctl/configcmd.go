package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
)

// configCommand is "hvctl config": the named contexts.
func configCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Named contexts: clusters and identities"}
	c.AddCommand(configList(a), configSet(a), configUse(a), configDelete(a))
	return c
}

func configList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the contexts", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			file, err := loadConfig()
			if err != nil {
				return err
			}
			t := table{head: []string{"CURRENT", "CONTEXT", "SERVER", "CA", "IDENTITY"}}
			for _, name := range file.names() {
				e := file.Contexts[name]
				current := ""
				if name == file.Current {
					current = "*"
				}
				t.add(current, name, e.Server, e.CA, e.identity())
			}
			return a.printTable(t)
		},
	}
}

func configSet(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "set CONTEXT",
		Short: "Write the connection flags into a context",
		Long: `Write the connection flags of this command line (--server, --ca, --cert, --key,
--api-key, --token) into a context; what is not given stays as it is. The first
context becomes the current one.`,
		Example: "  hvctl config set prod --server cp1,cp2,cp3 --ca ca.pem --cert me.pem --key me-key.pem",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := loadConfig()
			if err != nil {
				return err
			}
			given := a.flags.given.resolved(absolute)
			e := given.over(file.Contexts[args[0]])
			if err := e.check(fmt.Sprintf("context %q", args[0])); err != nil {
				return err
			}
			if _, err := e.servers(); err != nil {
				return err
			}
			file.Contexts[args[0]] = e
			if file.Current == "" {
				file.Current = args[0]
			}
			return file.save()
		},
	}
}

func configUse(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "use CONTEXT", Short: "Make a context the current one",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := loadConfig()
			if err != nil {
				return err
			}
			if _, err := file.context(args[0]); err != nil {
				return err
			}
			file.Current = args[0]
			return file.save()
		},
	}
}

func configDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete CONTEXT", Short: "Delete a context",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := loadConfig()
			if err != nil {
				return err
			}
			if _, err := file.context(args[0]); err != nil {
				return err
			}
			delete(file.Contexts, args[0])
			if file.Current == args[0] {
				file.Current = ""
			}
			return file.save()
		},
	}
}

// absolute makes a path independent of the working directory, where it can.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// configurationTopic is "hvctl help configuration".
func configurationTopic() *cobra.Command {
	return &cobra.Command{
		Use: "configuration", Short: "Where hvctl connects to, and as whom",
		Long: `hvctl takes each setting from the first of these that has it:

  1. flags: --server --ca --cert --key --api-key --token
  2. the context that --context names
  3. the environment: HVCTL_SERVER HVCTL_CA HVCTL_CERT HVCTL_KEY HVCTL_API_KEY
     HVCTL_TOKEN
  4. the context that HVCTL_CONTEXT names, else the current one

The identity (certificate and key, API key or token) is taken as a whole from
the first that has one. An API key or token may be @FILE.

Contexts are in ~/.config/hvctl/config.yaml (or HVCTL_CONFIG):

  current-context: prod
  contexts:
    prod:
      server: cp1.example.org,cp2.example.org:7443
      ca: ca.pem              # relative to this file
      cert: me.pem
      key: me-key.pem

Several servers are tried in turn, but only when one cannot be reached. The
server's certificate is always checked against the CA, over TLS 1.3.`,
	}
}
