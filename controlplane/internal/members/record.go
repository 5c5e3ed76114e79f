package members

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/certs"
)

// The states of an etcd cluster at a replica's first start.
const (
	// StateNew begins a cluster.
	StateNew = "new"
	// StateExisting joins a cluster that has been told of the replica.
	StateExisting = "existing"
)

// DefaultPeerPort is where etcd's peers listen unless told otherwise.
const DefaultPeerPort = "7442"

// Record is what a replica knows of itself: replica.json.
type Record struct {
	Name    string `json:"name"`
	Cluster string `json:"cluster"`
	// Hosts are the names and addresses that the replica is reached under.
	Hosts []string `json:"hosts"`
	// PeerListen is where its etcd listens for peers, IP:port.
	PeerListen string `json:"peer_listen"`
	// PeerURL is how peers reach it: https://host:port.
	PeerURL string `json:"peer_url"`
	// InitialCluster is name=url, comma-separated; read by etcd's first start.
	InitialCluster string `json:"initial_cluster"`
	// State is StateNew or StateExisting.
	State string `json:"state"`
}

// ReadRecord reads a replica's record from its data directory.
func ReadRecord(home Home) (Record, error) {
	data, err := os.ReadFile(home.RecordFile())
	if err != nil {
		return Record{}, fmt.Errorf("%s is no replica's data directory (make it with debvisor-rpcd init or join): %w", home.Dir, err)
	}
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("%s is damaged (restore it from a backup): %w", home.RecordFile(), err)
	}
	return r, r.check()
}

// Peers gives the initial cluster: the URL of each name.
func (r Record) Peers() map[string]string {
	peers := map[string]string{}
	for part := range strings.SplitSeq(r.InitialCluster, ",") {
		if name, address, ok := strings.Cut(part, "="); ok {
			peers[name] = address
		}
	}
	return peers
}

func (r Record) write(home Home) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode replica.json: %w", err)
	}
	return certs.WriteNewFile(home.RecordFile(), append(data, '\n'), certs.SecretMode)
}

func (r Record) check() error {
	if err := certs.CheckName("replica", r.Name); err != nil {
		return err
	}
	if err := certs.CheckCluster(r.Cluster); err != nil {
		return err
	}
	for _, h := range r.Hosts {
		if err := checkHost(h); err != nil {
			return err
		}
	}
	host, _, err := net.SplitHostPort(r.PeerListen)
	if err != nil || net.ParseIP(host) == nil {
		return fmt.Errorf("etcd peer address %q is not IP:port", r.PeerListen)
	}
	return checkPeerURL(r.PeerURL)
}

func checkHost(host string) error {
	if net.ParseIP(host) != nil {
		return nil
	}
	bad := func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-'
	}
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, bad) || strings.HasPrefix(host, "-") {
		return fmt.Errorf("host %q is neither an address nor a host name (give no port)", host)
	}
	return nil
}

func checkPeerURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || (u.Path != "" && u.Path != "/") ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(text, ",= ") {
		return fmt.Errorf("peer URL %q is not https://host:port", text)
	}
	return nil
}

// peerAddresses gives where etcd listens and what peers dial. listen may be
// empty: the default port, on the first host where that is an address and else
// on all. An unspecified listening address is advertised as the first host.
func peerAddresses(listen string, hosts []string) (address, peerURL string, err error) {
	if listen == "" {
		listen = net.JoinHostPort(hosts[0], DefaultPeerPort)
		if net.ParseIP(hosts[0]) == nil {
			listen = net.JoinHostPort("0.0.0.0", DefaultPeerPort)
		}
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", "", fmt.Errorf("etcd peer address %q is not IP:port", listen)
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = hosts[0]
	}
	return listen, "https://" + net.JoinHostPort(host, port), nil
}

// peerHosts are the names of a replica's etcd certificate: what it is reached
// under, its peer address included.
func (r Record) peerHosts() []string {
	hosts := slices.Clone(r.Hosts)
	if u, err := url.Parse(r.PeerURL); err == nil && !slices.Contains(hosts, u.Hostname()) {
		hosts = append(hosts, u.Hostname())
	}
	return hosts
}
