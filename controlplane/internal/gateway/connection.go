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
	// until is when the peer is asked to connect anew.
	until   time.Time
	release func()

	mu     sync.Mutex
	tooOld *time.Timer
	client *grpc.ClientConn
	closed bool
}

// end closes a connection that has not ended by itself by then.
func (c *connection) end(after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tooOld = time.AfterFunc(after, func() { _ = c.Close() })
}

// Close closes both connections: calls that have not ended are cancelled.
func (c *connection) Close() error {
	c.mu.Lock()
	client, was := c.client, c.closed
	c.client, c.closed = nil, true
	c.tooOld.Stop()
	c.mu.Unlock()
	err := c.Conn.Close()
	if was {
		return err
	}
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
func (c *connection) aged(now time.Time) bool { return now.After(c.until) }

// limits bound connections. One that has made a call holds about 150 KiB.
type limits struct {
	// all and perAddress are how many there may be: one above is closed at once.
	all, perAddress int
	// age is when a peer is asked to connect anew, and grace how long calls may
	// still run after that.
	age, grace time.Duration
}

func defaultLimits() limits {
	return limits{all: 512, perAddress: 64, age: rpc.MaxConnectionAge, grace: rpc.MaxConnectionAgeGrace}
}

// door accepts connections and counts them.
type door struct {
	net.Listener
	inner *rpc.Inner
	limits

	mu   sync.Mutex
	now  int
	byIP map[string]int
}

func newDoor(lis net.Listener, inner *rpc.Inner) *door {
	return &door{Listener: lis, inner: inner, limits: defaultLimits(), byIP: map[string]int{}}
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
		c := &connection{Conn: raw, inner: d.inner, until: time.Now().Add(d.age), release: func() { d.leave(address) }}
		c.end(d.age + d.grace)
		return c, nil
	}
}

func (d *door) admit(address string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now >= d.all || d.byIP[address] >= d.perAddress {
		return false
	}
	d.now++
	d.byIP[address]++
	return true
}

func (d *door) leave(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now--
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
