package tunnel

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// copyBuffer is how much is read at once: QEMU writes memory in large pieces,
// and each piece costs a system call on either side.
const copyBuffer = 512 << 10

// stream is a connection whose writing half can be ended.
type stream interface {
	net.Conn
	CloseWrite() error
}

// copying copies one way until the source ends, which is no error.
type copying func(dst io.Writer, src io.Reader) error

// join copies both ways until both have ended, and closes both. The results are
// what went wrong on either way, nil where the reading side simply ended.
func join(a, b stream, there, back copying) (aToB, bToA error) {
	var group sync.WaitGroup
	group.Go(func() { aToB = half(b, a, there) })
	group.Go(func() { bToA = half(a, b, back) })
	group.Wait()
	return aToB, bToA
}

// half copies one way. An end is passed on; a failure closes both connections,
// so that the other half ends as well.
func half(dst, src stream, f copying) error {
	err := f(dst, src)
	if err != nil {
		_ = src.Close()
		_ = dst.Close()
		return err
	}
	_ = dst.CloseWrite() // it fails where dst has gone already
	return nil
}

func transfer(dst io.Writer, src io.Reader) error {
	_, err := io.CopyBuffer(onlyWriter{dst}, onlyReader{src}, make([]byte, copyBuffer))
	return err
}

// The wrappers keep io.CopyBuffer from bypassing the large buffer.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)

// gather is the socket below TLS: it gathers the records of one TLS write into
// one system call. TLS makes a record of every 16 KiB and writes each by itself.
type gather struct {
	net.Conn
	on  atomic.Bool
	cut atomic.Bool // the peer's bytes ended here, below TLS
	mu  sync.Mutex
	buf []byte
}

// Write keeps the bytes while gathering is on.
func (g *gather) Write(p []byte) (int, error) {
	if !g.on.Load() {
		return g.Conn.Write(p)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.buf = append(g.buf, p...)
	return len(p), nil
}

// Read notes where the socket itself ends.
func (g *gather) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		g.cut.Store(true)
	}
	return n, err
}

// flush sends what was gathered.
func (g *gather) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.Conn.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}

// secured is a TLS connection above a gathering socket.
type secured struct {
	tlsConn
	below *gather
}

// tlsConn is what secured needs of *tls.Conn.
type tlsConn interface {
	net.Conn
	CloseWrite() error
}

// newSecured begins gathering; the handshake must be over.
func newSecured(c tlsConn, below *gather) *secured {
	below.on.Store(true)
	return &secured{c, below}
}

// Read decrypts. An end that the peer did not announce is an error:
// crypto/tls takes one between two records for an ordinary end.
func (s *secured) Read(p []byte) (int, error) {
	n, err := s.tlsConn.Read(p)
	if errors.Is(err, io.EOF) && s.below.cut.Load() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Write encrypts and sends.
func (s *secured) Write(p []byte) (int, error) {
	n, err := s.tlsConn.Write(p)
	if flushErr := s.below.flush(); err == nil {
		err = flushErr
	}
	return n, err
}

// CloseWrite tells the peer that no more follows. It is not gathered: TLS
// forbids the socket to write right after.
func (s *secured) CloseWrite() error {
	s.below.on.Store(false)
	err := s.below.flush()
	return errors.Join(err, s.tlsConn.CloseWrite())
}

// Close closes the socket below. It says no good-bye: an end that was meant was
// told by CloseWrite.
func (s *secured) Close() error { return s.below.Close() }
