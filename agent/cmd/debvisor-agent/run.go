package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/shared/obs"
)

const defaultDataDir = "/var/lib/debvisor/agent"

func runCommand() *cobra.Command {
	cfg := agent.Config{Version: obs.Version}
	logs := obs.LogConfig{Name: "debvisor-agent"}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent of this host, which has been enrolled",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, closer, err := obs.NewLogger(logs)
			if err != nil {
				return err
			}
			defer func() { _ = closer.Close() }()
			cfg.Log = log
			return agent.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", defaultDataDir, "directory that enroll made")
	f.StringVar(&cfg.PeerListen, "peer-listen", ":7445", "where other agents ask, host:port; the host is told to them")
	f.StringVar(&cfg.TunnelListen, "tunnel-listen", ":7450-7499", "where the tunnels of migrations listen, host:first-last")
	f.StringVar(&cfg.LibvirtURI, "libvirt-uri", "qemu:///system", "this host's libvirt")
	f.StringArrayVar(&cfg.SharedDirs, "shared-dir", nil, "PATH[=ID] of a directory that other nodes see too, may be given several times; network file systems need none")
	f.StringVar(&cfg.CephConf, "ceph-conf", "/etc/ceph/ceph.conf", "this host's Ceph configuration; without such a file the host has no Ceph")
	f.StringVar(&cfg.CephUser, "ceph-user", "debvisor", "as whom to speak to Ceph, without \"client.\"")
	f.DurationVar(&cfg.DirtyRateEvery, "dirty-rate-every", 5*time.Minute, "how often each running guest's dirty rate is measured, for estimates; 0: never")
	f.StringVar(&logs.Level, "log-level", "info", "trace, debug, info, warn or error")
	f.StringVar(&logs.File, "log-file", "", "file to log to; empty: standard error")
	return cmd
}
