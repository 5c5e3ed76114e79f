// Package storetest starts real etcd members for tests: in this process, with
// their sockets and certificates in a directory that ends with the test. It is
// for tests only.
package storetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/debvisor/debvisor/controlplane/internal/store"
)

// startTimeout is how long members may take to form a quorum.
const startTimeout = time.Minute

// tick makes elections short: a test's cluster is idle.
const tick = 50 * time.Millisecond

// Client starts an etcd of one member and gives its client; both end with the
// test.
func Client(t testing.TB) *clientv3.Client {
	t.Helper()
	return Start(t, Configs(t, 1)[0]).Client()
}

// Dir makes a directory that ends with the test, in memory where the machine has
// such a place: a build beside the test can hold up every write to its disk for
// seconds, which is longer than changes wait for theirs. Its name is short
// enough for sockets in it, as those of t.TempDir are not.
func Dir(t testing.TB) string {
	t.Helper()
	const memory = "/dev/shm"
	parent := ""
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		parent = memory
	}
	dir, err := os.MkdirTemp(parent, "debvisor-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Configs gives the configurations of n members that begin a cluster together.
func Configs(t testing.TB, n int) []store.EmbeddedConfig {
	t.Helper()
	dir := Dir(t)
	authority := newCA(t)
	peers := map[string]string{}
	configs := make([]store.EmbeddedConfig, n)
	for i := range configs {
		name := fmt.Sprintf("r%d", i+1)
		address := FreeAddress(t)
		peers[name] = "https://" + address
		configs[i] = store.EmbeddedConfig{
			Name: name, DataDir: filepath.Join(dir, name), PeerListen: address, Peers: peers,
			Tick: tick, LogFile: filepath.Join(dir, name+".log"), Log: hclog.NewNullLogger(),
		}
		authority.issue(t, filepath.Join(configs[i].DataDir, "etcd", "pki"))
	}
	return configs
}

// Start starts a member, which ends with the test if not before.
func Start(t testing.TB, cfg store.EmbeddedConfig) *store.Embedded {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	member, err := store.StartEmbedded(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(member.Close)
	return member
}

// StartAll starts members that need each other to have a quorum.
func StartAll(t testing.TB, configs []store.EmbeddedConfig) []*store.Embedded {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	members := make([]*store.Embedded, len(configs))
	errs := make(chan error, len(configs))
	for i, cfg := range configs {
		go func() {
			var err error
			members[i], err = store.StartEmbedded(ctx, cfg)
			errs <- err
		}()
	}
	var failed error
	for range configs {
		if err := <-errs; err != nil {
			failed = err
			cancel()
		}
	}
	for _, m := range members {
		if m != nil {
			t.Cleanup(m.Close)
		}
	}
	if failed != nil {
		t.Fatal(failed)
	}
	return members
}

// FreeAddress is a loopback address that nothing listened on a moment ago, with a
// port that the kernel gives to nobody by itself: connections of tests beside this
// one take those.
func FreeAddress(t testing.TB) string {
	t.Helper()
	const from, to = 12000, 32000
	var err error
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", from+rand.IntN(to-from))
		var l net.Listener
		if l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address); err == nil {
			if err = l.Close(); err == nil {
				return address
			}
		}
	}
	t.Fatal(err)
	return ""
}
