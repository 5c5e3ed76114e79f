package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/debvisor/debvisor/certs"
	"github.com/debvisor/debvisor/shared/identity"
)

const (
	// openTimeout bounds dialling, handshake and opening of a connection.
	openTimeout = 10 * time.Second
	// maxConnections is how many a tunnel carries at once: libvirt's, memory's (16
	// and the first), one a disk, our copy's, and what a retry of any of them
	// leaves for a moment.
	maxConnections = 48
	// maxLibvirts is how many of them may be libvirt's, of which each may have the
	// end hold a packet of 32 MiB: one, and what retries leave for a moment.
	maxLibvirts = 4
	// maxKnocking is how many more may be open that have not shown the right
	// yet, so that strangers who only connect keep the source out no sooner.
	maxKnocking = 56
)

// end is one end of a tunnel, in its child process.
type end struct {
	cfg    Config
	layout layout
	certs  *certs.Reloader
	log    hclog.Logger
	// carried has a place for each connection that is carried at once.
	carried chan struct{}
	// libvirts is how many of them are libvirt's.
	libvirts atomic.Int32
	// memories is how many of them carry memory.
	memories atomic.Int32
	order    order
}

// run serves until ctx ends; ready is called once all listens.
func (e *end) run(ctx context.Context, ready func()) error {
	listeners, err := e.listen(ctx)
	if err != nil {
		return err
	}
	conns := newConnSet()
	var group sync.WaitGroup
	for _, l := range listeners {
		group.Go(func() { e.accept(ctx, l, conns, &group) })
	}
	ready()
	<-ctx.Done()
	for _, l := range listeners {
		_ = l.Close()
	}
	conns.closeAll()
	group.Wait()
	return nil
}

// listener is a listener and what its connections carry.
type listener struct {
	net.Listener
	handle func(ctx context.Context, c net.Conn) error
}

func (e *end) listen(ctx context.Context) ([]listener, error) {
	if e.cfg.Role == Target {
		l, err := e.listenTarget(ctx)
		return []listener{{l, e.incoming}}, err
	}
	var out []listener
	for c := range channelNames {
		l, err := listenUnix(ctx, e.layout.socket(c))
		if err != nil {
			return nil, err
		}
		out = append(out, listener{l, func(ctx context.Context, conn net.Conn) error { return e.outgoing(ctx, conn, c) }})
		if c != memoryChannel && c != diskChannel {
			continue
		}
		// libvirtd hands QEMU its one connection for memory; for more of them, and
		// for disks, QEMU connects by itself.
		if err := os.Chown(e.layout.socket(c), e.cfg.QEMUUser, e.cfg.QEMUGroup); err != nil {
			return nil, fmt.Errorf("giving QEMU its socket: %w", err)
		}
	}
	return out, writeFile(e.layout.address(), e.cfg.Address)
}

// listenUnix listens for root's own processes only.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	_ = os.Remove(path)
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}

func (e *end) listenTarget(ctx context.Context) (net.Listener, error) {
	l, err := listenWithin(ctx, e.cfg.Host, e.cfg.FirstPort, e.cfg.LastPort)
	if err != nil {
		return nil, err
	}
	return l, writeFile(e.layout.address(), l.Addr().String())
}

// listenWithin listens on the first free port of a range.
func listenWithin(ctx context.Context, host string, first, last int) (net.Listener, error) {
	var busy error
	for port := first; port <= last; port++ {
		address := net.JoinHostPort(host, strconv.Itoa(port))
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			busy = err
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listening on %s: %w", address, err)
		}
		return l, nil
	}
	return nil, fmt.Errorf("no free port for a tunnel in %d-%d: %w", first, last, busy)
}

