package store_test

import (
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/debvisor/debvisor/controlplane/internal/cluster"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
)

// outside starts an etcd as an operator would: it listens for clients on TCP,
// asks for their certificates and takes large transactions.
func outside(t *testing.T) (endpoint, pki string) {
	t.Helper()
	ours := storetest.Configs(t, 2) // their addresses are free, their certificates of one CA
	pki = filepath.Join(ours[0].DataDir, "etcd", "pki")
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.MaxTxnOps = t.TempDir(), "error", 1024
	client, err := url.Parse("https://" + ours[0].PeerListen)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := url.Parse("https://" + ours[1].PeerListen)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = filepath.Join(pki, "peer.pem"), filepath.Join(pki, "peer-key.pem")
	cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = filepath.Join(pki, "ca.pem"), true
	cfg.PeerTLSInfo = cfg.ClientTLSInfo
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	select {
	case <-etcd.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("the outside etcd does not get ready")
	}
	return client.Host, pki
}

func TestAnOutsideEtcdServesOverMutualTLS(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	endpoint, pki := outside(t)
	client, err := store.Connect(ctx, store.ExternalConfig{
		Endpoints: []string{endpoint}, Log: hclog.NewNullLogger(),
		CAFile:   filepath.Join(pki, "ca.pem"),
		CertFile: filepath.Join(pki, "peer.pem"), KeyFile: filepath.Join(pki, "peer-key.pem"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	s := store.New(client)
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	v, _ := run(t, client)
	var change store.Change
	for i := range 900 { // more than etcd takes unless it is told to
		change.Puts = append(change.Puts, store.PutString(store.InUseKey(string(rune('a'+i%26))+"/"+time.Duration(i).String()), "op"))
	}
	commit(ctx, t, s, change)
	until(t, v, "what was written to the outside etcd", func(s *cluster.Snapshot) bool { return len(s.InUse) == 900 })
}
