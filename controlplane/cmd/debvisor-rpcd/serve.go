package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/controlplane"
	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/obs"
)

func newServeCmd() *cobra.Command {
	var line *config.Line
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a replica",
		Long: "Runs the replica that init or join made in the data directory, until it gets SIGTERM or SIGINT.\n" +
			"SIGHUP has it read its configuration and the files that this names anew, and go on in new log files.\n\n" +
			"What it is told comes from a configuration file, the environment and flags, the later before the earlier:\n" +
			"see debvisor-rpcd config.",
		Example: "  debvisor-rpcd serve --data-dir /var/lib/debvisor/rpcd --listen 10.0.0.1:7443",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hangUps := make(chan os.Signal, 1)
			signal.Notify(hangUps, syscall.SIGHUP) // one that comes before the replica serves is not lost
			defer signal.Stop(hangUps)
			s := &settings{}
			table := s.table()
			if err := line.Fill(table, s.judge); err != nil {
				return err
			}
			cfg, logCfg := s.final()
			logs, err := openLogs(logCfg, cfg.AuditLog)
			if err != nil {
				return err
			}
			defer func() { _ = logs.Close() }()
			cfg.Log, cfg.Notify = logs.Logger(), obs.NewNotifier()
			cfg.HangUps, cfg.ReopenLog, cfg.Reload = hangUps, logs.Reopen, reload(line.Live(table), logs)
			if err := controlplane.Run(cmd.Context(), cfg); err != nil {
				logs.Logger().Error("stopped", "error", err)
				return err
			}
			return nil
		},
	}
	line = daemon().AddTo(cmd)
	return cmd
}

// reload reads the configuration anew; what it says of the log is applied here.
func reload(live *config.Live, logs *obs.Logs) func() (controlplane.Config, []config.Change, error) {
	return func() (controlplane.Config, []config.Change, error) {
		s := &settings{}
		table := s.table()
		changes, err := live.Reload(table, s.judge, func() error {
			_, logCfg := s.final()
			return logs.Apply(logCfg)
		})
		cfg, _ := s.final()
		return cfg, changes, err
	}
}
