package session

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/shared/rpc"
)

// conns keeps a connection to each replica while the leader is looked for, so
// that asking again costs no handshake. One goroutine uses it.
type conns struct {
	tls  func(host string) *tls.Config
	leaf func() *x509.Certificate
	open map[string]*grpc.ClientConn
	// shown is the certificate that the open ones were dialled with, or an
	// older one.
	shown *x509.Certificate
}

func newConns(tls func(host string) *tls.Config, leaf func() *x509.Certificate) *conns {
	return &conns{tls: tls, leaf: leaf, open: map[string]*grpc.ClientConn{}, shown: leaf()}
}

// to gives the connection to an address; it dials with its first call.
func (c *conns) to(address string) (*grpc.ClientConn, error) {
	if leaf := c.leaf(); !leaf.Equal(c.shown) {
		c.closeExcept("")
		c.shown = leaf
	}
	if conn, ok := c.open[address]; ok {
		conn.ResetConnectBackoff() // the session waits between attempts itself
		return conn, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address of a replica: %w", err)
	}
	conn, err := rpc.Dial("passthrough:///"+address, c.tls(host))
	if err != nil {
		return nil, err
	}
	c.open[address] = conn
	return conn, nil
}

// closeExcept closes all but one; "": all.
func (c *conns) closeExcept(address string) {
	for a, conn := range c.open {
		if a != address {
			_ = conn.Close()
			delete(c.open, a)
		}
	}
}
