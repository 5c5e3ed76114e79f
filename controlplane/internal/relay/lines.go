package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/shared/errdefs"
	"github.com/debvisor/debvisor/shared/rpc"
)

// Lines keeps a connection to the leader. It is safe for concurrent use.
type Lines struct {
	tls  func(host string) *tls.Config
	more []grpc.DialOption

	mu      sync.Mutex
	closed  bool
	address string
	conn    *grpc.ClientConn
}

// NewLines makes one that dials with those configurations, which must show this
// replica's certificate. Nothing is dialled before it is needed.
// More is for each connection.
func NewLines(tls func(host string) *tls.Config, more ...grpc.DialOption) *Lines {
	return &Lines{tls: tls, more: more}
}

// Run closes the connection when ctx ends; it then returns nil. It is to be
// stopped after all who ask.
func (l *Lines) Run(ctx context.Context) error {
	<-ctx.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.close()
	return nil
}

// to gives the connection to an address. One to another address is closed: who
// led there does no more, and what is asked there comes to nothing.
func (l *Lines) to(address string) (*grpc.ClientConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errdefs.New(errdefs.Unavailable, "STOPPING", "this replica stops")
	}
	if l.address == address && l.conn != nil {
		l.conn.ResetConnectBackoff() // who asks waits between attempts itself
		return l.conn, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address of the leader: %w", err)
	}
	conn, err := rpc.Dial("passthrough:///"+address, l.tls(host), l.more...)
	if err != nil {
		return nil, err
	}
	l.close()
	l.address, l.conn = address, conn
	return conn, nil
}

func (l *Lines) close() {
	if l.conn != nil {
		_ = l.conn.Close() // what went over it has an error of its own
	}
	l.conn = nil
}
