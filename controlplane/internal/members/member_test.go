package members_test

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/controlplane/internal/members"
	agentv1 "github.com/debvisor/debvisor/proto/debvisor/agent/v1"
)

// A replica whose leaves live three seconds serves on with fresh ones, through
// the configuration that its listener was given at the start.
func TestMemberRenewsItsLeaves(t *testing.T) {
	home := newHome(t)
	if _, err := members.Init(home, options(t, "r1")); err != nil {
		t.Fatal(err)
	}
	m, err := members.Open(home, 3*time.Second, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	first := m.Server().Leaf()
	address := serve(t, m.Server().CallersServer(), agentv1.UnimplementedEnrollServiceServer{})
	background(t, m.Run)
	fingerprint := certs.Fingerprint(m.Ring().Signing().Certificate())
	poll(t, "a handshake after the first certificate's end", func() (bool, error) {
		conn, err := tls.Dial("tcp", address, certs.BootstrapClient("127.0.0.1", fingerprint))
		if err != nil {
			return false, err
		}
		_ = conn.Close()
		return time.Now().After(first.NotAfter.Add(time.Second)), nil
	})
	peer, err := certs.NewReloader(home.EtcdPeer(), hclog.NewNullLogger())
	if err != nil {
		t.Fatalf("etcd's certificate: %v", err)
	}
	if err := peer.Leaf().VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
}
