package members

import (
	"context"
	"crypto/ecdh"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/run"
)

// Member is this replica, with the CAs that it keeps and its own certificates.
type Member struct {
	wrap certs.WrapKey
	// seal opens what is sealed to this replica.
	seal *ecdh.PrivateKey
	// mu lets one at a time change the CAs and the own certificates.
	mu   sync.Mutex
	keep keeping
	// ring is keep's.
	ring    atomic.Pointer[certs.Ring]
	changed atomic.Pointer[chan struct{}]
	server  *certs.Reloader
	peer    *certs.Reloader
	log     hclog.Logger
}

// watchInterval is how often certificate files are looked at for changes made
// by others.
const watchInterval = 5 * time.Second

// Open reads a replica's data directory, checks its certificates and reissues
// its own leaves: one that expired while the replica was off is no obstacle,
// but a key that does not match, a file that cannot be read or another CA's
// certificate is, with one clear line. life is that of the leaves; 0:
// certs.ServerLife.
func Open(home Home, life time.Duration, log hclog.Logger) (*Member, error) {
	record, err := ReadRecord(home)
	if err != nil {
		return nil, err
	}
	wrap, err := home.readWrap()
	if err != nil {
		return nil, err
	}
	if err := home.entitled(); err != nil {
		return nil, err
	}
	ring, err := certs.LoadRing(home.Ring(), wrap, time.Now())
	if err != nil {
		return nil, err
	}
	etcdCA, err := certs.LoadAuthority(home.EtcdAuthority(), wrap, time.Now())
	if err != nil {
		return nil, err
	}
	m := &Member{wrap: wrap, keep: keeping{home: home, record: record, ring: ring, etcdCA: etcdCA, life: life}, log: log}
	m.ring.Store(ring)
	changed := make(chan struct{})
	m.changed.Store(&changed)
	if m.seal, err = home.readSealKey(wrap); err != nil {
		return nil, err
	}
	if err := home.keepFormer(); err != nil {
		return nil, err
	}
	if m.server, err = fresh(home.Server(), m.keep.issueServer, log); err != nil {
		return nil, err
	}
	if m.peer, err = fresh(home.EtcdPeer(), m.keep.issuePeer, log); err != nil {
		return nil, err
	}
	return m, nil
}

// fresh loads a pair, whatever its age, and reissues it.
func fresh(files certs.Files, issue func() error, log hclog.Logger) (*certs.Reloader, error) {
	files.Grace = certs.AuthorityLife
	r, err := certs.NewReloader(files, log)
	if err != nil {
		return nil, err
	}
	if certs.Expired(r.Leaf(), time.Now()) {
		log.Warn("own certificate had expired and is reissued", "file", files.Cert, "not_after", r.Leaf().NotAfter)
	}
	if err := issue(); err != nil {
		return nil, err
	}
	return r, r.Reload()
}

// Record tells what the replica is.
func (m *Member) Record() Record { return m.keep.record }

// Ring is the cluster's CAs.
func (m *Member) Ring() *certs.Ring { return m.ring.Load() }

// Server makes the TLS configurations of the replica's listeners.
func (m *Member) Server() *certs.Reloader { return m.server }

// Bundle gives the CA certificates that members trust, in PEM.
func (m *Member) Bundle() ([]byte, error) { return m.Ring().Bundle(), nil }

// Run renews the replica's leaves at two thirds of their lives, and follows
// changes of the files, until the context ends. etcd reads its files by itself
// at each handshake.
func (m *Member) Run(ctx context.Context) error {
	var g run.Group
	g.Add("server certificate files", func(ctx context.Context) error { return m.server.Run(ctx, watchInterval) })
	g.Add("server certificate", m.renewal(m.server, func() error { return m.keep.issueServer() }).Run)
	g.Add("etcd peer certificate", m.renewal(m.peer, m.keep.issuePeer).Run)
	return g.Run(ctx)
}

func (m *Member) renewal(r *certs.Reloader, issue func() error) certs.Renewal {
	return certs.Renewal{
		Leaf: r.Leaf,
		Renew: func(context.Context) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if err := issue(); err != nil {
				return err
			}
			return r.Reload()
		},
		Log: m.log,
	}
}

// handOver gives what a joiner must have, the keys sealed to its seal key.
func (m *Member) handOver(sealKey []byte) (*agentv1.JoinReplicaResponse, error) {
	ring := m.Ring()
	caKeys, err := ring.Keys()
	if err != nil {
		return nil, err
	}
	etcdKey, err := m.keep.etcdCA.KeyPEM()
	if err != nil {
		return nil, err
	}
	sealed, err := sealTo(sealKey, append(caKeys, etcdKey...))
	if err != nil {
		return nil, err
	}
	etcdBundle, err := os.ReadFile(m.keep.home.EtcdAuthority().Cert)
	if err != nil {
		return nil, fmt.Errorf("read the etcd CA certificates: %w", err)
	}
	return &agentv1.JoinReplicaResponse{
		Cluster: m.keep.record.Cluster, Ca: ring.Bundle(), EtcdCa: etcdBundle, SealedKeys: sealed,
	}, nil
}
