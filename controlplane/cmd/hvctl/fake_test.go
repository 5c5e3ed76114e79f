package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/debvisor/debvisor/certs"
	debvisorv1 "github.com/debvisor/debvisor/proto/debvisor/v1"
	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// fake stands for the replicas: a server of debvisor.v1 outside of hvctl's
// process, with the real protocol, TLS and errors, and a made-up cluster.
type fake struct {
	addr string
	// misnamed is an address that the server's certificate does not name.
	misnamed string
	// old speaks nothing above TLS 1.2.
	old    net.Listener
	server *grpc.Server
	conns  *connections
	made   *cluster

	mu       sync.Mutex
	calls    []call
	changed  chan struct{}
	troubles map[string][]string
}

// call is one that the fake got.
type call struct {
	method, requestID, wait, trace string
}

// startFake starts a replica on a port of its own.
func startFake(trust pki) (*fake, error) {
	material, err := certs.NewReloader(certs.Files{
		CA: trust.path("ca.pem"), Cert: trust.path("server.pem"), Key: trust.path("server-key.pem"),
	}, hclog.NewNullLogger())
	if err != nil {
		return nil, err
	}
	f := &fake{made: newCluster(), changed: make(chan struct{}), troubles: map[string][]string{}}
	unary, stream := rpc.Edge(hclog.NewNullLogger())
	f.server, err = rpc.NewServer(rpc.ServerConfig{
		TLS: material.CallersServer(),
		Unary: func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			return unary(ctx, req, info, func(ctx context.Context, req any) (any, error) {
				if err := f.admit(ctx, info.FullMethod); err != nil {
					return nil, err
				}
				return handler(ctx, req)
			})
		},
		Stream: func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return stream(srv, ss, info, func(srv any, ss grpc.ServerStream) error {
				if err := f.admit(ss.Context(), info.FullMethod); err != nil {
					return err
				}
				return handler(srv, ss)
			})
		},
	})
	if err != nil {
		return nil, err
	}
	debvisorv1.RegisterNodeServiceServer(f.server, &fakeNodes{made: f.made})
	debvisorv1.RegisterClusterServiceServer(f.server, &fakeControlPlane{})
	debvisorv1.RegisterAuditServiceServer(f.server, &fakeAudit{made: f.made})
	debvisorv1.RegisterVMServiceServer(f.server, &fakeVMs{made: f.made})
	debvisorv1.RegisterMigrationServiceServer(f.server, &fakeMigrations{made: f.made})
	debvisorv1.RegisterOperationServiceServer(f.server, &fakeOperations{made: f.made})
	debvisorv1.RegisterAccessServiceServer(f.server, newFakeAccess())
	debvisorv1.RegisterCertificateServiceServer(f.server, fakeCertificates{})
	debvisorv1.RegisterStorageServiceServer(f.server, &fakeStorage{made: f.made})
	debvisorv1.RegisterEventServiceServer(f.server, fakeEvents{})
	f.conns = &connections{}
	if f.addr, err = f.listen("127.0.0.1:0"); err != nil {
		return nil, err
	}
	if f.misnamed, err = f.listen("127.0.0.2:0"); err != nil {
		return nil, err
	}
	f.old, err = oldServer(trust)
	return f, err
}

// listen serves on an address too, and gives it with its port.
func (f *fake) listen(address string) (string, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	go func() { _ = f.server.Serve(f.conns.of(listener)) }()
	return listener.Addr().String(), nil
}

func (f *fake) stop() {
	f.made.stop()
	f.server.Stop()
	_ = f.old.Close()
}

// oldServer has the right certificate, and nothing to say but TLS 1.2.
func oldServer(trust pki) (net.Listener, error) {
	pair, err := tls.LoadX509KeyPair(trust.path("server.pem"), trust.path("server-key.pem"))
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MaxVersion: tls.VersionTLS12})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	return l, nil
}

// admit notes a call and lets it meet its trouble, if any.
func (f *fake) admit(ctx context.Context, fullMethod string) error {
	method := path.Base(fullMethod)
	one := func(key string) string {
		if v := metadata.ValueFromIncomingContext(ctx, key); len(v) == 1 {
			return v[0]
		}
		return ""
	}
	f.mu.Lock()
	f.calls = append(f.calls, call{method, one("debvisor-request-id"), one("debvisor-wait"), rpc.TraceID(ctx)})
	close(f.changed)
	f.changed = make(chan struct{})
	var trouble string
	if list := f.troubles[method]; len(list) > 0 {
		trouble, f.troubles[method] = list[0], list[1:]
	}
	f.mu.Unlock()
	if cert := rpc.Certificate(ctx); cert == nil {
		switch one("authorization") {
		case "":
			return errdefs.New(errdefs.Unauthenticated, "NO_IDENTITY", "this call needs an identity")
		case "Bearer strong-key":
		default:
			return errdefs.New(errdefs.PermissionDenied, "PERMISSION_DENIED", "panel lacks the permission node:list").
				With("principal", "panel").With("permission", "node:list")
		}
	}
	return f.meet(ctx, trouble)
}

// meet lets a call meet its trouble.
func (f *fake) meet(ctx context.Context, trouble string) error {
	switch trouble {
	case "", "none":
		return nil
	case "leaderless":
		return errdefs.New(errdefs.Unavailable, "NO_LEADER", "no replica leads at the moment; nothing was begun, try again").
			WithRetry(10 * time.Millisecond)
	case "leaderless-long":
		return errdefs.New(errdefs.Unavailable, "NO_LEADER", "no replica leads at the moment; nothing was begun, try again").
			WithRetry(time.Hour)
	case "cut":
		f.conns.cut()
		<-ctx.Done()
		return ctx.Err()
	case "hang":
		<-ctx.Done()
		return ctx.Err()
	case "limit":
		return errdefs.New(errdefs.ResourceExhausted, "RATE_LIMIT_EXCEEDED", "operator has made more than 100 calls a minute").
			WithRetry(3 * time.Second)
	case "behind":
		return errdefs.New(errdefs.NotFound, "OPERATION_NOT_FOUND", "no such operation")
	case "broken":
		return errors.New("the inside must not show")
	default:
		panic("no such trouble: " + trouble)
	}
}

func (f *fake) trouble(method string, kinds []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.troubles[method] = kinds
}

func (f *fake) callsOf(method string) []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []call
	for _, c := range f.calls {
		if c.method == method {
			list = append(list, c)
		}
	}
	return list
}

// await waits for a call of the method.
func (f *fake) await(ctx context.Context, method string) error {
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if len(f.callsOf(method)) > 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no call of %s: %w", method, ctx.Err())
		}
	}
}

// connections can cut all connections of its listeners.
type connections struct {
	mu   sync.Mutex
	open []net.Conn
}

func (c *connections) of(l net.Listener) net.Listener { return &listener{Listener: l, all: c} }

func (c *connections) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open {
		_ = conn.Close()
	}
	c.open = nil
}

// listener tells its connections to all.
type listener struct {
	net.Listener
	all *connections
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.all.mu.Lock()
		l.all.open = append(l.all.open, conn)
		l.all.mu.Unlock()
	}
	return conn, err
}
