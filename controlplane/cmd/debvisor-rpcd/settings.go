package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/debvisor/debvisor/controlplane"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/obs"
)

// defaultPerMinute is the contract's limit for each principal.
const defaultPerMinute = 100

// settings are what serve is told.
type settings struct {
	home members.Home
	cfg  controlplane.Config
	logs obs.LogConfig
}

// daemon says where serve's configuration is.
func daemon() config.Daemon {
	return config.Daemon{
		Program: "debvisor-rpcd", File: "/etc/debvisor/rpc/rpcd.yaml", Env: "RPC_CONFIG",
		Fresh: func() (*config.Table, func() error, func(context.Context) error) {
			s := &settings{}
			return s.table(), s.judge, func(context.Context) error {
				cfg, _ := s.final()
				return controlplane.Look(cfg)
			}
		},
	}
}

// table lists the keys, whose values come to s.
func (s *settings) table() *config.Table {
	t := config.New("debvisor-rpcd", "RPC_")
	s.logs.Name = "debvisor-rpcd"
	s.listeners(t)
	s.state(t)
	s.access(t)
	s.watched(t)
	return t
}

func (s *settings) listeners(t *config.Table) {
	c := &s.cfg
	t.Section("Listeners")
	t.String(&c.Listen, "listen", "127.0.0.1:7443", "the callers' listener, host:port")
	t.String(&c.Advertise, "advertise", "", "how others reach the callers' listener, host:port; empty: as it listens")
	t.String(&c.AgentsListen, "agents-listen", "", "the agents' listener, host:port; empty: the callers' host with port 7444")
	t.String(&c.AgentsAdvertise, "agents-advertise", "", "how agents reach their listener, host:port; empty: as it listens")
	t.String(&c.GatewayListen, "gateway-listen", "", "the listener for HTTP/JSON, host:port, such as 127.0.0.1:7446; empty: none")
	t.String(&c.MetricsListen, "metrics-listen", "127.0.0.1:7447", "the listener for /healthz, /readyz and /metrics, host:port; \"none\": none")
	t.Duration(&c.Drain, "drain", 2*time.Second, "how long a replica that stops goes on serving, so that callers and balancers notice, 0s to 1m")
	t.Section("Certificates")
	t.String(&c.TLSCert, "tls-cert", "", "the certificate file of the callers' listener, PEM; with tls_key and tls_ca, all three empty: the replica's own, "+
		"which renews itself")
	t.String(&c.TLSKey, "tls-key", "", "its key file")
	t.String(&c.TLSCA, "tls-ca", "", "the file of the CAs that callers' certificates are of")
	t.Duration(&c.ServerLife, "server-cert-life", 30*24*time.Hour, "the life of the replica's own certificates")
	t.Duration(&c.AgentLife, "agent-cert-life", 30*24*time.Hour, "the life of agents' certificates")
}

func (s *settings) state(t *config.Table) {
	c := &s.cfg
	t.Section("State")
	t.String(&s.home.Dir, "data-dir", "/var/lib/debvisor/rpcd", "the replica's data directory, which init or join made")
	t.String(&s.home.WrapKey, "wrap-key-file", "", "the file of the key that seals the CA's keys at rest, 32 bytes in base64; "+
		"empty: the credential wrap.key that systemd was told to load, else pki/wrap.key of the data directory")
	t.String(&c.EtcdPeerListen, "etcd-peer-listen", "", "where the embedded etcd listens for the other replicas, IP:port; empty: as init or join was told")
	t.Strings(&c.EtcdEndpoints, "etcd-endpoints", "endpoints of an outside etcd, instead of the embedded one")
	t.String(&c.EtcdCA, "etcd-ca", "", "the outside etcd's CA file")
	t.String(&c.EtcdCert, "etcd-cert", "", "the client certificate file for the outside etcd")
	t.String(&c.EtcdKey, "etcd-key", "", "its key file")
	t.Duration(&c.LeaderTTL, "leader-ttl", 3*time.Second, "how long a leader that is not heard of leads on, whole seconds from 1s to 5s")
}

