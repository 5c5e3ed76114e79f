package members_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/controlplane/internal/members"
	"github.com/debvisor/debvisor/controlplane/internal/store"
	"github.com/debvisor/debvisor/controlplane/internal/store/storetest"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
	"github.com/debvisor/debvisor/shared/rpc"
)

// newHome gives an empty data directory whose path is short enough for etcd's
// socket.
func newHome(t *testing.T) members.Home {
	t.Helper()
	dir, err := os.MkdirTemp("", "rpcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return members.Home{Dir: filepath.Join(dir, "d")}
}

func options(t *testing.T, name string) members.Options {
	t.Helper()
	return members.Options{Name: name, Cluster: "testing", PeerListen: storetest.FreeAddress(t)}
}

func openHome(t *testing.T, home members.Home) *members.Member {
	t.Helper()
	m, err := members.Open(home, 0, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func etcdConfig(home members.Home, r members.Record) store.EmbeddedConfig {
	return store.EmbeddedConfig{
		Name: r.Name, DataDir: home.Dir, PeerListen: r.PeerListen, Peers: r.Peers(),
		Existing: r.State == members.StateExisting, Tick: 50 * time.Millisecond,
		LogFile: filepath.Join(home.Dir, "etcd.log"), Log: hclog.NewNullLogger(),
	}
}

func startEtcd(t *testing.T, home members.Home, r members.Record) *store.Embedded {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := store.StartEmbedded(ctx, etcdConfig(home, r))
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(home.Dir, "etcd.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(e.Close)
	return e
}

// background runs until the test ends.
func background(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func serve(t *testing.T, cfg *tls.Config, service agentv1.EnrollServiceServer) string {
	t.Helper()
	s, err := rpc.NewServer(rpc.ServerConfig{TLS: cfg, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	agentv1.RegisterEnrollServiceServer(s, service)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(listener)
	}()
	t.Cleanup(func() {
		s.Stop()
		<-done
	})
	return listener.Addr().String()
}

// poll asks until the answer is yes, for at most 20 s.
func poll(t *testing.T, what string, yes func() (bool, error)) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := fmt.Errorf("it never was")
	for {
		ok, err := yes()
		if ok {
			return
		}
		if err != nil {
			last = err
		}
		select {
		case <-deadline:
			t.Fatalf("%s: %v", what, last)
		case <-tick.C:
		}
	}
}
