package machine

import (
	"encoding/binary"
	"io"
	"sync"
)

// The kernel's terminal layer stalls, or loses bytes, when more comes in over a serial line than its buffer of 4096 bytes holds. So
// the host has at most window bytes on their way that the machine did not acknowledge, which it does for each ackEvery of them.
const (
	window   = 3072
	ackEvery = 1024
)

// A pacer is the host's way to write to a serial line. It never blocks: a machine may stand still.
type pacer struct {
	q       *queue
	mu      sync.Mutex
	changed *sync.Cond
	credit  int
	closed  bool
}

func newPacer(to io.Writer) *pacer {
	p := &pacer{q: newQueue(), credit: window}
	p.changed = sync.NewCond(&p.mu)
	go p.q.drain(pacedWriter{p, to})
	return p
}

// Write hands over what is written when there is room for it.
func (p *pacer) Write(raw []byte) (int, error) {
	p.q.put(raw)
	return len(raw), nil
}

// ack makes room, as the machine says in a frame.
func (p *pacer) ack(contents []byte) {
	if len(contents) != 4 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.credit += int(binary.BigEndian.Uint32(contents))
	p.changed.Signal()
}

// close ends the pacer, whatever is left to be written.
func (p *pacer) close() {
	p.mu.Lock()
	p.closed = true
	p.changed.Signal()
	p.mu.Unlock()
	p.q.put(nil)
}

// pacedWriter writes as much as there is room for, again and again.
type pacedWriter struct {
	*pacer
	to io.Writer
}

func (p pacedWriter) Write(raw []byte) (int, error) {
	written := 0
	for written < len(raw) {
		n := min(len(raw)-written, ackEvery)
		p.mu.Lock()
		for p.credit < n && !p.closed {
			p.changed.Wait()
		}
		p.credit -= n
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return written, io.ErrClosedPipe
		}
		n, err := p.to.Write(raw[written : written+n])
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// An acker is the machine's way to read from the serial line.
type acker struct {
	from io.Reader
	w    *wire
	read int // bytes since the last acknowledgement
}

func (a *acker) Read(buf []byte) (int, error) {
	n, err := a.from.Read(buf)
	if a.read += n; err == nil && a.read >= ackEvery {
		err = a.w.send(kindAck, 0, binary.BigEndian.AppendUint32(nil, uint32(a.read)))
		a.read = 0
	}
	return n, err
}
