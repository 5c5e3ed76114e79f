package enroll_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/agent/internal/enroll"
	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/shared/errdefs"
)

func renewer(t *testing.T, home enroll.Home, servers ...string) *enroll.Renewer {
	t.Helper()
	_, reloader, err := home.Open(hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return &enroll.Renewer{
		Home: home, Reloader: reloader, Log: hclog.NewNullLogger(),
		Servers: func() []string { return servers },
	}
}

// Certificates of three seconds are renewed again and again, each with a key
// of its own, while one connection made with the first of them goes on.
func TestRenewalDropsNoConnection(t *testing.T) {
	r := newReplica(t)
	r.life = 3 * time.Second
	w := renewer(t, r.enrolled(t, "node-1"), "127.0.0.1:1", r.agents) // the first replica is away
	first := w.Reloader.Leaf()

	session := echoServer(t, r.reloader(t, certs.ServerLeaf(cluster, "r1", nil, 0)).AgentsServer(cluster))
	conn, err := tls.Dial("tcp", session, w.Reloader.ReplicaClient("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !time.Now().After(first.NotAfter.Add(time.Second)) || len(r.asked()) < 3 {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("only %d certificates asked for", len(r.asked()))
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatalf("the session was dropped: %v", err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	keys := r.asked()
	if string(keys[0]) == string(keys[1]) {
		t.Error("a renewal kept the old key")
	}
	if leaf := w.Reloader.Leaf(); certs.Expired(leaf, time.Now()) || leaf.Equal(first) {
		t.Error("not renewed")
	}
	if _, _, err := w.Home.Open(hclog.NewNullLogger()); err != nil {
		t.Errorf("the directory after renewals: %v", err)
	}
}

func TestExpiredIsRenewedFirst(t *testing.T) {
	r := newReplica(t)
	home := r.enrolled(t, "node-1")
	reissue(t, r, home, -40*24*time.Hour)
	w := renewer(t, home, r.agents)
	if !certs.Expired(w.Reloader.Leaf(), time.Now()) {
		t.Fatal("not expired")
	}
	if err := w.EnsureValid(t.Context()); err != nil {
		t.Fatal(err)
	}
	if certs.Expired(w.Reloader.Leaf(), time.Now()) {
		t.Error("still expired")
	}
	asked := len(r.asked())
	if err := w.EnsureValid(t.Context()); err != nil || len(r.asked()) != asked {
		t.Errorf("a valid certificate was renewed: %v", err)
	}
}

func TestRenewalRefusedForGood(t *testing.T) {
	r := newReplica(t)
	home := r.enrolled(t, "node-1")
	reissue(t, r, home, -40*24*time.Hour)
	r.mu.Lock()
	r.refuse = errdefs.New(errdefs.Unauthenticated, "CERTIFICATE_REVOKED", "the certificate was revoked")
	r.mu.Unlock()
	wantKind(t, renewer(t, home, "127.0.0.1:1", r.agents).EnsureValid(t.Context()), errdefs.Unauthenticated)
}

// A CA that is added during a rotation reaches the agent with a renewal.
func TestRenewalBringsNewCAs(t *testing.T) {
	r, next := newReplica(t), newReplica(t)
	home := r.enrolled(t, "node-1")
	w := renewer(t, home, r.agents)
	r.mu.Lock()
	r.bundle = append(r.ca.PEM(), next.ca.PEM()...)
	r.mu.Unlock()
	if err := w.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", next.callers, w.Reloader.ReplicaClient("127.0.0.1"))
	if err != nil {
		t.Fatalf("a server with the new CA: %v", err)
	}
	_ = conn.Close()
}

// reissue puts a certificate of another age in place.
func reissue(t *testing.T, r *replica, home enroll.Home, age time.Duration) {
	t.Helper()
	pair := certs.Pair{Cert: home.Files().Cert, Key: home.Files().Key}
	key, err := pair.NextKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := r.ca.Issue(key.Public(), certs.AgentLeaf(cluster, "node-1", 0), time.Now().Add(age))
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Install(certPEM); err != nil {
		t.Fatal(err)
	}
}

// echoServer gives back what it is sent.
func echoServer(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) {
				defer func() { _ = conn.Close() }()
				_, _ = io.Copy(conn, conn)
			}(conn)
		}
	}()
	return listener.Addr().String()
}
