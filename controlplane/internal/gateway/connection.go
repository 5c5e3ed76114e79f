package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/debvisor/debvisor/shared/rpc"
)

// connection is one HTTPS connection, and the inner connection that speaks for
// its peer. The two live and die together, so that nothing of one caller is ever
// on another's connection.
type connection struct {
	net.Conn
	inner *rpc.Inner
	born  time.Time
	// tooOld closes a connection that has not ended by itself long after it
	// was asked to.
	tooOld  *time.Timer
	release func()

	mu     sync.Mutex
	client *grpc.ClientConn
	closed bool
}

// Close closes both connections: calls that have not ended are cancelled.
func (c *connection) Close() error {
	c.mu.Lock()
	client, was := c.client, c.closed
	c.client, c.closed = nil, true
	c.mu.Unlock()
	err := c.Conn.Close()
	if was {
		return err
	}
	c.tooOld.Stop()
	c.release()
	if client != nil {
		return errors.Join(err, client.Close())
	}
	return err
}

// open gives the inner connection, made with the first call: a peer that asks
// nothing costs nothing.
func (c *connection) open(state *tls.ConnectionState) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	if c.client == nil {
		client, err := c.inner.Client(*state, c.RemoteAddr())
		if err != nil {
			return nil, err
		}
		c.client = client
	}
	return c.client, nil
}

// aged tells whether the peer is to be asked to connect anew.
func (c *connection) aged(now time.Time) bool { return now.Sub(c.born) >= rpc.MaxConnectionAge }

// maxConnections is how many connections there may be, of all and of one
// address: what is above is closed at once.
const (
	maxConnections           = 1024
	maxConnectionsPerAddress = 128
)

// door accepts connections and counts them.
type door struct {
	net.Listener
	inner *rpc.Inner

	mu    sync.Mutex
	all   int
	byIP  map[string]int
	limit struct{ all, perAddress int }
}

func newDoor(lis net.Listener, inner *rpc.Inner) *door {
	d := &door{Listener: lis, inner: inner, byIP: map[string]int{}}
	d.limit.all, d.limit.perAddress = maxConnections, maxConnectionsPerAddress
	return d
}

// Accept waits for a connection that is not one too many.
func (d *door) Accept() (net.Conn, error) {
	for {
		raw, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := ip(raw.RemoteAddr())
		if !d.admit(address) {
			_ = raw.Close() // it was told nothing and said nothing
			continue
		}
		c := &connection{Conn: raw, inner: d.inner, born: time.Now(), release: func() { d.leave(address) }}
		c.tooOld = time.AfterFunc(rpc.MaxConnectionAge+rpc.MaxConnectionAgeGrace, func() { _ = c.Close() })
		return c, nil
	}
}

func (d *door) admit(address string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all >= d.limit.all || d.byIP[address] >= d.limit.perAddress {
		return false
	}
	d.all++
	d.byIP[address]++
	return true
}

func (d *door) leave(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.byIP[address]--; d.byIP[address] == 0 {
		delete(d.byIP, address)
	}
}

func ip(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		return tcp.IP.String()
	}
	return addr.String()
}

type connectionKey struct{}

// connContext puts the connection into the context of its requests.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	if secured, ok := conn.(*tls.Conn); ok {
		if c, ok := secured.NetConn().(*connection); ok {
			return context.WithValue(ctx, connectionKey{}, c)
		}
	}
	return ctx
}

// connectionOf gives the connection of a request; nil where it did not come
// through a door.
func connectionOf(r *http.Request) *connection {
	c, _ := r.Context().Value(connectionKey{}).(*connection)
	return c
}
