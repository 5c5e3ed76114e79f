package rpc_test

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// pipes is a listener whose connections never leave the process, so that time
// can be a test's.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	dials  atomic.Int32
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.closed)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(context.Context, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	p.dials.Add(1)
	p.conns <- theirs
	return ours, nil
}

// TestConnectionAge: after half an hour a connection takes no more calls, and
// ten minutes later those that it has are ended.
func TestConnectionAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := certs.NewAuthority("test", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		own, pool := pair(t, ca, certs.ServerLeaf("test", "r1", nil, 0))
		client, _ := pair(t, ca, certs.ClientLeaf("ada", 0))
		server, err := rpc.NewServer(rpc.ServerConfig{
			TLS: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool},
			Age: true, Log: hclog.NewNullLogger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		debvisorv1.RegisterVMServiceServer(server, &vms{get: func(ctx context.Context, ref *debvisorv1.VMRef) (*debvisorv1.VM, error) {
			if ref.GetVmId() == "long" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &debvisorv1.VM{}, nil
		}})
		lis := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- server.Serve(lis) }()
		conn, err := rpc.Dial("passthrough:///127.0.0.1", &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{client}, RootCAs: pool, ServerName: "127.0.0.1",
		}, grpc.WithContextDialer(lis.dial))
		if err != nil {
			t.Fatal(err)
		}
		api := debvisorv1.NewVMServiceClient(conn)
		long := make(chan error, 1)
		begin := time.Now()
		go func() {
			_, err := api.GetVM(context.Background(), &debvisorv1.VMRef{VmId: "long"})
			long <- err
		}()
		// grpc-go spreads the age by a tenth, so that not all come back at once.
		young, old := rpc.MaxConnectionAge*9/10-time.Minute, rpc.MaxConnectionAge*11/10+time.Minute
		for _, step := range []struct {
			at    time.Duration
			dials int32
		}{{time.Second, 1}, {young, 1}, {old, 2}} {
			time.Sleep(step.at - time.Since(begin)) // the bubble's time
			if _, err := api.GetVM(context.Background(), &debvisorv1.VMRef{}); err != nil || lis.dials.Load() != step.dials {
				t.Errorf("after %s: %v on connection %d, want %d", step.at, err, lis.dials.Load(), step.dials)
			}
		}
		select {
		case err := <-long:
			t.Errorf("a call is ended with its connection's age, without a grace: %v", err)
		default:
		}
		err = <-long
		if took := time.Since(begin); took < young+rpc.MaxConnectionAgeGrace || took > old+rpc.MaxConnectionAgeGrace || !errdefs.Is(errdefs.FromStatus(err), errdefs.Unavailable) {
			t.Errorf("after %s the call ends with %v", took, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