func (s *settings) access(t *config.Table) {
	c, jwt := &s.cfg, &s.cfg.JWT
	t.Section("Access")
	t.Int(&c.PerMinute, "rate-limit", defaultPerMinute, "calls a minute that a principal without a limit of its own may make of this replica; 0: no limit").Live()
	t.String(&c.AccessFile, "access-file", "", "principals, roles, tenants and hashes of keys beside those in etcd, YAML, read anew when changed; empty: none")
	t.String(&jwt.Key, "jwt-key", "", "public keys or certificates of the issuer whose JWTs are accepted, PEM, read anew when changed; empty: none")
	t.String(&jwt.JWKS, "jwt-jwks", "", "or the https address of the issuer's key set")
	t.String(&jwt.JWKSCA, "jwt-jwks-ca", "", "the CAs that vouch for that address, PEM; empty: the host's")
	t.String(&jwt.Issuer, "jwt-issuer", "", "what a JWT must have as its issuer; empty: debvisor-auth")
	t.String(&jwt.Audience, "jwt-audience", "", "what a JWT must have among its audience; empty: debvisor-rpc")
	t.Strings(&jwt.Algorithms, "jwt-algorithms", "the algorithms accepted, RS256, ES256 or both; empty: RS256")
	t.Bool(&jwt.TrustPermissions, "jwt-trust-permissions", false, "grant what a JWT's claim \"permissions\" lists, besides what records grant")
}

func (s *settings) watched(t *config.Table) {
	c := &s.cfg
	t.Section("Logs")
	t.String(&c.AuditLog, "audit-log", "/var/log/debvisor/rpc-audit.log", "the audit log's file, opened anew on SIGHUP")
	t.String(&c.AuditSyslog, "audit-syslog", "/dev/log",
		"the socket of the syslog that takes the audit log's lines while its file cannot be written; \"none\": changes are then refused")
	t.String(&s.logs.File, "log-file", "/var/log/debvisor/rpc.log", "the log's file, opened anew on SIGHUP; \"-\": standard error").Live()
	t.String(&s.logs.Level, "log-level", "info", "from which level on lines are logged: trace, debug, info, warn or error").Live()
	t.String(&s.logs.Format, "log-format", obs.FormatText, "what lines look like: text, or json for one object a line").Live()
	t.Section("Traces")
	t.String(&c.Trace.Endpoint, "trace-endpoint", "", "the OpenTelemetry collector that traces go to by OTLP/gRPC, https://host:port or unix:///path; empty: none")
	t.String(&c.Trace.CA, "trace-ca", "", "the file of the CAs that vouch for the collector, PEM; empty: the host's")
	t.String(&c.Trace.Cert, "trace-cert", "", "the certificate file to show to the collector, PEM, with trace_key; empty: none")
	t.String(&c.Trace.Key, "trace-key", "", "its key file")
	t.Float(&c.Trace.Sample, "trace-sample", 1, "the part of the calls whose callers do not trace them that are traced, 0 to 1")
}

// judge finds what is wrong with what the table was filled with.
func (s *settings) judge() error {
	cfg, logs := s.final()
	return errors.Join(cfg.Check(), logs.Check())
}

// final is what the words for nothing stand for.
func (s *settings) final() (controlplane.Config, obs.LogConfig) {
	cfg, logs := s.cfg, s.logs
	for value, none := range map[*string]string{&cfg.AuditSyslog: "none", &cfg.MetricsListen: "none", &logs.File: "-"} {
		if *value == none {
			*value = ""
		}
	}
	cfg.DataDir, cfg.WrapKey = s.home.Dir, cmp.Or(s.home.WrapKey, wrapCredential())
	return cfg, logs
}

// openLogs makes the directories of both logs, and opens the one that is not the
// audit log.
func openLogs(cfg obs.LogConfig, audit string) (*obs.Logs, error) {
	for _, file := range []string{cfg.File, audit} {
		if file == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			return nil, fmt.Errorf("making the log's directory: %w", err)
		}
	}
	return obs.OpenLogs(cfg)
}
