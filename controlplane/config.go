// Package controlplane assembles a replica of the control plane: Config says
// what it is, Run runs it. Nothing else of it is exported.
package controlplane

import (
	"net"
	"reflect"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/errdefs"
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
	Log               hclog.Logger
}

func (c *Config) complete() error {
	if c.HeartbeatInterval == 0 {
		c.HeartbeatInterval = 2 * time.Second
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && c.AgentsListen == "" {
		c.AgentsListen = net.JoinHostPort(host, "7444")
	}
	for _, l := range []struct {
		flag, advertised string
		listen           string
		advertise        *string
	}{
		{"--listen", "--advertise", c.Listen, &c.Advertise},
		{"--agents-listen", "--agents-advertise", c.AgentsListen, &c.AgentsAdvertise},
	} {
		host, _, err := net.SplitHostPort(l.listen)
		if err != nil {
			return errdefs.Field(l.flag, l.listen, "host:port, such as 192.0.2.10:7443")
		}
		if *l.advertise != "" {
			if host, _, err := net.SplitHostPort(*l.advertise); err != nil || unspecified(host) {
				return errdefs.Field(l.advertised, *l.advertise, "host:port that others can reach, such as 192.0.2.10:7443")
			}
			continue
		}
		if unspecified(host) {
			return errdefs.Field(l.flag, l.listen, "an address that others can reach, or --advertise and --agents-advertise besides")
		}
		*l.advertise = l.listen
	}
	if c.GatewayListen != "" {
		if _, _, err := net.SplitHostPort(c.GatewayListen); err != nil {
			return errdefs.Field("--gateway-listen", c.GatewayListen, "host:port, such as 192.0.2.10:7446")
		}
	}
	if ttl := c.LeaderTTL; ttl != 0 && (ttl < time.Second || ttl > 5*time.Second || ttl%time.Second != 0) {
		return errdefs.Field("--leader-ttl", ttl.String(), "whole seconds from 1s to 5s")
	}
	if c.JWT.Key == "" && c.JWT.JWKS == "" && !reflect.ValueOf(c.JWT).IsZero() {
		return errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD", "the --jwt-… flags say nothing without --jwt-key or --jwt-jwks")
	}
	if set := []string{c.TLSCert, c.TLSKey, c.TLSCA}; (set[0] == "") != (set[1] == "") || (set[0] == "") != (set[2] == "") {
		return errdefs.New(errdefs.InvalidArgument, "INVALID_FIELD",
			"RPC_TLS_CERT, RPC_TLS_KEY and RPC_TLS_CA go together: set all three, or none to use the replica's own")
	}
	return nil
}

// unspecified tells whether a host is no address that others could dial.
func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