func (e *end) accept(ctx context.Context, l listener, conns *connSet, group *sync.WaitGroup) {
	slots := make(chan struct{}, maxConnections+maxKnocking)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			e.log.Warn("connection refused: too many", "remote", c.RemoteAddr().String())
			_ = c.Close()
			continue
		}
		if !conns.add(c) {
			_ = c.Close()
			return
		}
		group.Go(func() {
			defer func() { <-slots }()
			defer conns.remove(c)
			if err := l.handle(ctx, c); err != nil {
				e.log.Warn("connection ended with an error", "remote", c.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// outgoing carries a local connection to the target.
func (e *end) outgoing(ctx context.Context, local net.Conn, c channel) error {
	defer func() { _ = local.Close() }()
	far, err := e.dial(ctx, c)
	if err != nil {
		return e.noteBroken(ctx, c, fmt.Errorf("%s: %w", c, err))
	}
	defer func() { _ = far.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = far.Close() })
	defer stop()
	out, in := join(local.(*net.UnixConn), far, transfer, transfer)
	// An end that the target did not announce broke the tunnel; all else is
	// libvirt's or QEMU's own doing, here or there.
	if err := networkFailure(in); err != nil {
		return e.noteBroken(ctx, c, fmt.Errorf("%s: %w", c, err))
	}
	return errors.Join(out, in)
}

func (e *end) dial(ctx context.Context, c channel) (*secured, error) {
	return dialTarget(ctx, e.cfg.Address, e.certs.PeerClient(e.cfg.Cluster, e.cfg.Peer), c, e.cfg.RightID)
}

// dialTarget opens a connection to a target's end, which is broken off when the
// target's host is gone. It outlives neither carried nor its caller.
func dialTarget(carried context.Context, address string, config *tls.Config, c channel, rightID string) (*secured, error) {
	ctx, cancel := context.WithTimeout(carried, openTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dialling the target: %w", err)
	}
	if err := impatient(carried, raw); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	below := &gather{Conn: raw}
	conn := tls.Client(below, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("handshake with the target: %w", err), raw.Close())
	}
	if err := writeOpening(conn, c, rightID); err != nil {
		return nil, errors.Join(fmt.Errorf("opening: %w", err), raw.Close())
	}
	return newSecured(conn, below), nil
}

// networkFailure picks out errors of the connection to the other host.
func networkFailure(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, net.ErrClosed):
		return nil // this side closed it, for another reason
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &op) && op.Net == "tcp":
		return err
	default:
		return nil
	}
}

// noteBroken leaves word for the agent that the way to the target failed. A copy
// of ours connects anew by itself, and is cut off whenever the target's agent
// ends.
func (e *end) noteBroken(ctx context.Context, c channel, err error) error {
	if ctx.Err() != nil || c == copyChannel {
		return err
	}
	return errors.Join(err, writeFile(e.layout.broken(), err.Error()))
}

