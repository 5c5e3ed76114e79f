// Package controlplane assembles a replica of the control plane: Config says
// what it is, Run runs it. Nothing else of it is exported.
package controlplane

import (
	"errors"
	"net"
	"os"
	"reflect"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// Config is what a replica is told.
type Config struct {
	// DataDir is the directory that init or join made.
	DataDir string
	// WrapKey is the file of the key that seals the CA's keys at rest; empty:
	// DataDir/pki/wrap.key.
	WrapKey string
	// Listen is the callers' listener, host:port.
	Listen string
	// AgentsListen is the agents' listener, host:port; empty: the callers' host
	// with port 7444.
	AgentsListen string
	// GatewayListen is the listener for HTTP/JSON, host:port; empty: none.
	GatewayListen string
	// MetricsListen is the listener of those who watch over the replica (health,
	// metrics), host:port; empty: none.
	MetricsListen string
	// Advertise and AgentsAdvertise are how others reach the two listeners,
	// host:port; empty: as they listen, which must not be on all addresses.
	Advertise, AgentsAdvertise string
	// EtcdPeerListen is where the embedded etcd listens for the other replicas,
	// IP:port; empty: as init or join was told.
	EtcdPeerListen string
	// EtcdEndpoints are those of an outside etcd; empty: the embedded one.
	EtcdEndpoints []string
	// EtcdCA, EtcdCert and EtcdKey are the files for an outside etcd.
	EtcdCA, EtcdCert, EtcdKey string
	// TLSCert, TLSKey and TLSCA are the callers' listener's files; all empty:
	// the replica's own, which it renews by itself.
	TLSCert, TLSKey, TLSCA string
	// AuditLog is the file that audit events are appended to.
	AuditLog string
	// AuditSyslog is the socket of the syslog that takes the audit log's lines
	// while the file cannot be written; empty: none does.
	AuditSyslog string
	// PerMinute is how many calls a principal may make a minute; 0: no limit.
	PerMinute int
	// AccessFile is a file with an access policy beside that in etcd; empty: none.
	AccessFile string
	// JWT says which tokens are accepted.
	JWT JWT
	// LeaderTTL is how long a leader that is not heard of leads on; 0: 3 s.
	LeaderTTL time.Duration
	// ServerLife and AgentLife are the lives of certificates; 0: 30 days.
	ServerLife, AgentLife time.Duration
	// HeartbeatInterval is the time between an agent's heartbeats; 0: 2 s.
	HeartbeatInterval time.Duration
	// Drain is how long a replica that stops goes on serving, so that callers and
	// balancers notice; 0: not at all.
	Drain time.Duration
	// HangUps are SIGHUPs, from before the configuration was read on; nil: Run
	// listens for them by itself.
	HangUps <-chan os.Signal
	// ReopenLog has the log go on in the file that is at its path, at SIGHUP; nil:
	// it does not.
	ReopenLog func() error
	// Reload reads the configuration anew, at SIGHUP, and gives all that differs
	// from what is in force; what it says of the log is applied by it. An error
	// changes nothing, and may join several. nil: there is none to read.
	Reload func() (Config, []config.Change, error)
	// Trace says where traces go; without an endpoint there are none.
	Trace obs.TraceConfig
	// Notify is told how the replica is; nil: nobody is.
	Notify *obs.Notifier
	Log    hclog.Logger
	// room tells the bytes that are left where a directory is; nil: as the file
	// system says. For tests.
	room func(dir string) (uint64, error)
}

// Check tells all that is wrong with a configuration before it is used: errors
// that name the flag, its value and what would be accepted, joined.
func (c Config) Check() error { return c.complete() }

// complete fills in what follows from the rest, and refuses what is wrong.
func (c *Config) complete() error {
	if c.HeartbeatInterval == 0 {
		c.HeartbeatInterval = 2 * time.Second
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && c.AgentsListen == "" {
		c.AgentsListen = net.JoinHostPort(host, "7444")
	}
	errs := append(c.reached(), c.optional()...)
	if c.Drain < 0 || c.Drain > maxDrain {
		errs = append(errs, errdefs.Field("--drain", c.Drain.String(), "0 to "+maxDrain.String()))
	}
	if ttl := c.LeaderTTL; ttl != 0 && (ttl < time.Second || ttl > 5*time.Second || ttl%time.Second != 0) {
		errs = append(errs, errdefs.Field("--leader-ttl", ttl.String(), "whole seconds from 1s to 5s"))
	}
	for flag, life := range map[string]time.Duration{"--server-cert-life": c.ServerLife, "--agent-cert-life": c.AgentLife} {
		if life < 0 || life > maxLife {
			errs = append(errs, errdefs.Field(flag, life.String(), "more than 0, and 30d at most"))
		}
	}
	if c.PerMinute < 0 || c.PerMinute > maxPerMinute {
		errs = append(errs, errdefs.Field("--rate-limit", strconv.Itoa(c.PerMinute), "calls a minute, 0 (no limit) to "+strconv.Itoa(maxPerMinute)))
	}
	if c.JWT.Key == "" && c.JWT.JWKS == "" && !reflect.ValueOf(c.JWT).IsZero() {
		errs = append(errs, errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "the --jwt-… flags say nothing without --jwt-key or --jwt-jwks"))
	}
	if set := []string{c.TLSCert, c.TLSKey, c.TLSCA}; (set[0] == "") != (set[1] == "") || (set[0] == "") != (set[2] == "") {
		errs = append(errs, errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD",
			"tls_cert, tls_key and tls_ca (RPC_TLS_CERT, RPC_TLS_KEY, RPC_TLS_CA) go together: set all three, or none to use the replica's own"))
	}
	return errors.Join(append(errs, c.Trace.Check())...)
}

