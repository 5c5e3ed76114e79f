package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Inner is a listener inside of the process, for a server of NewServer besides
// its socket. What connects to it, with Client and in no other way, has
// finished the TLS handshake with somebody outside and speaks for that peer:
// handlers see the peer's certificate and address as if it had connected
// itself. No bytes leave the process.
type Inner struct {
	conns  chan net.Conn
	closed chan struct{}
	close  sync.Once
}

// NewInner makes a listener that a server can serve.
func NewInner() *Inner {
	return &Inner{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept waits for a connection; net.ErrClosed once closed.
func (l *Inner) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; connections stay.
func (l *Inner) Close() error {
	l.close.Do(func() { close(l.closed) })
	return nil
}

// Addr is no address that anybody could dial.
func (*Inner) Addr() net.Addr { return innerAddr{} }

type innerAddr struct{}

func (innerAddr) Network() string { return "inner" }
func (innerAddr) String() string  { return "inner" }

// Client makes a client that speaks for the peer of a TLS connection: state is
// that connection's, whose handshake has verified the certificate if there is
// one, and from is its remote address. It connects with the first call. It must
// be closed when that connection ends.
func (l *Inner) Client(state tls.ConnectionState, from net.Addr) (*grpc.ClientConn, error) {
	if !state.HandshakeComplete || state.Version < tls.VersionTLS13 {
		return nil, errors.New("speaking for a peer: it has not finished a handshake of TLS 1.3")
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		near, far := net.Pipe()
		select {
		case l.conns <- &innerConn{Conn: far, state: state, from: from}:
			return near, nil
		case <-l.closed:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	conn, err := grpc.NewClient("passthrough:///inner",
		grpc.WithContextDialer(dial),
		// The pipe is memory of this process; who speaks is told by innerConn.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(MaxResponseBytes),
			grpc.MaxCallSendMsgSize(MaxRequestBytes),
		),
		grpc.WithMaxHeaderListSize(MaxHeaderBytes),
		grpc.WithReadBufferSize(innerBuffer),
		grpc.WithWriteBufferSize(innerBuffer),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("speaking for a peer: %w", err)
	}
	return conn, nil
}

// innerBuffer is what one connection holds each way, bytes: there may be many.
const innerBuffer = 8 << 10

// innerConn is a server's end of a connection that speaks for a peer.
type innerConn struct {
	net.Conn
	state tls.ConnectionState
	from  net.Addr
}

// RemoteAddr is the peer's.
func (c *innerConn) RemoteAddr() net.Addr { return c.from }

// peer is what a handshake with the peer itself would have given.
func (c *innerConn) peer() *Peer {
	return &Peer{
		TLSInfo: credentials.TLSInfo{
			State: c.state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		},
		address: host(c.from),
	}
}
