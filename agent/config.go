package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/shared/config"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/obs"
)

// Config says how an agent runs. Node, cluster and certificates are what
// enrolment left in the data directory.
type Config struct {
	DataDir string
	// PeerListen is where other agents ask, host:port. It is advertised to
	// them; without a host, the address from which the replicas are reached is.
	PeerListen string
	// TunnelListen is where a migration's tunnel listens, host:first-last.
	TunnelListen string
	// LibvirtURI is libvirt's own; empty: qemu:///system.
	LibvirtURI string
	// SharedDirs are directories whose files (or block devices) other nodes see
	// under the same path though their file system does not tell: PATH or
	// PATH=ID, the ID being the same on all nodes that see the same.
	SharedDirs []string
	// CephConf is this host's Ceph configuration; where no such file is, the host
	// has no Ceph. Empty: /etc/ceph/ceph.conf. CephUser is as whom the agent speaks
	// to it, without "client."; empty: debvisor.
	CephConf, CephUser string
	// DirtyRateEvery is how often each running guest's dirty rate is measured,
	// one guest at a time and none while a task is under way; 0: never, else at
	// least a minute.
	DirtyRateEvery time.Duration
	// Trace says where spans go; without an endpoint there are none.
	Trace   obs.TraceConfig
	Version string
	// HangUps are SIGHUPs. At each the log goes on in the file at its path, by
	// ReopenLog, and the configuration is read anew by Reload, which applies what
	// it says of the log, and gives all that differs from what is in force. An
	// error of it changes nothing, and may join several.
	HangUps   <-chan os.Signal
	ReopenLog func() error
	Reload    func() ([]config.Change, error)
	// Notify is told how the agent is; nil: nobody is.
	Notify *obs.Notifier
	Log    hclog.Logger
}

// check refuses what the rest of the agent cannot be asked to make sense of.
func (c Config) check() error {
	if c.DirtyRateEvery != 0 && c.DirtyRateEvery < time.Minute {
		return errdefs.Field("dirty-rate-every", c.DirtyRateEvery.String(), "0 (never) or at least 1m0s")
	}
	return nil
}

// portRange is a host and the ports of it that may be listened on.
type portRange struct {
	host        string
	first, last int
}

func parsePortRange(text string) (portRange, error) {
	refuse := errdefs.Field("tunnel-listen", text, "host:first-last, such as 192.0.2.1:7450-7499")
	host, ports, err := splitLast(text)
	if err != nil {
		return portRange{}, refuse
	}
	from, to, ok := strings.Cut(ports, "-")
	if !ok {
		to = from
	}
	first, errFirst := strconv.ParseUint(from, 10, 16)
	last, errLast := strconv.ParseUint(to, 10, 16)
	if errFirst != nil || errLast != nil || first == 0 || last < first {
		return portRange{}, refuse
	}
	return portRange{host, int(first), int(last)}, nil
}

// splitLast is net.SplitHostPort for what is no single port.
func splitLast(text string) (host, ports string, err error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return "", "", fmt.Errorf("%q has no port", text)
	}
	host, _, err = net.SplitHostPort(text[:i] + ":0")
	return host, text[i+1:], err
}

// advertised is the host under which others reach a listener: its own, or the
// one from which this machine reaches the replicas.
func advertised(ctx context.Context, host string, servers []string) (string, error) {
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return host, nil
	}
	for _, server := range servers {
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", server) // sends nothing
		if err != nil {
			continue
		}
		local := conn.LocalAddr().(*net.UDPAddr).IP.String()
		_ = conn.Close()
		return local, nil
	}
	return "", errdefs.Field("peer-listen", host, "an address that other nodes can reach: no route to a replica tells one")
}
