package rpc

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
)

// Peer is the other end of one of a server's connections: a credentials.AuthInfo
// that also remembers what was made of its certificate.
type Peer struct {
	credentials.TLSInfo
	address string
	once    sync.Once
	made    any
	note    atomic.Value
}

// PeerOf gives the connection that a server's call came on; nil where the
// server was not made by NewServer.
func PeerOf(ctx context.Context) *Peer {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return nil
	}
	peer, _ := p.AuthInfo.(*Peer)
	return peer
}

// Once gives what the first call to make on this connection gave, and whether
// this was that call.
func (p *Peer) Once(make func(leaf *x509.Certificate) any) (made any, first bool) {
	p.once.Do(func() {
		p.made, first = make(p.leaf()), true
	})
	return p.made, first
}

// Note keeps something of a server's own with the connection, always of one
// type, in place of what was kept before.
func (p *Peer) Note(v any) { p.note.Store(v) }

// Noted gives what Note kept last; nil: nothing.
func (p *Peer) Noted() any { return p.note.Load() }

// leaf is the client's certificate, verified by the handshake; nil where it
// gave none.
func (p *Peer) leaf() *x509.Certificate {
	if len(p.State.PeerCertificates) == 0 {
		return nil
	}
	return p.State.PeerCertificates[0]
}

// Certificate gives the verified certificate of the client whose call has this
// context; nil where it gave none.
func Certificate(ctx context.Context) *x509.Certificate {
	if peer := PeerOf(ctx); peer != nil {
		return peer.leaf()
	}
	return nil
}

// Address gives the IP address that a call came from, without its port.
func Address(ctx context.Context) string {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	if peer, ok := p.AuthInfo.(*Peer); ok {
		return peer.address
	}
	return host(p.Addr)
}

func host(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		return tcp.IP.String()
	}
	return addr.String()
}

// peerCredentials gives each accepted connection its Peer. Only an Inner makes
// connections that need no handshake any more.
type peerCredentials struct {
	credentials.TransportCredentials
}

func (c peerCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if inner, ok := raw.(*innerConn); ok {
		return inner, inner.peer(), nil
	}
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		return conn, info, nil
	}
	return conn, &Peer{TLSInfo: tlsInfo, address: host(raw.RemoteAddr())}, nil
}

func (c peerCredentials) Clone() credentials.TransportCredentials {
	return peerCredentials{c.TransportCredentials.Clone()}
}