const (
	// maxLife is the longest that a daemon's certificate may live.
	maxLife = 30 * 24 * time.Hour
	// maxPerMinute is the most that a limit may be, as in records of principals.
	maxPerMinute = 10_000_000
)

// reached completes how others reach the replica, and tells what is wrong with it.
func (c *Config) reached() (errs []error) {
	for _, l := range []struct {
		flag, advertised string
		listen           string
		advertise        *string
	}{
		{"--listen", "--advertise", c.Listen, &c.Advertise},
		{"--agents-listen", "--agents-advertise", c.AgentsListen, &c.AgentsAdvertise},
	} {
		if l.listen == "" && l.flag == "--agents-listen" {
			continue // it follows from --listen, which has been refused
		}
		host, _, err := net.SplitHostPort(l.listen)
		switch {
		case err != nil:
			errs = append(errs, errdefs.Field(l.flag, l.listen, "host:port, such as 192.0.2.10:7443"))
		case *l.advertise != "":
			if host, _, err := net.SplitHostPort(*l.advertise); err != nil || unspecified(host) {
				errs = append(errs, errdefs.Field(l.advertised, *l.advertise, "host:port that others can reach, such as 192.0.2.10:7443"))
			}
		case unspecified(host):
			errs = append(errs, errdefs.Field(l.flag, l.listen, "an address that others can reach, or --advertise and --agents-advertise besides"))
		default:
			*l.advertise = l.listen
		}
	}
	return errs
}

// optional tells what is wrong with the addresses that need not be there.
func (c *Config) optional() (errs []error) {
	for _, l := range []struct{ flag, listen, such string }{
		{"--gateway-listen", c.GatewayListen, "host:port, such as 192.0.2.10:7446"},
		{"--metrics-listen", c.MetricsListen, "host:port, such as 127.0.0.1:7447"},
	} {
		if _, _, err := net.SplitHostPort(l.listen); l.listen != "" && err != nil {
			errs = append(errs, errdefs.Field(l.flag, l.listen, l.such))
		}
	}
	if host, _, err := net.SplitHostPort(c.EtcdPeerListen); c.EtcdPeerListen != "" && (err != nil || net.ParseIP(host) == nil) {
		errs = append(errs, errdefs.Field("--etcd-peer-listen", c.EtcdPeerListen, "IP:port, such as 192.0.2.10:2380"))
	}
	return errs
}

// unspecified tells whether a host is no address that others could dial.
func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
