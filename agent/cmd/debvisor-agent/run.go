package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/obs"
)

func runCommand() *cobra.Command {
	var line *config.Line
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent of this host, which has been enrolled",
		Long: "Runs until SIGTERM or SIGINT; guests, migrations under way and their tunnels outlive it.\n" +
			"SIGHUP has it read its configuration and its certificate anew, and go on in a new log file.\n\n" +
			"What it is told comes from a configuration file, the environment and flags, the later before the earlier:\n" +
			"see debvisor-agent config.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hangUps := make(chan os.Signal, 1)
			signal.Notify(hangUps, syscall.SIGHUP) // one that comes before the agent runs is not lost
			defer signal.Stop(hangUps)
			s := &settings{}
			table := s.table()
			if err := line.Fill(table, s.judge); err != nil {
				return err
			}
			logs, err := obs.OpenLogs(s.logs)
			if err != nil {
				return err
			}
			defer func() { _ = logs.Close() }()
			cfg := s.cfg
			cfg.Log, cfg.Notify = logs.Logger(), obs.NewNotifier()
			cfg.HangUps, cfg.ReopenLog, cfg.Reload = hangUps, logs.Reopen, reload(line.Live(table), logs)
			return agent.Run(cmd.Context(), cfg)
		},
	}
	line = daemon().AddTo(cmd)
	return cmd
}

// reload reads the configuration anew; all of it that can be applied is about
// the log.
func reload(live *config.Live, logs *obs.Logs) func() ([]config.Change, error) {
	return func() ([]config.Change, error) {
		s := &settings{}
		table := s.table()
		return live.Reload(table, s.judge, func() error { return logs.Apply(s.logs) })
	}
}
