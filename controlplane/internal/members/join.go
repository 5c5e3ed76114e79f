package members

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/debvisor/debvisor/certs"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/identity"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Join makes the data directory of a replica that joins the cluster of the
// server (host:port of any replica's callers' listener) with a replica's join
// token. The server is recognised by the CA's fingerprint in the token. After
// any failure it can be repeated with the same token: the seal key that the
// token is bound to is kept until the directory is complete. While the cluster
// asks to be asked again (another replica is joining, say) it does so, until
// the context ends.
func Join(ctx context.Context, home Home, server, token string, o Options) (Record, error) {
	o.Cluster = "unknown" // the answer tells it
	r, err := o.record()
	if err != nil {
		return Record{}, err
	}
	parsed, err := identity.ParseJoinToken(token)
	if err != nil {
		return Record{}, err
	}
	if _, err := os.Stat(home.RecordFile()); !errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("%s exists: %s is a replica's data directory already", home.RecordFile(), home.Dir)
	}
	if err := home.create(); err != nil {
		return Record{}, err
	}
	key, err := home.joinKey()
	if err != nil {
		return Record{}, err
	}
	resp, err := ask(ctx, server, parsed, &agentv1.JoinReplicaRequest{
		Token: token, Name: r.Name, PeerUrl: r.PeerURL, SealKey: key.PublicKey().Bytes(),
	})
	if err != nil {
		return Record{}, err
	}
	if err := settleIn(home, &r, resp, parsed, key); err != nil {
		return Record{}, fmt.Errorf("join %s: %w", server, err)
	}
	return r, os.Remove(home.sealKey())
}

func ask(ctx context.Context, server string, token identity.JoinToken, req *agentv1.JoinReplicaRequest) (*agentv1.JoinReplicaResponse, error) {
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		return nil, errdefs.Field("server", server, "host:port of a replica")
	}
	conn, err := rpc.Dial(server, certs.BootstrapClient(host, token.Fingerprint))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	client := agentv1.NewEnrollServiceClient(conn)
	for {
		resp, err := client.JoinReplica(ctx, req)
		if err == nil {
			return resp, nil
		}
		refusal := errdefs.FromStatus(err)
		if refusal.RetryAfter <= 0 || !pause(ctx, refusal.RetryAfter) {
			return nil, fmt.Errorf("join %s: %w", server, refusal)
		}
	}
}

// pause waits; false when the context ends before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// settleIn checks the answer and writes the directory; replica.json comes last
// and makes it one.
func settleIn(home Home, r *Record, resp *agentv1.JoinReplicaResponse, token identity.JoinToken, key *ecdh.PrivateKey) error {
	cas, err := certs.ParseCertificates(resp.GetCa())
	if err != nil {
		return fmt.Errorf("read the CA: %w", err)
	}
	if _, err := certs.FindByFingerprint(cas, token.Fingerprint); err != nil {
		return err
	}
	r.Cluster, r.State, r.InitialCluster = resp.GetCluster(), StateExisting, resp.GetInitialCluster()
	if err := moveIn(home, *r, resp, key); err != nil {
		return err
	}
	return r.write(home)
}

// moveIn writes what the replica of that record keeps: the CAs with their keys,
// which are sealed to key, and its leaves.
func moveIn(home Home, r Record, has *agentv1.JoinReplicaResponse, key *ecdh.PrivateKey) error {
	keys, err := openSealed(key, has.GetSealedKeys())
	if err != nil {
		return err
	}
	ring, err := certs.NewRingFrom(has.GetCa(), keys)
	if err != nil {
		return err
	}
	etcdCA, err := certs.NewAuthorityFrom(has.GetEtcdCa(), keys)
	if err != nil {
		return err
	}
	if err := r.check(); err != nil {
		return err
	}
	k := keeping{home: home, record: r, ring: ring, etcdCA: etcdCA}
	return k.install(has.GetEtcdCa())
}

// joinKey gives the seal key of this directory's attempt to join, making it
// where there is none.
func (h Home) joinKey() (*ecdh.PrivateKey, error) {
	data, err := os.ReadFile(h.sealKey())
	if err == nil {
		raw, err := hex.DecodeString(strings.TrimSpace(string(data)))
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: remove it and ask for a new join token", h.sealKey())
		}
		return ecdh.X25519().NewPrivateKey(raw)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the seal key: %w", err)
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a seal key: %w", err)
	}
	return key, certs.WriteNewFile(h.sealKey(), []byte(hex.EncodeToString(key.Bytes())+"\n"), certs.SecretMode)
}
