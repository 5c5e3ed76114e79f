package machine

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// What is said over the serial line between the process that booted a machine and the machine's process 1: frames of a kind, the
// number of the process inside that they are about, and contents.
type kind byte

const (
	kindReady   kind = iota + 1 // inside: the machine is up
	kindFailed                  // inside: it cannot come up (number 0), or a process not start: why
	kindStart                   // host: order
	kindStarted                 // inside: its process id, decimal
	kindDial                    // host: network and address; what follows is as of a process, whose output is what the peer says
	kindSignal                  // host: one byte, the signal; the process's group gets it if 128 is added; closes a connection
	kindIn                      // host: standard input; empty: its end
	kindOut                     // inside: standard output
	kindErr                     // inside: standard error
	kindExit                    // inside: decimal status, 128 and more for a signal; nothing follows
	kindAck                     // inside: bytes read since the last one, in 32 bits, see pacer
)

// maxFrame bounds the contents of a frame.
const maxFrame = 1 << 20

// An order is what kindStart holds.
type order struct {
	Args  []string
	Env   []string
	Dir   string
	Input bool // has standard input
}

type frame struct {
	kind     kind
	number   uint32
	contents []byte
}

// A wire sends and receives frames; any goroutine may send, one receives.
type wire struct {
	mu sync.Mutex
	w  io.Writer
	r  io.Reader
}

func (w *wire) send(k kind, number uint32, contents []byte) error {
	head := make([]byte, 9, 9+len(contents))
	head[0] = byte(k)
	binary.BigEndian.PutUint32(head[1:], number)
	binary.BigEndian.PutUint32(head[5:], uint32(len(contents)))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.w.Write(append(head, contents...))
	return err
}

func (w *wire) sendJSON(k kind, number uint32, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.send(k, number, raw)
}

func (w *wire) receive() (frame, error) {
	var head [9]byte
	if _, err := io.ReadFull(w.r, head[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: kind(head[0]), number: binary.BigEndian.Uint32(head[1:])}
	size := binary.BigEndian.Uint32(head[5:])
	if size > maxFrame {
		return f, fmt.Errorf("a frame of %d bytes, at most %d are allowed", size, maxFrame)
	}
	f.contents = make([]byte, size)
	_, err := io.ReadFull(w.r, f.contents)
	return f, err
}
