package main

import (
	"context"
	"errors"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/obs"
)

const defaultDataDir = "/var/lib/debvisor/agent"

// settings are what run is told.
type settings struct {
	cfg  agent.Config
	logs obs.LogConfig
}

// daemon says where run's configuration is.
func daemon() config.Daemon {
	return config.Daemon{
		Program: "debvisor-agent", File: "/etc/debvisor/agent/agent.yaml", Env: "DEBVISOR_AGENT_CONFIG",
		Fresh: func() (*config.Table, func() error, func(context.Context) error) {
			s := &settings{}
			return s.table(), s.judge, func(context.Context) error { return agent.Look(s.cfg) }
		},
	}
}

// table lists the keys, whose values come to s.
func (s *settings) table() *config.Table {
	c := &s.cfg
	t := config.New("debvisor-agent", "DEBVISOR_AGENT_")
	s.logs.Name, c.Version = "debvisor-agent", obs.Version
	t.Section("The node")
	t.String(&c.DataDir, "data-dir", defaultDataDir, "the directory that enroll made")
	t.String(&c.PeerListen, "peer-listen", ":7445", "where other agents ask, host:port; the host is told to them, and without one the address from which the replicas are reached is")
	t.String(&c.TunnelListen, "tunnel-listen", ":7450-7499", "where the tunnels of migrations and replications listen, host:first-last")
	t.Section("What it works with")
	t.String(&c.LibvirtURI, "libvirt-uri", "qemu:///system", "this host's libvirt")
	t.Strings(&c.SharedDirs, "shared-dir", "PATH[=ID] of a directory that other nodes see too, may be given several times; network file systems need none").Whole()
	t.String(&c.CephConf, "ceph-conf", "/etc/ceph/ceph.conf", "this host's Ceph configuration; without such a file the host has no Ceph")
	t.String(&c.CephUser, "ceph-user", "debvisor", "as whom to speak to Ceph, without \"client.\"")
	t.Duration(&c.DirtyRateEvery, "dirty-rate-every", 5*time.Minute, "how often each running guest's dirty rate is measured, for estimates, at least 1m; 0s: never")
	t.Section("Logs")
	t.String(&s.logs.File, "log-file", "", "the log's file, opened anew on SIGHUP; empty: standard error, which systemd leads to its journal").Live()
	t.String(&s.logs.Level, "log-level", "info", "from which level on lines are logged: trace, debug, info, warn or error").Live()
	t.String(&s.logs.Format, "log-format", obs.FormatText, "what lines look like: text, or json for one object a line").Live()
	t.Section("Traces")
	t.String(&c.Trace.Endpoint, "trace-endpoint", "", "the OpenTelemetry collector that spans of traced tasks go to by OTLP/gRPC, https://host:port or unix:///path; empty: none")
	t.String(&c.Trace.CA, "trace-ca", "", "the file of the CAs that vouch for the collector, PEM; empty: the host's")
	t.String(&c.Trace.Cert, "trace-cert", "", "the certificate file to show to the collector, PEM, with trace_key; empty: none")
	t.String(&c.Trace.Key, "trace-key", "", "its key file")
	return t
}

// judge finds what is wrong with what the table was filled with.
func (s *settings) judge() error { return errors.Join(s.cfg.Check(), s.logs.Check()) }
