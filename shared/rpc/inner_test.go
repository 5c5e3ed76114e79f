package rpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// innerRig serves an inner listener; it gives the state of a TLS connection on
// which a client has presented a certificate with that name.
func innerRig(t *testing.T, get func(context.Context, *debvisorv1.VMRef) (*debvisorv1.VM, error)) (inner *rpc.Inner, peer func(name string) tls.ConnectionState) {
	t.Helper()
	ca, err := certs.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, pool := pair(t, ca, certs.ServerLeaf("test", "r1", nil, 0))
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	server, err := rpc.NewServer(rpc.ServerConfig{TLS: cfg, Log: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	debvisorv1.RegisterVMServiceServer(server, &vms{get: get})
	inner = rpc.NewInner()
	done := make(chan error, 1)
	go func() { done <- server.Serve(inner) }()
	t.Cleanup(func() {
		if err := inner.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("serving ended with %v", err)
		}
		server.Stop()
	})
	return inner, func(name string) tls.ConnectionState {
		t.Helper()
		client := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "localhost"}
		if name != "" {
			mine, _ := pair(t, ca, certs.ClientLeaf(name, 0))
			client.Certificates = []tls.Certificate{mine}
		}
		near, far := net.Pipe()
		secured := tls.Server(far, cfg)
		var both sync.WaitGroup
		both.Go(func() {
			if err := tls.Client(near, client).HandshakeContext(t.Context()); err != nil {
				t.Error(err)
			}
		})
		if err := secured.HandshakeContext(t.Context()); err != nil {
			t.Error(err)
		}
		both.Wait()
		return secured.ConnectionState()
	}
}

func TestInnerSpeaksForItsPeer(t *testing.T) {
	var made []string
	inner, peer := innerRig(t, func(ctx context.Context, _ *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		name := "nobody"
		if leaf := rpc.Certificate(ctx); leaf != nil {
			name = leaf.Subject.CommonName
		}
		value, first := rpc.PeerOf(ctx).Once(func(*x509.Certificate) any { return name })
		if first {
			made = append(made, name)
		}
		p, _ := grpcpeer.FromContext(ctx)
		return &debvisorv1.VM{Id: value.(string), Name: rpc.Address(ctx) + " " + p.Addr.String()}, nil
	})
	for i, name := range []string{"ada", "bob", "", "ada"} {
		want := name
		if name == "" {
			want = "nobody"
		}
		from := &net.TCPAddr{IP: net.IPv4(192, 0, 2, byte(i)), Port: 1000 + i}
		conn, err := inner.Client(peer(name), from)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			vm, err := debvisorv1.NewVMServiceClient(conn).GetVM(t.Context(), &debvisorv1.VMRef{})
			if err != nil || vm.GetId() != want || vm.GetName() != from.IP.String()+" "+from.String() {
				t.Errorf("%q from %s: %v, %v", name, from, vm, err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(made, ","); got != "ada,bob,nobody,ada" {
		t.Errorf("peers made: %s", got)
	}
}

// TestInnerLargeMessages shows that both ends can send at once more than the
// pipe and the buffers hold.
func TestInnerLargeMessages(t *testing.T) {
	inner, peer := innerRig(t, func(_ context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
		return &debvisorv1.VM{Name: strings.Repeat(ref.GetVmId()[:1], rpc.MaxResponseBytes-100)}, nil
	})
	conn, err := inner.Client(peer("ada"), &net.TCPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			vm, err := debvisorv1.NewVMServiceClient(conn).GetVM(ctx, &debvisorv1.VMRef{VmId: strings.Repeat("x", rpc.MaxRequestBytes-100)})
			if err != nil || len(vm.GetName()) != rpc.MaxResponseBytes-100 {
				t.Errorf("%d bytes, %v", len(vm.GetName()), err)
			}
		})
	}
	all.Wait()
}

func TestInnerRefusesWhoHasNoHandshake(t *testing.T) {
	inner, peer := innerRig(t, nil)
	half, old := peer("ada"), peer("ada")
	half.HandshakeComplete, old.Version = false, tls.VersionTLS12
	for name, state := range map[string]tls.ConnectionState{"none": {}, "half": half, "TLS 1.2": old} {
		if _, err := inner.Client(state, &net.TCPAddr{}); err == nil {
			t.Errorf("%s: a client was made", name)
		}
	}
}

func TestInnerClosed(t *testing.T) {
	inner, peer := innerRig(t, nil)
	conn, err := inner.Client(peer("ada"), &net.TCPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := inner.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = debvisorv1.NewVMServiceClient(conn).GetVM(t.Context(), &debvisorv1.VMRef{}, grpc.WaitForReady(false))
	if !errdefs.Is(errdefs.FromStatus(err), errdefs.Unavailable) {
		t.Errorf("a call after the end: %v", err)
	}
}
