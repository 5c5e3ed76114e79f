package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/debvisor/debvisor/controlplane"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// defaultPerMinute is the contract's limit for each principal.
const defaultPerMinute = 100

func newServeCmd() *cobra.Command {
	var home members.Home
	cfg := controlplane.Config{
		TLSCert: os.Getenv("RPC_TLS_CERT"), TLSKey: os.Getenv("RPC_TLS_KEY"), TLSCA: os.Getenv("RPC_TLS_CA"),
	}
	logCfg := obs.LogConfig{Name: "debvisor-rpcd"}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a replica",
		Long: "Runs the replica that init or join made in the data directory, until it gets SIGTERM or SIGINT.\n\n" +
			"Environment: RPC_TLS_CERT, RPC_TLS_KEY and RPC_TLS_CA name the files of the callers' listener where they are not the\n" +
			"replica's own; RPC_LOG_LEVEL, RPC_LOG_FILE (\"-\": standard error) and RPC_AUDIT_LOG are the defaults of the flags.",
		Example: "  debvisor-rpcd serve --data-dir /var/lib/debvisor/rpcd --listen 10.0.0.1:7443",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.PerMinute < 0 {
				return errdefs.Field("--rate-limit", fmt.Sprint(cfg.PerMinute), "calls a minute, or 0 for no limit")
			}
			signal.Ignore(syscall.SIGHUP) // until the replica serves: it opens its files only then
			if cfg.AuditSyslog == "none" {
				cfg.AuditSyslog = ""
			}
			if logCfg.File == "-" {
				logCfg.File = ""
			}
			for _, file := range []string{logCfg.File, cfg.AuditLog} {
				if file == "" {
					continue
				}
				if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
					return fmt.Errorf("making the log's directory: %w", err)
				}
			}
			logger, closer, err := obs.NewLogger(logCfg)
			if err != nil {
				return err
			}
			defer func() { _ = closer.Close() }()
			cfg.DataDir, cfg.WrapKey, cfg.Log = home.Dir, home.WrapKey, logger
			if err := controlplane.Run(cmd.Context(), cfg); err != nil {
				logger.Error("stopped", "error", err)
				return err
			}
			return nil
		},
	}
	homeFlags(cmd, &home)
	serveFlags(cmd, &cfg, &logCfg)
	return cmd
}

func serveFlags(cmd *cobra.Command, cfg *controlplane.Config, logCfg *obs.LogConfig) {
	f := cmd.Flags()
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:7443", "the callers' listener, host:port")
	f.StringVar(&cfg.AgentsListen, "agents-listen", "", "the agents' listener, host:port (default: the callers' host with port 7444)")
	f.StringVar(&cfg.GatewayListen, "gateway-listen", "", "the listener for HTTP/JSON, host:port, such as 127.0.0.1:7446 (default: none)")
	f.StringVar(&cfg.Advertise, "advertise", "", "how others reach the callers' listener, host:port (default: as --listen)")
	f.StringVar(&cfg.AgentsAdvertise, "agents-advertise", "", "how agents reach their listener, host:port (default: as --agents-listen)")
	f.StringVar(&cfg.EtcdPeerListen, "etcd-peer-listen", "", "where etcd listens for the other replicas, IP:port (default: as init or join was told)")
	f.StringSliceVar(&cfg.EtcdEndpoints, "etcd-endpoints", nil, "endpoints of an outside etcd, instead of the embedded one")
	f.StringVar(&cfg.EtcdCA, "etcd-ca", "", "the outside etcd's CA file")
	f.StringVar(&cfg.EtcdCert, "etcd-cert", "", "the client certificate file for the outside etcd")
	f.StringVar(&cfg.EtcdKey, "etcd-key", "", "its key file")
	f.IntVar(&cfg.PerMinute, "rate-limit", defaultPerMinute, "calls a minute that a principal may make of this replica; 0: no limit")
	f.StringVar(&cfg.AccessFile, "access-file", "", "principals, roles, tenants and hashes of keys beside those in etcd, YAML")
	jwtFlags(f, &cfg.JWT)
	f.DurationVar(&cfg.LeaderTTL, "leader-ttl", 0, "how long a leader that is not heard of leads on, 1s to 5s (default 3s)")
	f.DurationVar(&cfg.AgentLife, "agent-cert-life", 0, "the life of agents' certificates (default 30 days)")
	f.DurationVar(&cfg.ServerLife, "server-cert-life", 0, "the life of the replica's own certificates (default 30 days)")
	f.StringVar(&cfg.AuditLog, "audit-log", env("RPC_AUDIT_LOG", "/var/log/debvisor/rpc-audit.log"), "the audit log")
	f.StringVar(&cfg.AuditSyslog, "audit-syslog", "/dev/log",
		"the socket of the syslog that takes the audit log's lines while its file cannot be written; \"none\": changes are then refused")
	f.StringVar(&logCfg.File, "log-file", env("RPC_LOG_FILE", "/var/log/debvisor/rpc.log"), "the log; \"-\": standard error")
	f.StringVar(&logCfg.Level, "log-level", env("RPC_LOG_LEVEL", "info"), "trace, debug, info, warn or error")
}

func jwtFlags(f *pflag.FlagSet, jwt *controlplane.JWT) {
	f.StringVar(&jwt.Key, "jwt-key", "", "public keys or certificates of the issuer whose JWTs are accepted, PEM, read anew when changed")
	f.StringVar(&jwt.JWKS, "jwt-jwks", "", "or the https address of the issuer's key set")
	f.StringVar(&jwt.JWKSCA, "jwt-jwks-ca", "", "the CAs that vouch for that address, PEM (default: the host's)")
	f.StringVar(&jwt.Issuer, "jwt-issuer", "", "what a JWT must have as its issuer (default debvisor-auth)")
	f.StringVar(&jwt.Audience, "jwt-audience", "", "what a JWT must have among its audience (default debvisor-rpc)")
	f.StringSliceVar(&jwt.Algorithms, "jwt-algorithms", nil, "the algorithms accepted: RS256, ES256 or both (default RS256)")
	f.BoolVar(&jwt.TrustPermissions, "jwt-trust-permissions", false, "grant what a JWT's claim \"permissions\" lists, besides what records grant")
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
