package config

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// Daemon is what commands need to know of a daemon's configuration.
type Daemon struct {
	// Program is the daemon's name.
	Program string
	// File is where the configuration is, unless --config or the variable Env says
	// otherwise. It need not be there.
	File, Env string
	// Fresh makes a table of its own variables. Judge finds what Load cannot, in
	// what the table was filled with, errors with the context "field" where they
	// are about a key; Look looks at the files that it names as well, and starts
	// nothing.
	Fresh func() (t *Table, judge func() error, look func(context.Context) error)
}

// Line is the part of a command's line that is about the configuration.
type Line struct {
	daemon Daemon
	path   string
	flags  *Table
	cmd    *cobra.Command
}

// AddTo gives a command --config and the keys' flags.
func (d Daemon) AddTo(cmd *cobra.Command) *Line {
	l := &Line{daemon: d, cmd: cmd}
	l.flags, _, _ = d.Fresh()
	cmd.Flags().StringVar(&l.path, "config", "", fmt.Sprintf("the configuration file, YAML (environment %s; default %s, which need not be there)", d.Env, d.File))
	l.flags.AddFlags(cmd.Flags())
	return l
}

// Source is where the values come from, by the command line as it was parsed.
func (l *Line) Source() Source {
	src := Source{File: l.path, Flags: l.flags.Given()}
	if !l.cmd.Flags().Changed("config") {
		src.File = lookup(l.daemon.Env)
	}
	if src.File == "" && !l.cmd.Flags().Changed("config") {
		src.File, src.Optional = l.daemon.File, true
	}
	return src
}

// Fill loads a table and judges it. The error joins all that is wrong with it.
func (l *Line) Fill(t *Table, judge func() error) error {
	src := l.Source()
	if src.File == "" {
		return errors.New(`--config: "" is not accepted; expected the path of a file`)
	}
	err := t.Load(src)
	if judged := t.Locate(judge()); judged != nil {
		return errors.Join(err, judged)
	}
	return err
}

// Command is the command config, with check, show and default below it.
func (d Daemon) Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check and show the configuration, without starting anything",
		Long: "The configuration is one YAML file, the environment and flags, the later before the earlier.\n" +
			"A key's flag has \"-\" where the key has \"_\".",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(d.checkCommand(), d.showCommand(), d.defaultCommand())
	return cmd
}

func (d Daemon) checkCommand() *cobra.Command {
	var line *Line
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell all that is wrong with the configuration and the files that it names",
		Long: "Reads the configuration as the daemon would, and the certificates, keys and other files that it names.\n" +
			"Each mistake is a line, and there being one is exit status 1. Nothing is started, written or asked.",
		Example: "  " + d.Program + " config check --config ./new.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, judge, look := d.Fresh()
			err := line.Fill(t, judge)
			if err == nil {
				err = t.Locate(look(cmd.Context()))
			}
			if mistakes := Each(err); len(mistakes) > 0 {
				for _, m := range mistakes {
					if _, err := fmt.Fprintln(cmd.ErrOrStderr(), m); err != nil {
						return err
					}
				}
				return fmt.Errorf("%d mistakes in the configuration", len(mistakes))
			}
			where := t.file
			if where == "" {
				where = "no file"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the configuration is good (%s)\n", where)
			return err
		},
	}
	line = d.AddTo(cmd)
	return cmd
}

func (d Daemon) showCommand() *cobra.Command {
	var line *Line
	var format string
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show every key, its value and where that comes from",
		Example: "  " + d.Program + " config show -o yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, judge, _ := d.Fresh()
			if err := line.Fill(t, judge); err != nil {
				return err
			}
			return t.Show(cmd.OutOrStdout(), format)
		},
	}
	line = d.AddTo(cmd)
	cmd.Flags().StringVarP(&format, "output", "o", "table", "table, yaml or json")
	return cmd
}

func (d Daemon) defaultCommand() *cobra.Command {
	var markdown bool
	cmd := &cobra.Command{
		Use:   "default",
		Short: "Print a configuration file with every key, commented out, at its default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, _, _ := d.Fresh()
			if markdown {
				return t.WriteMarkdown(cmd.OutOrStdout())
			}
			return t.WriteDefault(cmd.OutOrStdout(), d.File)
		},
	}
	cmd.Flags().BoolVar(&markdown, "markdown", false, "as a table for the documentation")
	return cmd
}
