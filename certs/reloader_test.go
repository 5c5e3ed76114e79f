package certs_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/debvisor/debvisor/certs"
)

// A connection made before a reload goes on; one made after it sees the new
// certificate; a CA that was added is trusted at once by configurations made
// long before.
func TestReloadKeepsConnections(t *testing.T) {
	ca := newCA(t)
	leaf := certs.ServerLeaf(cluster, "r1", nil, 0)
	files := issue(t, ca, leaf, time.Now())
	server := reloader(t, files)
	client := member(t, ca, certs.ClientLeaf("operator", 0)).ReplicaClient("127.0.0.1")

	listener, err := tls.Listen("tcp", "127.0.0.1:0", server.CallersServer())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go echo(listener)
	before := dial(t, listener, client)
	reissue(t, ca, files, leaf, time.Now())
	if err := server.Reload(); err != nil {
		t.Fatal(err)
	}
	after := dial(t, listener, client)
	if before.ConnectionState().PeerCertificates[0].Equal(after.ConnectionState().PeerCertificates[0]) {
		t.Error("the old certificate is still served")
	}
	for _, conn := range []*tls.Conn{before, after} {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	next := newCA(t)
	write(t, files.CA, append(ca.PEM(), next.PEM()...))
	if err := server.Reload(); err != nil {
		t.Fatal(err)
	}
	other := member(t, next, certs.ClientLeaf("operator", 0)).ReplicaClient("127.0.0.1")
	other.VerifyConnection = nil
	dial(t, listener, other)
}

func TestRunFollowsTheFiles(t *testing.T) {
	ca := newCA(t)
	leaf := certs.ServerLeaf(cluster, "r1", nil, 0)
	files := issue(t, ca, leaf, time.Now())
	r := reloader(t, files)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, 5*time.Millisecond) }()
	first := r.Leaf()
	write(t, files.CA, []byte("nonsense")) // refused, and the old goes on
	reissue(t, ca, files, leaf, time.Now())
	write(t, files.CA, ca.PEM())
	waitFor(t, func() bool { return !r.Leaf().Equal(first) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func dial(t *testing.T, listener net.Listener, cfg *tls.Config) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", listener.Addr().String(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func echo(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			buf := make([]byte, 1)
			for {
				if _, err := conn.Read(buf); err != nil {
					return
				}
				if _, err := conn.Write(buf); err != nil {
					return
				}
			}
		}()
	}
}

// waitFor polls until the condition holds; it fails the test after 10 s.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatal("did not come about within 10 s")
		case <-tick.C:
		}
	}
}
