package store

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/debvisor/debvisor/shared/errdefs"
)

const (
	// defaultTick suits members that share two cores with guests.
	defaultTick = 200 * time.Millisecond
	// electionTicks without a heartbeat make a member campaign.
	electionTicks = 10
	// quota is what etcd's database may grow to.
	quota = 2 << 30
	// maxTxnOps leaves room for a fence above MaxChangeOps.
	maxTxnOps = 1024
	// maxLearners is how many replicas may be joining at once.
	maxLearners = 3
	// maxSocketPath is what the kernel takes.
	maxSocketPath = 107
)

// EmbeddedConfig says how an embedded etcd member runs.
type EmbeddedConfig struct {
	// Name is the replica's name, the same for the life of its data directory.
	Name string
	// DataDir is the replica's data directory D; etcd lives in D/etcd.
	DataDir string
	// PeerListen is the IP:port that peers connect to.
	PeerListen string
	// Peers are all members, this one included: name → https://host:port.
	// They are read at the first start only.
	Peers map[string]string
	// Existing says at the first start that the cluster runs already and has
	// been told of this member; otherwise all of Peers begin a new cluster.
	Existing bool
	// CAFile, CertFile and KeyFile are the etcd CA and this member's leaf;
	// empty: D/etcd/pki/{ca,peer,peer-key}.pem. The pair is read anew at each
	// handshake.
	CAFile, CertFile, KeyFile string
	// Tick is the time between the heartbeats of etcd's leader, the same on
	// all replicas; 0: 200 ms. A leader is given up after ten ticks without,
	// and the shortest lease is fifteen, rounded up to a second.
	Tick time.Duration
	// LogFile takes etcd's own log; empty: its warnings and errors go to Log.
	LogFile string
	// Meter is told of each request to etcd; nil: nobody is.
	Meter Meter
	Log   hclog.Logger
}

// etcd checks the configuration, makes the directory and translates it.
func (cfg EmbeddedConfig) etcd() (*embed.Config, error) {
	if cfg.Name == "" || strings.ContainsAny(cfg.Name, "=,") {
		return nil, errdefs.Field("replica name", cfg.Name, "a name without = and ,")
	}
	if host, _, err := net.SplitHostPort(cfg.PeerListen); err != nil || net.ParseIP(host) == nil {
		return nil, errdefs.Field("peer listen address", cfg.PeerListen, "IP:port")
	}
	socket := SocketPath(cfg.DataDir)
	if len(socket) > maxSocketPath {
		return nil, errdefs.Field("data directory", cfg.DataDir,
			fmt.Sprintf("a path short enough that %s has at most %d bytes", socket, maxSocketPath))
	}
	dir := filepath.Join(cfg.DataDir, "etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making etcd's directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("closing etcd's directory to others: %w", err)
	}
	if err := hasRoom(dir); err != nil {
		return nil, err
	}
	peerTLS, err := cfg.peerTLS(filepath.Join(dir, "pki"))
	if err != nil {
		return nil, err
	}

	ec := embed.NewConfig()
	ec.Name = cfg.Name
	ec.Dir = filepath.Join(dir, "data")
	ec.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	ec.AdvertiseClientUrls = ec.ListenClientUrls
	ec.EnableGRPCGateway = false
	ec.PeerTLSInfo = peerTLS
	ec.TlsMinVersion = "TLS1.3"
	tick := cfg.Tick
	if tick == 0 {
		tick = defaultTick
	}
	ec.TickMs = uint(tick.Milliseconds())
	ec.ElectionMs = electionTicks * ec.TickMs
	ec.QuotaBackendBytes = quota
	ec.MaxTxnOps = maxTxnOps
	ec.MaxLearners = maxLearners
	ec.AutoCompactionMode = embed.CompactorModePeriodic
	ec.AutoCompactionRetention = "1h"
	ec.InitialClusterToken = "debvisor"
	if cfg.Existing {
		ec.ClusterState = embed.ClusterStateFlagExisting
	}
	return ec, cfg.setPeers(ec)
}

// setPeers says where this member listens and where all are reached.
func (cfg EmbeddedConfig) setPeers(ec *embed.Config) error {
	ec.ListenPeerUrls = []url.URL{{Scheme: "https", Host: cfg.PeerListen}}
	ec.AdvertisePeerUrls = ec.ListenPeerUrls
	initial := make([]string, 0, len(cfg.Peers))
	for name, peer := range cfg.Peers {
		urls, err := types.NewURLs([]string{peer})
		if err != nil || urls[0].Scheme != "https" {
			return errdefs.Field("peer "+name, peer, "https://host:port")
		}
		if name == cfg.Name {
			ec.AdvertisePeerUrls = urls
		}
		initial = append(initial, name+"="+peer)
	}
	slices.Sort(initial)
	ec.InitialCluster = strings.Join(initial, ",")
	if len(initial) == 0 {
		ec.InitialCluster = ec.InitialClusterFromName(cfg.Name)
	}
	return nil
}

// peerTLS is how peers trust each other: by etcd's own CA, which signs
// replicas and nobody else. Where a peer connects from is not compared with its
// certificate, since replicas may sit behind address translation; where one
// connects to is.
func (cfg EmbeddedConfig) peerTLS(pki string) (transport.TLSInfo, error) {
	or := func(path, name string) string {
		if path != "" {
			return path
		}
		return filepath.Join(pki, name)
	}
	info := transport.TLSInfo{
		TrustedCAFile:       or(cfg.CAFile, "ca.pem"),
		CertFile:            or(cfg.CertFile, "peer.pem"),
		KeyFile:             or(cfg.KeyFile, "peer-key.pem"),
		ClientCertAuth:      true,
		SkipClientSANVerify: true,
		MinVersion:          tls.VersionTLS13,
	}
	if _, err := os.ReadFile(info.TrustedCAFile); err != nil {
		return info, fmt.Errorf("reading the etcd CA: %w", err)
	}
	if _, err := tls.LoadX509KeyPair(info.CertFile, info.KeyFile); err != nil {
		return info, fmt.Errorf("the etcd peer certificate %s: %w", info.CertFile, err)
	}
	return info, nil
}