// incoming takes a connection of the source.
func (e *end) incoming(ctx context.Context, raw net.Conn) error {
	defer func() { _ = raw.Close() }()
	if err := impatient(ctx, raw); err != nil {
		return err
	}
	below := &gather{Conn: raw}
	far := tls.Server(below, e.certs.PeersServer(e.cfg.Cluster))
	remote := raw.RemoteAddr().String()
	c, err := e.admit(ctx, far)
	if err != nil {
		if far.ConnectionState().HandshakeComplete { // who is nobody is in the log only, as often as they like
			e.refuse(remote, err)
		}
		return fmt.Errorf("connection refused: %w", err)
	}
	select {
	case e.carried <- struct{}{}:
		defer func() { <-e.carried }()
	default:
		return errors.New("connection refused: the source has too many")
	}
	path := e.layout.socket(c)
	if c == libvirtChannel {
		path = e.cfg.LibvirtSocket
		defer e.libvirts.Add(-1)
		if e.libvirts.Add(1) > maxLibvirts {
			return errors.New("connection refused: the source has too many to libvirt")
		}
	}
	first, err := e.inOrder(ctx, c, far)
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	local, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	defer func() { _ = local.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = local.Close() })
	defer stop()
	if err := e.ordered(local, first); err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	there, back := transfer, transfer
	switch c {
	case libvirtChannel:
		g := e.guard()
		there, back = g.calls, g.answers
	case memoryChannel:
		there, back = e.hearing(c, e.memory)
	case diskChannel:
		there, back = e.hearing(c, transfer)
	}
	in, out := join(newSecured(far, below), local.(*net.UnixConn), there, back)
	err = errors.Join(in, out)
	var call *refusal
	if errors.As(in, &call) {
		e.refuse(remote, in)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// guard is what the target's libvirtd is guarded by.
func (e *end) guard() guard {
	return guard{
		cfg: e.cfg, dataURI: "unix://" + e.layout.memory(), disksURI: "unix://" + e.layout.disks(),
		prepare: e.notePending,
	}
}

// notePending leaves word that libvirtd has been asked to prepare for the VM and
// has not answered: it may still do so when the tunnel has gone.
func (e *end) notePending(pending bool) error {
	if pending {
		return writeFile(e.layout.pending(), "prepare")
	}
	return os.Remove(e.layout.pending())
}

// hearing notes when the target's QEMU hangs up: to the source it looks like one
// of many ways in which a connection breaks, so that it is told of an ordinary
// end. A stream of memory is QEMU's to end when it is whole; one for disks may
// end on either side.
func (e *end) hearing(c channel, there copying) (copying, copying) {
	var ended atomic.Bool // by the source
	note := func() error { return writeFile(e.layout.hungUp(), c.String()) }
	return func(dst io.Writer, src io.Reader) error {
			err := there(dst, src)
			if hungUp(err) {
				err = errors.Join(err, note())
				drain(src)
				return err
			}
			ended.Store(true)
			return err
		}, func(dst io.Writer, src io.Reader) error {
			err := transfer(dst, src)
			if hungUp(err) || err == nil && c == memoryChannel && !ended.Load() {
				return note() // and the source is told of the end, before drain is over
			}
			return err
		}
}

// drainFor is how long the source has to hear that the target's QEMU has hung up.
const drainFor = time.Second

// drain throws away what still comes until the source has ended, for drainFor:
// bytes that are unread when a connection is closed reset it, and what the other
// side has not read yet, the end that it was told of, is lost.
func drain(src io.Reader) {
	if c, ok := src.(net.Conn); ok && c.SetReadDeadline(time.Now().Add(drainFor)) == nil {
		_, _ = io.Copy(io.Discard, src)
	}
}

// hungUp picks out errors of a connection to the target's QEMU that this end has
// not closed.
func hungUp(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Net == "unix" && !errors.Is(err, net.ErrClosed)
}

// memory copies one of QEMU's streams and notes when the last was complete.
func (e *end) memory(dst io.Writer, src io.Reader) error {
	e.memories.Add(1)
	err := transfer(dst, src)
	if left := e.memories.Add(-1); err != nil || left > 0 {
		return err
	}
	return writeFile(e.layout.arrived(), time.Now().Format(time.RFC3339Nano))
}

// admit makes sure that the caller is the right's source.
func (e *end) admit(ctx context.Context, far *tls.Conn) (channel, error) {
	if err := shakeHands(ctx, far, e.cfg.Cluster, e.cfg.Peer); err != nil {
		return 0, err
	}
	c, err := readOpening(far, e.cfg.RightID)
	if err != nil {
		return 0, err
	}
	if e.cfg.Offline && (c == memoryChannel || c == diskChannel) || len(e.cfg.CopyDisks) == 0 && c == diskChannel {
		return 0, fmt.Errorf("%s: nothing of that is to come", c)
	}
	return c, far.SetDeadline(time.Time{})
}

// shakeHands makes sure that the caller is the agent of that node. What it says
// next is expected within openTimeout of the beginning.
func shakeHands(ctx context.Context, far *tls.Conn, cluster, peer string) error {
	if err := far.SetDeadline(time.Now().Add(openTimeout)); err != nil {
		return err
	}
	if err := far.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	who, ok, err := identity.FromConnection(far.ConnectionState(), cluster)
	if err != nil {
		return err
	}
	if !ok || who.Agent == nil || who.Agent.Node != peer {
		return fmt.Errorf("%s is not the right's source, %s", who, peer)
	}
	return nil
}

// connSet closes what is open when the tunnel ends.
type connSet struct {
	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

func newConnSet() *connSet { return &connSet{open: map[net.Conn]struct{}{}} }

func (s *connSet) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (s *connSet) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *connSet) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		_ = c.Close()
	}
}
