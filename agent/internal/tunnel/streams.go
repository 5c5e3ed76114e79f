package tunnel

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
)

const (
	// readAhead is how much is taken from the socket at once, where TLS itself
	// would take a record of 16 KiB: each costs a system call.
	readAhead = 512 << 10
	// knocksAtOnce is how many connections may be open that have not shown the
	// right yet.
	knocksAtOnce = 16
)

// StreamRight is what a stream needs on either side: the two ends show each other
// the certificates of their nodes, and the source shows the right's id first.
type StreamRight struct {
	// ID is the right's: 128 random bits.
	ID string
	// Cluster and Peer say whose certificate the other end must have.
	Cluster, Peer string
	Certificates  *certs.Reloader
}

// StreamsConfig is where streams are listened for.
type StreamsConfig struct {
	StreamRight
	// Host is where to listen, and what to tell the source; the port is a free one
	// from FirstPort to LastPort.
	Host                string
	FirstPort, LastPort int
	// Port is that of a former process, where the source looks: no other will do.
	// 0: there was none.
	Port int
	Log  hclog.Logger
}

// Streams is the target's end of one stream at a time, in the agent itself: where
// both sides can go on after a cut, none has to outlive its agent. It listens with
// TLS 1.3 and lets in whoever shows the right and has the source's certificate; a
// new connection of the source's takes the place of the old one. It is safe for
// concurrent use.
type Streams struct {
	cfg      StreamsConfig
	listener net.Listener
	ready    chan net.Conn
	stop     context.CancelFunc
	group    sync.WaitGroup
	conns    *connSet

	mu      sync.Mutex
	current *handed // the source's last
	refused uint32
	last    string
}

// ListenStreams listens until ctx ends or Close.
func ListenStreams(ctx context.Context, cfg StreamsConfig) (*Streams, error) {
	l, err := listenStreams(ctx, cfg)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	s := &Streams{cfg: cfg, listener: l, ready: make(chan net.Conn), stop: stop, conns: newConnSet()}
	context.AfterFunc(ctx, func() {
		_ = l.Close()
		s.conns.closeAll()
	})
	s.group.Go(func() { s.accept(ctx) })
	return s, nil
}

// listenStreams begins its search at a port that goes by the right, so that two
// ends seldom want the same one after a restart.
func listenStreams(ctx context.Context, cfg StreamsConfig) (net.Listener, error) {
	if cfg.Port != 0 {
		return listenWithin(ctx, cfg.Host, cfg.Port, cfg.Port)
	}
	sum := sha256.Sum256([]byte(cfg.ID))
	begin := cfg.FirstPort + int(binary.BigEndian.Uint32(sum[:])%uint32(cfg.LastPort-cfg.FirstPort+1))
	l, err := listenWithin(ctx, cfg.Host, begin, cfg.LastPort)
	if err != nil && begin > cfg.FirstPort {
		return listenWithin(ctx, cfg.Host, cfg.FirstPort, begin-1)
	}
	return l, err
}

// Address is where it listens, host:port.
func (s *Streams) Address() string { return s.listener.Addr().String() }

// Port is the address's.
func (s *Streams) Port() int {
	_, port, _ := net.SplitHostPort(s.Address())
	n, _ := strconv.Atoi(port)
	return n
}

// Accept waits for a connection of the source's.
func (s *Streams) Accept(ctx context.Context) (net.Conn, error) {
	select {
	case c := <-s.ready:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Refused is how many connections were refused that had a certificate of the
// cluster's, and why the last was.
func (s *Streams) Refused() (n uint32, last string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused, s.last
}

// Close ends it and every connection. It returns when nothing of it is left.
func (s *Streams) Close() {
	s.stop()
	_ = s.listener.Close()
	s.conns.closeAll()
	s.group.Wait()
}

func (s *Streams) accept(ctx context.Context) {
	slots := make(chan struct{}, knocksAtOnce)
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = raw.Close()
			continue
		}
		if !s.conns.add(raw) {
			_ = raw.Close()
			return
		}
		s.group.Go(func() {
			c, err := s.admit(ctx, raw)
			<-slots
			if err != nil {
				_ = raw.Close()
				s.conns.remove(raw)
				s.cfg.Log.Warn("a stream's connection was refused", "remote", raw.RemoteAddr().String(), "error", err)
				return
			}
			s.hand(ctx, c)
		})
	}
}

// admit makes sure that the caller is the right's source. What a certificate of
// the cluster's was refused for is counted; strangers are in the log only.
func (s *Streams) admit(ctx context.Context, raw net.Conn) (net.Conn, error) {
	if err := impatient(ctx, raw); err != nil {
		return nil, err
	}
	below := &gather{Conn: ahead(raw)}
	far := tls.Server(below, s.cfg.Certificates.PeersServer(s.cfg.Cluster))
	err := shakeHands(ctx, far, s.cfg.Cluster, s.cfg.Peer)
	if err == nil {
		err = s.open(far)
	}
	if err == nil {
		return &streamConn{newSecured(far, below), func() { s.conns.remove(raw) }}, nil
	}
	if far.ConnectionState().HandshakeComplete {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused++
		s.last = err.Error()
	}
	return nil, err
}

func (s *Streams) open(far *tls.Conn) error {
	c, err := readKnock(far, s.cfg.ID)
	if err != nil {
		return err
	}
	if c != streamChannel {
		return fmt.Errorf("channel %q: only a stream is to come", byte(c))
	}
	return far.SetDeadline(time.Time{})
}

// handed is a connection of the source's; replaced is closed once there is another.
type handed struct {
	net.Conn
	replaced chan struct{}
}

// hand gives the connection to Accept's caller, in the place of the former one. One
// that was replaced before it was accepted waits no longer: a source may dial as often
// as it likes while the caller is busy, and each has a buffer of its own.
func (s *Streams) hand(ctx context.Context, c net.Conn) {
	mine := &handed{c, make(chan struct{})}
	s.mu.Lock()
	former := s.current
	s.current = mine
	s.mu.Unlock()
	if former != nil {
		close(former.replaced)
		_ = former.Close()
	}
	select {
	case s.ready <- c:
	case <-mine.replaced:
	case <-ctx.Done():
		_ = c.Close()
	}
}

// DialStream opens a stream to the target's end at address. The connection is
// broken off when the target's host is gone, and is not to be used once ctx ends.
func DialStream(ctx context.Context, address string, right StreamRight) (net.Conn, error) {
	c, err := dialTarget(ctx, address, right.Certificates.PeerClient(right.Cluster, right.Peer), streamChannel, right.ID)
	if err != nil {
		return nil, err // no typed nil
	}
	return c, nil
}

// streamConn is a connection that is forgotten once it is closed.
type streamConn struct {
	*secured
	forget func()
}

// Close closes the connection.
func (c *streamConn) Close() error {
	c.forget()
	return c.secured.Close()
}

// aheadConn reads in large pieces.
type aheadConn struct {
	net.Conn
	in *bufio.Reader
}

func ahead(c net.Conn) net.Conn { return aheadConn{c, bufio.NewReaderSize(c, readAhead)} }

// Read reads what has come already, or waits for more.
func (c aheadConn) Read(p []byte) (int, error) { return c.in.Read(p) }
