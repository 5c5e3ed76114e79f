package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	"github.com/debvisor/debvisor/shared/errdefs"
)

// reach notes what came of connecting to each replica, so that an error can
// tell why none was reached, and whether a request ever left for one.
type reach struct {
	servers []string
	left    atomic.Bool
	mu      sync.Mutex
	errs    map[string]error
}

func newReach(servers []string) *reach {
	return &reach{servers: servers, errs: map[string]error{}}
}

// sent tells whether a request may have reached a replica.
func (r *reach) sent() bool { return r.left.Load() }

// note keeps the last error of a server; nil forgets it.
func (r *reach) note(server string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs[server] = err
}

// dial connects to a server.
func (r *reach) dial(ctx context.Context, server string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", server)
	r.note(server, err)
	if err != nil {
		return nil, err
	}
	return &reached{Conn: conn, server: server, reach: r}, nil
}

// reached is a connection that knows to which server it goes.
type reached struct {
	net.Conn
	server string
	reach  *reach
}

// credentials does the TLS handshake and notes what fails of it.
func (r *reach) credentials(cfg *tls.Config) credentials.TransportCredentials {
	return &handshake{TransportCredentials: credentials.NewTLS(cfg), reach: r}
}

// handshake is the TLS handshake that tells a reach about its errors.
type handshake struct {
	credentials.TransportCredentials
	reach *reach
}

// ClientHandshake does the handshake.
func (h *handshake) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := h.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if to, ok := raw.(*reached); ok {
		h.reach.note(to.server, err)
		if err == nil {
			conn = &secured{Conn: conn, to: to}
		}
	}
	return conn, info, err
}

// Clone gives a copy that notes in the same place.
func (h *handshake) Clone() credentials.TransportCredentials {
	return &handshake{TransportCredentials: h.TransportCredentials.Clone(), reach: h.reach}
}

// secured is a connection after the handshake. With TLS 1.3 a server's refusal
// of the client's certificate comes only now: as the first that can be read,
// perhaps after a write has failed because the server has hung up.
type secured struct {
	net.Conn
	to   *reached
	once sync.Once
}

// alertPatience is how long a refusal, which is there already, may take to be read.
const alertPatience = time.Second

// Read reads, and notes the first error: later ones say less.
func (s *secured) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if err != nil {
		s.once.Do(func() { s.to.reach.note(s.to.server, err) })
	}
	return n, err
}

// Write writes, and when that fails looks for what the server said.
func (s *secured) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	if err != nil {
		s.once.Do(func() { s.to.reach.note(s.to.server, s.said(err)) })
	}
	return n, err
}

// said gives the server's last word on a connection that cannot be written to,
// or the error of writing where it said nothing.
func (s *secured) said(writing error) error {
	if err := s.SetReadDeadline(time.Now().Add(alertPatience)); err != nil {
		return writing
	}
	if _, err := s.Conn.Read(make([]byte, 1)); err != nil {
		return err
	}
	return writing
}

// TagRPC is part of stats.Handler.
func (r *reach) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC notes that a request's header has left on a working connection.
func (r *reach) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutHeader); ok {
		r.left.Store(true)
	}
}

// TagConn is part of stats.Handler.
func (r *reach) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn is part of stats.Handler.
func (r *reach) HandleConn(context.Context, stats.ConnStats) {}

// failure tells why no replica was reached, each with its reason.
func (r *reach) failure(cause *errdefs.Error) *errdefs.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	kind, code := errdefs.Unavailable, codeUnreachable
	var reasons []string
	for _, server := range r.servers {
		why, its := describeReach(r.errs[server])
		reasons = append(reasons, fmt.Sprintf("%s: %s", server, why))
		if its != "" {
			code = its
		}
	}
	if code == codeClientCert {
		kind = errdefs.Unauthenticated
	}
	return errdefs.New(kind, code, "no replica could be reached\n%s", strings.Join(reasons, "\n")).WithCause(cause)
}

// describeReach says in words why a server was not reached, and gives the code
// of a reason that something can be done about.
func describeReach(err error) (why, code string) {
	switch {
	case err == nil:
		return "no answer", ""
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no answer in time", ""
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is not signed by the CA given", codeServerCA
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("its certificate does not name %q", e.Host), codeServerName
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return "its certificate is not valid: " + e.Error(), codeServerCA
	}
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case !ok:
		return err.Error(), ""
	case op.Op != "remote error": // a TLS alert, whose type crypto/tls keeps to itself
		return op.Err.Error(), ""
	case strings.Contains(op.Err.Error(), "certificate"):
		return "it refused the connection: " + op.Err.Error(), codeClientCert
	default:
		return "it refused the connection: " + op.Err.Error(), ""
	}
}
