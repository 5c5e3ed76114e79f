package diskcopy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// chunkSize is what is hashed, compared and sent at once.
	chunkSize = 1 << 20
	// blockSize is what is left out of a chunk where it is all zeros.
	blockSize   = 4 << 10
	chunkBlocks = chunkSize / blockSize
	maskSize    = chunkBlocks / 8
	hashSize    = 32
	maxName     = 255
	maxReason   = 1 << 10
)

var magic = []byte("dvc1")

// The kinds of messages. All begin with one byte of kind; numbers are big-endian.
const (
	msgHello   = 'h' // source: magic, u64 size, u8 length, name
	msgWelcome = 'w' // target: nothing more; hashes follow
	msgRefuse  = 'r' // target: u16 length, reason; it is final
	msgHave    = 'i' // target: u64 chunk, hash: it is there, and not all zeros
	msgHaveEnd = 'e' // target: all other chunks are all zeros
	msgData    = 'd' // source: u64 chunk, u8 flags, hash, mask of blocks, those blocks
	msgZero    = 'z' // source: u64 chunk: all zeros, though it is not so there
	msgSum     = 's' // source: sum of all: no more comes. target: the same is on disk
	msgBye     = 'b' // source: it knows
	msgAlive   = 'a' // either: still at work. msgAlso: so is this one
	msgAlso    = 'A'
)

// flagClear has the target clear the chunk first: it has something else there.
const flagClear = 1

var (
	// quiet is how long the other side may say nothing; aliveEvery how often a
	// side says something.
	quiet      = 30 * time.Second
	aliveEvery = 5 * time.Second
)

// wire is a connection with deadlines.
type wire struct {
	conn net.Conn
	in   *bufio.Reader

	mu  sync.Mutex // of whole messages
	out *bufio.Writer
}

func newWire(conn net.Conn) *wire {
	w := &wire{conn: conn}
	w.in = bufio.NewReaderSize(timed{conn}, 64<<10)
	w.out = bufio.NewWriterSize(timed{conn}, 64<<10)
	return w
}

// timed bounds how long the other side may stand still.
type timed struct{ net.Conn }

func (t timed) Read(p []byte) (int, error) {
	if err := t.SetReadDeadline(time.Now().Add(quiet)); err != nil {
		return 0, err
	}
	return t.Conn.Read(p)
}

func (t timed) Write(p []byte) (int, error) {
	if err := t.SetWriteDeadline(time.Now().Add(quiet)); err != nil {
		return 0, err
	}
	return t.Conn.Write(p)
}

// next reads a message's kind, and answers signs of life: who waits here says
// nothing else meanwhile.
func (w *wire) next() (byte, error) {
	for {
		kind, err := w.in.ReadByte()
		if err != nil || kind != msgAlive && kind != msgAlso {
			return kind, err
		}
		if kind == msgAlive {
			if err := w.send([]byte{msgAlso}); err != nil {
				return 0, err
			}
		}
	}
}

func (w *wire) read(p []byte) error {
	_, err := io.ReadFull(w.in, p)
	return err
}

func (w *wire) uint64() (uint64, error) {
	var b [8]byte
	err := w.read(b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// text reads n bytes that are not to be too many.
func (w *wire) text(n, most int) (string, error) {
	if n > most {
		return "", fmt.Errorf("a text of %d bytes", n)
	}
	b := make([]byte, n)
	err := w.read(b)
	return string(b), err
}

// send writes a message and flushes it.
func (w *wire) send(parts ...[]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range parts {
		if _, err := w.out.Write(p); err != nil {
			return err
		}
	}
	return w.out.Flush()
}

func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// hello is what the source says first.
type hello struct {
	name string
	size uint64
}

func (w *wire) sendHello(h hello) error {
	if len(h.name) > maxName {
		return final(fmt.Errorf("the disk's name has %d bytes, at most %d are possible", len(h.name), maxName))
	}
	return w.send([]byte{msgHello}, magic, u64(h.size), []byte{byte(len(h.name))}, []byte(h.name))
}

func (w *wire) readHello() (hello, error) {
	head := make([]byte, 1+len(magic)+8+1)
	if err := w.read(head); err != nil {
		return hello{}, err
	}
	if head[0] != msgHello || string(head[1:1+len(magic)]) != string(magic) {
		return hello{}, errors.New("not a copy's beginning")
	}
	name, err := w.text(int(head[len(head)-1]), maxName)
	return hello{name, binary.BigEndian.Uint64(head[1+len(magic):])}, err
}

func (w *wire) sendRefusal(reason string) error {
	reason = reason[:min(len(reason), maxReason)]
	return w.send([]byte{msgRefuse}, binary.BigEndian.AppendUint16(nil, uint16(len(reason))), []byte(reason))
}

func (w *wire) readRefusal() (string, error) {
	var n [2]byte
	if err := w.read(n[:]); err != nil {
		return "", err
	}
	return w.text(int(binary.BigEndian.Uint16(n[:])), maxReason)
}

// blocks are those of a chunk that are not all zeros.
type blocks [maskSize]byte

func (b *blocks) set(i int)      { b[i/8] |= 1 << (i % 8) }
func (b *blocks) has(i int) bool { return b[i/8]&(1<<(i%8)) != 0 }

// beyond tells whether the blocks go on where the chunk does not.
func (b *blocks) beyond(length int) bool {
	for i := (length + blockSize - 1) / blockSize; i < chunkBlocks; i++ {
		if b.has(i) {
			return true
		}
	}
	return false
}
