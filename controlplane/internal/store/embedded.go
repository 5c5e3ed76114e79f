package store

import (
	"context"
	"errors"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"
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
	// empty: D/etcd/pki/{ca,peer,peer-key}.pem. They are read anew at each
	// handshake.
	CAFile, CertFile, KeyFile string
	// LogFile takes etcd's own log; empty: its warnings and errors go to Log.
	LogFile string
	Log     hclog.Logger
}

// Embedded is an etcd member inside this process.
type Embedded struct{}

// StartEmbedded starts a member and waits until linearizable reads through it
// work: until there is a quorum and, for a replica that joins, until it has
// been promoted from learner.
func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	return nil, errors.New("not yet")
}

// Client is connected to the member by its unix socket; Run closes it.
func (e *Embedded) Client() *clientv3.Client { return nil }

// Run returns when etcd fails, or when ctx ends and it has been stopped.
func (e *Embedded) Run(ctx context.Context) error { return nil }

// SocketPath is the embedded member's client socket in a data directory.
func SocketPath(dataDir string) string { return dataDir + "/etcd/client.sock" }
